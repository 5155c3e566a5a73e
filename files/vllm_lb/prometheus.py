# SPDX-License-Identifier: Apache-2.0
"""A tick as Prometheus metrics, for node_exporter's textfile collector.

The file is written before `apply` runs, so its outcomes end with the tick before. Names as in
https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_lb import __version__
from vllm_lb.decide import lowest_weight
from vllm_lb.outcome import CHANGES, LIVE, OUTCOMES
from vllm_lb.plan import STATES
from vllm_lb.text import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from vllm_lb.history import Tick
    from vllm_lb.outcome import Outcome
    from vllm_lb.own_host import OwnHost
    from vllm_lb.plan import Plan
    from vllm_lb.settings import Config, OwnHostSettings


def metrics(config: Config, config_sha256: str, tick: Tick, own_host: OwnHost) -> str:
    """Return a tick, and what was found of this host, in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collected:
        def collect(self) -> Iterator[Metric]:
            yield family("build_info", "Version of vllm-nginx-lb.", {(__version__,): 1}, ["version"])
            yield family("config_info", "What config.yml has.", {(config_sha256,): 1}, ["sha256"])
            yield family("interval_seconds", "How often a tick shall come.", {(): config.interval_seconds})
            decided = {(): seconds_of(tick.plan.decided_at)}
            yield family("last_tick_timestamp_seconds", "When the nodes were read.", decided)
            yield from outcome_metrics(tick.last) if tick.last else ()
            yield from pool_metrics(config, tick.plan)
            yield from live_metrics(tick)
            yield from node_metrics(tick)
            yield from own_host_metrics(config.own_host, own_host)

    registry = CollectorRegistry()
    registry.register(Collected())
    return generate_latest(registry).decode()


