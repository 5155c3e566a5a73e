"""The benchmark in virtual time: engines of the simulator, a model of nginx, the script's decisions, no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenario import NO_RELOAD_LIMITS
from benchmarks.virtual.limits import Exact, Limit, queue_length, time_to_first_token
from benchmarks.virtual.nginx import StaticNginx
from benchmarks.virtual.outstanding_work import OutstandingWork
from benchmarks.virtual.peers.llm_d import LlmD
from benchmarks.virtual.peers.lmetric import Lmetric
from benchmarks.virtual.peers.shortest_queue import ShortestQueue
from benchmarks.virtual.peers.smetric import Smetric
from benchmarks.virtual.peers.smg import SmgCacheAware, SmgLeastLoad
from benchmarks.virtual.script_weights import ScriptWeights

if TYPE_CHECKING:
    from benchmarks.virtual.contestant import Contestant

CONTESTANTS: tuple[Contestant, ...] = (
    StaticNginx("nginx-round-robin", "round_robin"),
    StaticNginx("nginx-least-conn-no-zone", "least_conn", zone=False),
    StaticNginx("nginx-least-conn", "least_conn"),
    StaticNginx("nginx-random-two", "random_two_least_conn"),
    ScriptWeights("article", "stepped", reload_limits=NO_RELOAD_LIMITS),
    ScriptWeights("ours-stepped", "stepped"),
    ScriptWeights("ours-capacity", "capacity"),
    ScriptWeights("ours-static", "static", known=True),
    OutstandingWork("ours-work", "capacity"),
    # The same less one part, or with other weights.
    OutstandingWork("ours-work-no-prefix", "capacity", affinity="off"),
    OutstandingWork("ours-work-no-kv-gate", "capacity", kv_share=0),
    OutstandingWork("ours-work-no-pending", "capacity", pending=False),
    OutstandingWork("ours-work-no-progress", "capacity", progress=False),
    OutstandingWork("ours-work-no-streams", "capacity", stream_bytes=0),
    OutstandingWork("ours-work-no-weights", "static"),
    OutstandingWork("ours-work-no-slow-start", "capacity", ramp_seconds=0),
    OutstandingWork("ours-work-static", "static", known=True),
    OutstandingWork("ours-work-stepped", "stepped"),
    ShortestQueue("jsq"),
    LlmD("llm-d"),
    Lmetric("lmetric"),
    Lmetric("lmetric-queued", queued=True),
    Smetric("smetric"),
    SmgCacheAware("smg-cache-aware"),
    SmgLeastLoad("smg-least-load"),
    Limit("limit-jsq", queue_length),
    Limit("limit-oracle", time_to_first_token),
    Exact("limit-exact"),
)
