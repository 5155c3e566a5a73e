"""The benchmark in virtual time: engines of the simulator, a model of nginx, the script's decisions, no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.scenario import NO_RELOAD_LIMITS
from benchmarks.virtual.limits import Limit, queue_length, time_to_first_token
from benchmarks.virtual.nginx import StaticNginx
from benchmarks.virtual.outstanding_work import OutstandingWork
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
    Limit("limit-jsq", queue_length),
    Limit("limit-oracle", time_to_first_token),
)
