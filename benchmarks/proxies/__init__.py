"""The contestants of the real-time benchmark: ours, and what people would use instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.proxies.haproxy import HaproxyLeastconn, HaproxyWeights
from benchmarks.proxies.litellm import LiteLlm
from benchmarks.proxies.nginx import Nginx
from benchmarks.proxies.outstanding_work import OutstandingWork
from benchmarks.proxies.routers import Smg, VllmRouter
from benchmarks.proxies.script_weights import ScriptWeights
from benchmarks.scenario import NO_RELOAD_LIMITS

if TYPE_CHECKING:
    from benchmarks.contestant import Contestant

CONTESTANTS: tuple[Contestant, ...] = (
    Nginx("nginx-round-robin", "nginx, round robin", "round_robin"),
    Nginx("nginx-least-conn-no-zone", "nginx, least_conn, each worker counts alone", "least_conn", zone=False),
    Nginx("nginx-least-conn", "nginx, least_conn with zone", "least_conn"),
    Nginx("nginx-random-two", "nginx, random two least_conn", "random_two_least_conn"),
    ScriptWeights(
        "article",
        "the article's script: the ladder, every change reloaded every 10 s",
        "stepped",
        reload_limits=NO_RELOAD_LIMITS,
    ),
    ScriptWeights("ours-stepped", "ours, balancer upstream, policy stepped: the ladder, few reloads", "stepped"),
    ScriptWeights("ours-capacity", "ours, balancer upstream, policy capacity", "capacity"),
    ScriptWeights("ours-static", "ours, balancer upstream, policy static: known capacities", "static", known=True),
    OutstandingWork("ours-work", "ours, balancer work, as installed: in-flight work, prompts cached, no reloads"),
    OutstandingWork("ours-work-no-prefix", "ours, balancer work that does not know what is cached", affinity="off"),
    HaproxyLeastconn(),
    HaproxyWeights(),
    VllmRouter("vllm-router", "cache_aware", "cache_aware (its default)"),
    VllmRouter("vllm-router-power-of-two", "power_of_two", "power_of_two"),
    VllmRouter("vllm-router-round-robin", "round_robin", "round_robin"),
    Smg("smg", "cache_aware", "cache_aware (its default)"),
    Smg("smg-least-load", "least_load", "least_load"),
    LiteLlm("litellm", "simple-shuffle", 2),
    LiteLlm("litellm-least-busy", "least-busy", 1),  # the strategy counts requests of one process
)
