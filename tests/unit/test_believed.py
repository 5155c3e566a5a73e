"""What a node's word is worth: false claims, impossible values, no statistics."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.play import Engine, Play
from tests.unit.samples import config, good
from vllm_lb.causes import NodeCause, ScrapeCause
from vllm_lb.decide import decide
from vllm_lb.memory import NodeMemory
from vllm_lb.observation import Reading, Sample
from vllm_lb.policies.fair_share import bounded, most_of

if TYPE_CHECKING:
    from vllm_lb.plan import NodePlan

# --- False claims ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("honest", [1, 2, 5])
@pytest.mark.parametrize("times", [True, False], ids=["times", "gauges"])
@pytest.mark.parametrize(
    ("claim", "cause", "least"),
    [
        ({"claims": 1e6}, NodeCause.LEARNED, 100),  # its counters jump: to us it starts again and again
        ({"claims": 1000}, NodeCause.IMPLAUSIBLE, 100),  # about 500,000 tokens/s
        ({"claims": 10}, NodeCause.BOUNDED, 25),
        ({"claims": 3}, NodeCause.LEARNED, 30),  # as fast as it says, or not: a node may be
    ],
    ids=str,
)
def test_a_node_that_claims_to_be_fast(
    claim: dict[str, Any],
    cause: NodeCause,
    least: int,
    times: bool,  # noqa: FBT001 - a table's column
    honest: int,
) -> None:
    nodes: Any = {"liar": Engine()} | {f"n{i}": Engine() for i in range(honest)}
    play = Play(20 * (honest + 1), noise=0.05, **nodes)
    play.tick(10)
    assert set(play.weights.values()) == {100}
    play.nodes["liar"] = dataclasses.replace(play.nodes["liar"], times=times, **claim)
    for _ in range(40):
        weights = play.tick()
        assert min(weights.values()) >= least
    assert play.plan["liar"].cause == cause
    assert all(play.plan[name].cause == NodeCause.LEARNED for name in play.nodes if name != "liar")
    if cause == NodeCause.BOUNDED:
        bound = ", counts for at most 4 times the pool's median (policies.capacity.max_learned_ratio)"
        assert play.reason("liar").endswith(bound)
    if cause == NodeCause.IMPLAUSIBLE:
        assert "tokens/s a request, which no engine has: its weight stays" in play.reason("liar")


def test_a_claim_is_forgotten_when_the_node_says_what_can_be() -> None:
    play = Play(40, a=Engine(), b=Engine())
    play.tick(5)
    play.nodes["a"].claims = 1000
    assert (play.tick(5)["b"], play.plan["a"].cause) == (100, NodeCause.IMPLAUSIBLE)
    play.nodes["a"].claims = 1
    assert (play.tick(1)["b"], play.plan["a"].cause) == (100, NodeCause.LEARNED)


def test_a_node_that_hides_its_requests_gets_no_more_than_the_bound() -> None:
    play = Play(60, noise=0.05, liar=Engine(), a=Engine(), b=Engine())
    play.tick(10)
    play.nodes["liar"] = dataclasses.replace(play.nodes["liar"], hides=True, claims=0.03)
    for _ in range(60):
        assert min(play.tick().values()) >= 25


LIES = st.builds(
    Reading,
    kv_cache_usage=st.none() | st.floats(0, 1),
    waiting=st.none() | st.integers(0, 2000),
    running=st.none() | st.integers(0, 2000),
    preemptions=st.integers(0, 2**53),
    engines=st.integers(1, 4096),
    awake=st.just(value=True),
    generation_tokens=st.none() | st.integers(0, 10**7),
    finished=st.none() | st.integers(0, 10**6),
    token_gaps=st.none() | st.integers(0, 10**7),
    token_gap_seconds=st.none() | st.floats(0, 10**5),
)


@given(st.lists(LIES, min_size=5, max_size=25))
def test_no_lie_takes_more_than_the_bound_from_honest_nodes(lies: list[Reading]) -> None:
    settings = config("a", "b", "liar", pool={"policy": "capacity"})
    memory: dict[str, NodeMemory] = {}
    total = Reading(0.1, 0, 0, 0, 1, awake=True)
    for tick, lie in enumerate(lies, 1):
        grown: Any = {
            name: (getattr(total, name) or 0) + getattr(lie, name) if getattr(lie, name) is not None else None
            for name in ("preemptions", "generation_tokens", "finished", "token_gaps", "token_gap_seconds")
        }
        total = dataclasses.replace(lie, **grown)
        done = {"generation_tokens": 3000 * tick, "finished": 15 * tick, "token_gaps": 3000 * tick}
        honest: dict[str, Any] = {"running": 10, "token_gap_seconds": 100.0 * tick} | done
        seen = {"a": good("127.0.0.1", **honest), "b": good("127.0.0.2", **honest)}
        seen["liar"] = Sample("127.0.0.3", 0.01, total)
        plans, memory = decide(settings, seen, memory, set(), 1000.0 + 10 * tick)
        assert min(node.weight for node in plans[0].nodes if node.name != "liar") >= 25


def test_a_node_that_is_faster_by_configuration_may_get_more() -> None:
    play = Play(60, noise=0.05, a=Engine(fast=200), b=Engine(fast=20), c=Engine(fast=20))
    play.tick(60)
    assert max(play.weights["b"], play.weights["c"]) == 25
    play = Play(60, noise=0.05, a=Engine(fast=200), b=Engine(fast=20), c=Engine(fast=20))
    play.capacities = {"b": 0.1, "c": 0.1}
    play.tick(60)
    assert max(play.weights["b"], play.weights["c"]) <= 15
    assert play.plan["a"].cause == NodeCause.LEARNED


@pytest.mark.parametrize(
    ("values", "capacities", "expected"),
    [
        ({"a": 10, "b": 1}, {"a": 1, "b": 1}, {"a": 4, "b": 1}),  # the lower one of two is the measure
        ({"a": 10, "b": 1, "c": 3}, {"a": 1, "b": 1, "c": 1}, {"a": 10, "b": 1, "c": 3}),
        ({"a": 90, "b": 1, "c": 3}, {"a": 1, "b": 1, "c": 1}, {"a": 12, "b": 1, "c": 3}),
        ({"a": 90, "b": 1, "c": 3}, {"a": 10, "b": 1, "c": 1}, {"a": 90, "b": 1, "c": 3}),
        ({"a": 9, "b": 0}, {"a": 1, "b": 1}, {"a": 9, "b": 0}),  # one that does nothing is no measure
        ({"a": 0, "b": 0}, {"a": 1, "b": 1}, {"a": 0, "b": 0}),
    ],
)
def test_bounded(values: dict[str, float], capacities: dict[str, float], expected: dict[str, float]) -> None:
    assert bounded(values, capacities, 4) == expected
    assert most_of({}, capacities, 4) == {}


def test_of_two_nodes_one_that_stands_still_is_lowered() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.nodes["b"] = dataclasses.replace(play.nodes["b"], fast=0.001, times=False)
    assert play.tick(10)["b"] <= 30
    assert play.weights["a"] == 100


# --- Impossible values, and counters that jump ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preemptions", "weight"),
    [(501, 60), (500 + 10**7, 60), (500 + 10**7 + 1, 100), (2**53, 100), (499, 100), (None, 100)],
)
def test_preemptions_that_no_engine_has_in_ten_seconds_are_a_restart(preemptions: int | None, weight: int) -> None:
    settings, memory = config("a"), dict[str, NodeMemory]()
    for now, each in ((1000.0, 500), (1010.0, preemptions)):
        plans, memory = decide(settings, {"a": good(preemptions=each)}, memory, set(), now)
    assert plans[0].nodes[0].weight == weight
    assert plans[0].nodes[0].preemptions_delta == (
        None if preemptions is None else preemptions - 500 if weight == 60 else 0
    )
    plans, memory = decide(settings, {"a": good(preemptions=(preemptions or 500) + 1)}, memory, set(), 1020.0)
    assert plans[0].nodes[0].preemptions_delta == 1


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("kv_cache_usage", "kv unknown, waiting 3 > 0"),
        ("waiting", "kv 0.80 >= 0.75"),
        ("running", "kv 0.80 >= 0.75, waiting 3 > 0"),
        ("preemptions", "kv 0.80 >= 0.75, waiting 3 > 0"),
    ],
)
def test_the_ladder_goes_by_the_signs_that_are_left(metric: str, reason: str) -> None:
    load: dict[str, Any] = {"kv_cache_usage": 0.8, "waiting": 3} | {metric: None}
    flawed = dataclasses.replace(good(**load), cause=ScrapeCause.METRIC_IMPLAUSIBLE, error="left out: x is -1")
    plans, memory = decide(config("a"), {"a": flawed}, {}, set(), 1000.0)
    node = plans[0].nodes[0]
    assert (node.state, node.reason) == ("up", f"{reason}; left out: x is -1")
    assert (node.error_cause, memory["a"].doubt) == ("metric_implausible", "metric_implausible")


@pytest.mark.parametrize(("lost", "learns"), [("kv_cache_usage", True), ("waiting", False), ("running", True)])
def test_capacity_learns_from_what_is_left(lost: str, learns: bool) -> None:  # noqa: FBT001 - a table's column
    settings, memory = config("a", "b", pool={"policy": "capacity"}), dict[str, NodeMemory]()
    for tick in range(1, 12):
        seen = {}
        for host, speed, changes in (("127.0.0.1", 40, {}), ("127.0.0.2", 10, {lost: None})):
            tokens, finished = 20 * 10 * speed * tick, 2 * speed * tick
            load: dict[str, Any] = {
                "running": 20,
                "generation_tokens": tokens,
                "finished": finished,
                "token_gaps": tokens,
            }
            seen["b" if changes else "a"] = good(host, **(load | {"token_gap_seconds": 200.0 * tick} | changes))
        plans, memory = decide(settings, seen, memory, set(), 1000.0 + 10 * tick)
    assert (plans[0].nodes[1].weight < 60) == learns


def test_a_doubt_is_forgotten_after_thirty_good_scrapes() -> None:
    settings, memory = config("a"), dict[str, NodeMemory]()
    flawed = dataclasses.replace(good(), cause=ScrapeCause.METRIC_IMPLAUSIBLE, error="left out: x is -1")
    doubts = []
    for tick in range(62):
        _, memory = decide(settings, {"a": flawed if tick == 1 else good()}, memory, set(), 1000.0 + 10 * tick)
        doubts.append(memory["a"].doubt)
    assert doubts == [None] + ["metric_implausible"] * 28 + [None] * 33


# --- No statistics ----------------------------------------------------------------------------------------------

SILENT = Reading(None, None, None, None, engines=1, awake=True)
WITHOUT_STATISTICS = "no metrics of vllm (it runs with --disable-log-stats)"


@pytest.mark.parametrize(
    ("policy", "others"), [("capacity", (100, 50)), ("stepped", (100, 100)), ("static", (100, 50))]
)
def test_a_node_without_statistics_gets_its_configured_share(policy: str, others: tuple[int, int]) -> None:
    names = ("a", "b", "silent")
    nodes = [
        {"name": name, "host": f"127.0.0.{i}", "capacity": capacity}
        for i, (name, capacity) in enumerate(zip(names, (1.0, 0.5, 0.75), strict=True), 1)
    ]
    settings, memory = config(*names, pool={"policy": policy, "nodes": nodes}), dict[str, NodeMemory]()
    for tick in range(5):
        seen = {"a": good("127.0.0.1"), "b": good("127.0.0.2")}
        seen["silent"] = Sample("127.0.0.3", 0.01, SILENT, WITHOUT_STATISTICS, ScrapeCause.NO_STATISTICS)
        plans, memory = decide(settings, seen, memory, set(), 1000.0 + 10 * tick)
        by_name: dict[str, NodePlan] = {node.name: node for node in plans[0].nodes}
        assert (by_name["silent"].state, by_name["silent"].weight) == ("up", 75)
        assert (by_name["a"].weight, by_name["b"].weight) == others
    silent = by_name["silent"]
    assert (silent.cause, silent.error_cause) == ("no_statistics", "no_statistics")
    assert silent.reason == f"capacity 0.75 as configured; {WITHOUT_STATISTICS}"
    assert (silent.running, silent.waiting, silent.kv_cache_usage, silent.preemptions_delta) == (None, None, None, None)


def test_a_node_that_loses_its_statistics_comes_back_to_its_configured_share() -> None:
    play = Play(a=Engine(), b=Engine(fast=10), c=Engine())
    assert play.tick(30)["b"] < 50
    fault = Sample("127.0.0.2", 0.01, SILENT, WITHOUT_STATISTICS, ScrapeCause.NO_STATISTICS)
    play.nodes["b"].fault = fault
    assert play.tick(10) == {"a": 100, "b": 100, "c": 100}


@pytest.mark.parametrize("field", ["kv_cache_usage", "running", "waiting", "preemptions"])
def test_only_a_node_that_says_nothing_has_no_statistics(field: str) -> None:
    change: dict[str, Any] = {field: 0}
    assert not SILENT.has_statistics
    assert dataclasses.replace(SILENT, **change).has_statistics