def family(
    name: str, about: str, values: Mapping[Any, float], labels: Sequence[str] = (), *, counter: bool = False
) -> Metric:
    """Return a metric with its values by their labels."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    found = (CounterMetricFamily if counter else GaugeMetricFamily)(f"vllm_nginx_lb_{name}", about, labels=labels)
    for each, value in values.items():
        found.add_metric(each, value)
    return found


def outcome_metrics(last: Outcome) -> Iterator[Metric]:
    """Yield the result of the last tick, and totals of the ticks so far. A time that is not known is left out."""
    succeeded = {(): seconds_of(last.succeeded_at)} if last.succeeded_at else {}
    changed = {(): seconds_of(last.changed_at)} if last.changed_at else {}
    live = dict.fromkeys(changed, last.changed_outcome in LIVE)
    totals = {(outcome,): getattr(last.totals, outcome) for outcome in OUTCOMES}
    changes = {(outcome,): getattr(last.totals, outcome) for outcome in CHANGES}
    yield family("last_tick_success", "Whether the last tick ended without a fault.", {(): last.error_cause is None})
    yield family("last_success_timestamp_seconds", "When nodes were read for the last tick without a fault.", succeeded)
    yield family("last_reload_timestamp_seconds", "When what nginx serves changed, or a tick failed.", changed)
    yield family("last_reload_success", "Whether it changed.", live)
    yield family("ticks", "Ticks, by how they ended.", totals, ["outcome"], counter=True)
    yield family("reloads", "Ticks that changed what nginx serves, or failed.", changes, ["outcome"], counter=True)
    yield family("change_deferred", "Whether a change of weights waits.", {(): last.outcome == "deferred"})
    draining = {(): last.draining_generations}
    yield family("draining_generations", "Reloads whose old workers still drain.", draining)


def pool_metrics(config: Config, plan: Plan) -> Iterator[Metric]:
    """Yield the metrics of whole pools."""
    held = {(pool.name,): pool.held_cause is not None for pool in plan.pools}
    lowest = {
        (pool.name, pool.policy): lowest_weight(pool, pool.nodes[0], config.policies)
        for pool in config.pools
        if pool.policy != "static"
    }
    yield family("pool_held", "Whether weights are held because no node would serve.", held, ["pool"])
    yield family("pool_lowest_weight", "The least weight of a node that serves.", lowest, ["pool", "policy"])


def live_metrics(tick: Tick) -> Iterator[Metric]:
    """Yield the weights that nginx served when the tick before ended; nothing if they are not known.

    They were the decided ones, but for those that the result of that tick names.
    """
    differing = tick.last.live_weights if tick.last else None
    if differing is None:
        return
    decided = {
        (pool.name, node.name): node.previous_weight
        for pool in tick.plan.pools
        for node in pool.nodes
        if node.previous_weight is not None
    }
    live = decided | {(pool, node): weight for pool, nodes in differing.items() for node, weight in nodes.items()}
    count = {(pool.name,): 0 for pool in tick.plan.pools} | {(pool,): len(nodes) for pool, nodes in differing.items()}
    yield family("node_live_weight", "Weight that nginx had at the end of the tick before.", live, ["pool", "node"])
    yield family("pool_nodes_not_live", "Nodes whose live weight was not the decided one then.", count, ["pool"])


def node_metrics(tick: Tick) -> Iterator[Metric]:
    """Yield the metrics of single nodes; what could not be read is left out."""
    labels = ["pool", "node"]
    nodes = {(pool.name, node.name): node for pool in tick.plan.pools for node in pool.nodes}
    readings = {key: reading for key in nodes if (reading := tick.samples[key[1]].reading)}

    def of_nodes(name: str, about: str, key: str) -> Metric:
        return family(f"node_{name}", about, {each: getattr(node, key) for each, node in nodes.items()}, labels)

    def of_readings(name: str, about: str, key: str, *, counter: bool = False) -> Metric:
        values = {each: value for each, reading in readings.items() if (value := getattr(reading, key)) is not None}
        return family(f"node_{name}", about, values, labels, counter=counter)

    up = {each: node.state == "up" for each, node in nodes.items()}
    states = {(*each, state): node.state == state for each, node in nodes.items() for state in STATES}
    yield family("node_up", "Whether the node is up.", up, labels)
    yield family("node_state", "The node's state: one of them is 1.", states, [*labels, "state"])
    since = {each: seconds_of(node.drained_since) for each, node in nodes.items() if node.drained_since}
    yield family("drained_since_seconds", "When the operator drained the node, in Unix time.", since, labels)
    yield of_nodes("weight", "Decided weight; 0 is out of rotation.", "weight")
    yield of_nodes("scrape_duration_seconds", "How long it took to read the node.", "scrape_seconds")
    yield of_readings("kv_cache_usage_ratio", "Usage of the fullest engine's KV cache.", "kv_cache_usage")
    yield of_readings("requests_waiting", "Requests queued.", "waiting")
    yield of_readings("requests_running", "Requests in a batch.", "running")
    yield of_readings("preemptions", "Preemptions since the node started.", "preemptions", counter=True)


def own_host_metrics(settings: OwnHostSettings, found: OwnHost) -> Iterator[Metric]:
    """Yield the metrics of this host; what it does not have, or does not answer, is left out."""
    not_before, not_after = found.certificate or (None, None)
    begins = "When the certificate that clients are shown begins."
    ends = "When the certificate that clients are shown ends."
    yield family("certificate_not_before_timestamp_seconds", begins, known((), not_before))
    yield family("certificate_not_after_timestamp_seconds", ends, known((), not_after))
    held = known((settings.floating_address,), found.holds_floating_address)
    yield family("floating_address_held", "Whether this host has the floating address.", held, ["address"])
    yield family("keepalived_running", "Whether keepalived runs.", known((), found.keepalived_runs))


def known(labels: Any, value: float | None) -> dict[Any, float]:
    """Return the value of a metric by its labels, or no value."""
    return {} if value is None else {labels: value}
