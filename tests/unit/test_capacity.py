"""The policy `capacity`: what it learns from nodes whose counters grow, and the weights that follow."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from tests.unit.play import Engine, Play
from tests.unit.samples import config, good, refused, unreadable
from vllm_lb.decide import decide
from vllm_lb.memory import Means, NodeMemory, memory_of, stored
from vllm_lb.policies.fair_share import corrections, credible_requests, fair_shares, room_for
from vllm_lb.schema import build
from vllm_lb.settings import Capacity

if TYPE_CHECKING:
    from collections.abc import Iterable


def ratio(weights: dict[str, int], one: str, other: str) -> float:
    return weights[one] / weights[other]


def ticks_until(play: Play, wanted: Iterable[int], node: str) -> int:
    """Return after how many ticks a node has one of these weights."""
    for tick in range(1, 61):
        if play.tick()[node] in wanted:
            return tick
    pytest.fail(f"{node} stays at {play.weights[node]}")


@pytest.mark.parametrize("seed", range(10))
def test_equal_nodes_are_left_alone(seed: int) -> None:
    play = Play(noise=0.1, seed=seed, a=Engine(), b=Engine(), c=Engine())
    assert play.tick(60) == {"a": 100, "b": 100, "c": 100}
    assert play.moves == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_node_ends_with_what_its_speed_asks_for(seed: int) -> None:
    play = Play(noise=0.1, seed=seed, a=Engine(), b=Engine(), c=Engine(fast=16))
    weights = play.tick(60)
    assert max(weights.values()) == 100
    assert 25 <= weights["c"] <= 60
    assert min(weights["a"], weights["b"]) >= 80
    assert play.moves < 8
    assert "tokens/s a request, " in play.reason("c")


@pytest.mark.parametrize("count", [16, 64, 200])
def test_many_equal_nodes_are_left_alone_however_far_one_deviates_by_chance(count: int) -> None:
    nodes = {f"node-{i}": Engine() for i in range(count)}
    play = Play(15 * count, noise=0.45, seed=1, **nodes)
    assert set(play.tick(40).values()) == {100}


@pytest.mark.parametrize("count", [16, 64, 200])
def test_a_slow_node_among_many_is_lowered_and_the_others_stay(count: int) -> None:
    others = {f"node-{i}": Engine() for i in range(count - 1)}
    play = Play(15 * count, noise=0.1, seed=1, slow=Engine(fast=10), **others)
    weights = play.tick(60)
    assert weights.pop("slow") <= 50
    assert set(weights.values()) == {100}


def test_the_reason_says_speed_and_requests() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(3)
    assert play.reason("a") == "22.9 tokens/s a request, 30.0 requests"


def test_a_node_that_slows_suddenly_is_lowered_within_three_ticks() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(30)
    play.nodes["c"].fast = 10
    weights = play.tick(3)
    assert weights["c"] <= 70
    assert weights["a"] == weights["b"] == 100


def test_traffic_past_nginx_lowers_a_node_until_it_ends() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(30)
    play.nodes["c"].hidden = 40
    play.tick(20)
    assert play.weights["c"] <= 50
    play.nodes["c"].hidden = 0
    assert ratio(play.tick(60), "c", "a") == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("requests", [0, 3])
def test_an_idle_pool_is_not_moved(requests: int) -> None:
    play = Play(requests, noise=0.5, a=Engine(), b=Engine(fast=10), c=Engine())
    assert play.tick(60) == {"a": 100, "b": 100, "c": 100}


def test_a_node_that_returns_has_its_weight_in_three_steps() -> None:
    play = Play(a=Engine(), b=Engine(fast=16))
    play.tick(60)
    earned = play.weights["b"]
    assert earned < 70
    play.nodes["b"].fault = refused()
    assert play.tick(3)["b"] == 0
    play.nodes["b"].fault = None
    assert play.tick()["b"] == 0
    assert (play.tick()["b"], play.reason("b")) == (10, "back after 2 good scrapes, starting low")
    assert (play.tick()["b"], play.reason("b")) == (round(earned / 2), f"step 1 of 2 back to {earned}")
    assert (play.tick()["b"], play.reason("b")) == (earned, f"step 2 of 2 back to {earned}")
    assert play.tick()["b"] == earned
    assert "tokens/s a request" in play.reason("b")


def weights_over_time(play: Play, name: str, tick_seconds: float, seconds: float) -> dict[int, float]:
    """Tick for some time; return for how long a node had each of its weights."""
    spent: dict[int, float] = {}
    for _ in range(round(seconds / tick_seconds)):
        weight = play.tick(seconds=tick_seconds)[name]
        spent[weight] = spent.get(weight, 0) + tick_seconds
    return spent


TICK_LENGTHS = pytest.mark.parametrize("tick_seconds", [10, 9.5, 2, 0.5])


@TICK_LENGTHS
@pytest.mark.parametrize("way_out", ["down", "drained"])
def test_each_step_of_slow_start_takes_an_interval_however_many_ticks_it_has(way_out: str, tick_seconds: float) -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    if way_out == "down":
        play.nodes["b"].fault = refused()
        play.tick(3)
        play.nodes["b"].fault = None
        assert play.tick()["b"] == 0
    else:
        play.drained = {"b"}
        play.tick()
        play.drained = set()
    spent = weights_over_time(play, "b", tick_seconds, 60)
    assert list(spent) == [10, 50, 100]
    assert 8 <= spent[10] <= 10
    assert 8 <= spent[50] <= 10


@TICK_LENGTHS
def test_a_step_that_waits_to_be_live_has_its_interval_from_then_on(tick_seconds: float) -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.drained = {"b"}
    play.tick()
    play.drained, play.applied = set(), False
    assert set(weights_over_time(play, "b", tick_seconds, 60)) == {10}
    play.applied = True
    spent = weights_over_time(play, "b", tick_seconds, 60)
    assert list(spent)[-2:] == [50, 100]
    assert 8 - tick_seconds <= spent.get(10, 0) < 8


@TICK_LENGTHS
def test_two_readings_are_two_intervals_however_many_ticks_they_have(tick_seconds: float) -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(30)
    play.nodes["c"].fast = 10
    began = play.now
    while play.weights["c"] == 100:
        play.tick(seconds=tick_seconds)
    assert 16 <= play.now - began <= 30


def test_memory_is_stored_without_what_says_nothing() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine(fault=refused()))
    play.tick(10)
    for name, memory in play.memory.items():
        plain = json.loads(json.dumps(stored(memory)))
        problems: list[str] = []
        assert memory_of(plain, name, problems) == memory
        assert problems == []
        # Fields that the version before does not know: it must read a memory of this one, except during slow start.
        assert "returned_at" not in plain
        assert "stepped_at" not in plain.get("learned", {})
    assert stored(NodeMemory()) == {}


def test_a_drained_node_returns_the_same_way() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.drained = {"b"}
    assert play.tick(10)["b"] == 0
    play.drained = set()
    assert (play.tick()["b"], play.reason("b")) == (10, "step 0 of 2 back to 100")
    assert [play.tick()["b"] for _ in range(3)] == [50, 100, 100]


def test_a_step_waits_until_the_one_before_is_live() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.drained = {"b"}
    play.tick()
    play.drained = set()
    play.tick()
    play.applied = False
    assert play.tick(5)["b"] == 10
    play.applied = True
    assert [play.tick()["b"] for _ in range(2)] == [50, 100]


def test_a_new_node_in_a_running_pool_starts_at_the_lowest() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.nodes["c"] = Engine()
    assert [play.tick()["c"] for _ in range(4)] == [10, 50, 100, 100]


def test_a_new_node_that_cannot_be_read_waits_at_the_lowest() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.nodes["c"] = Engine(fault=unreadable())
    assert play.tick(5)["c"] == 10
    play.nodes["c"].fault = None
    assert [play.tick()["c"] for _ in range(3)] == [10, 50, 100]


def test_weights_start_from_the_configured_capacity() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.capacities = {"b": 0.5, "c": 0.01}
    assert play.tick() == {"a": 100, "b": 50, "c": 10}


def test_nothing_moves_while_what_was_decided_is_not_live() -> None:
    play = Play(a=Engine(), b=Engine(fast=10))
    play.applied = False
    assert play.tick(30) == {"a": 100, "b": 100}
    play.applied = True
    assert play.tick(3)["b"] < 100


def test_what_was_measured_before_a_move_is_forgotten() -> None:
    play = Play(a=Engine(), b=Engine(fast=8), c=Engine())
    ticks_until(play, range(100), "b")
    after = {name: each.learned for name, each in play.memory.items()}
    assert [each and each.readings for each in after.values()] == [0, 0, 0]
    play.nodes["b"].fast = 0.5
    lowered = play.weights["b"]
    assert play.tick()["b"] == lowered
    assert play.tick()["b"] < lowered


def test_a_pool_without_token_counters_keeps_its_weights() -> None:
    play = Play(noise=0.1, a=Engine(counts=False), b=Engine(counts=False))
    play.capacities = {"b": 0.5}
    assert play.tick(60) == {"a": 100, "b": 50}


def test_a_node_without_token_counters_keeps_its_weight() -> None:
    play = Play(noise=0.1, a=Engine(), b=Engine(), c=Engine(counts=False))
    assert play.tick(60) == {"a": 100, "b": 100, "c": 100}


def test_token_counters_that_were_missing_once_are_not_taken_for_a_fast_node() -> None:
    play = Play(a=Engine(tokens=1e9), b=Engine(tokens=1e9))
    play.tick(10)
    play.nodes["b"].counts = False
    play.tick()
    play.nodes["b"].counts = True
    assert play.tick(10) == {"a": 100, "b": 100}


def test_a_node_that_starts_anew_is_not_taken_for_a_slow_one() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(30)
    play.nodes["b"].tokens = 0
    assert play.tick(10) == {"a": 100, "b": 100}


def test_frozen_figures_leave_half_of_a_weight_and_not_less() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(10)
    play.nodes["c"].frozen = True
    assert play.tick(19)["c"] == 100
    assert play.tick()["c"] == 50
    assert (play.plan["c"].state, play.reason("c")) == (
        "unknown",
        "has requests, and reports nothing new for 190 s",
    )
    assert play.tick(60)["c"] == 50
    play.nodes["c"].frozen = False
    assert play.tick(60)["c"] >= 80


def test_a_node_that_cannot_be_read_for_long_keeps_half() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(10)
    play.nodes["c"].fault = unreadable()
    assert play.tick(18)["c"] == 100
    assert [play.tick()["c"] for _ in range(30)] == [50] * 30
    assert play.plan["c"].state == "unknown"


def test_a_full_cache_lowers_a_node() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(30)
    play.rules = {"max_kv_cache_usage": 0.4}
    play.nodes["c"].kv = 1.0
    assert play.tick(15)["c"] <= 50
    assert play.weights["a"] == play.weights["b"] == 100


def test_a_cache_that_stays_full_lowers_a_node_with_the_default_limit() -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.tick(30)
    play.nodes["c"].kv = 1.0
    assert play.tick(100)["c"] < 90


def test_nodes_that_cannot_be_read_keep_their_scale_to_the_others() -> None:
    play = Play(noise=0.05, a=Engine(), b=Engine(fast=16), c=Engine(fast=16))
    before = play.tick(60)
    assert before["a"] == 100
    play.nodes["a"].fault = unreadable()
    play.nodes["c"].fast = 40
    after = play.tick(15)
    assert after["a"] == 100
    assert max(after["b"], after["c"]) <= max(before["b"], before["c"])


def test_a_stale_node_gets_its_weight_back_as_soon_as_it_can_be_read() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.nodes["b"].fault = unreadable()
    assert play.tick(25)["b"] == 50
    play.nodes["b"].fault = None
    assert play.tick()["b"] == 100


def test_a_pool_that_starts_with_an_outage_comes_back_by_steps() -> None:
    play = Play(a=Engine(fault=refused()), b=Engine(fault=refused()))
    play.tick(4)
    for node in play.nodes.values():
        node.fault = None
    assert play.tick(8) == {"a": 100, "b": 100}


def test_a_node_with_two_engines_gets_twice_the_requests() -> None:
    play = Play(noise=0.05, a=Engine(engines=2), b=Engine(), c=Engine())
    weights = play.tick(60)
    assert weights["a"] == 100
    assert weights["b"] == pytest.approx(50, abs=8)
    assert weights["c"] == pytest.approx(50, abs=8)


def test_an_engine_that_sleeps_comes_back_by_steps() -> None:
    play = Play(a=Engine(), b=Engine())
    play.tick(10)
    play.nodes["b"].awake = False
    assert (play.tick()["b"], play.reason("b")) == (0, "asleep")
    play.nodes["b"].awake = True
    assert [play.tick()["b"] for _ in range(5)] == [0, 10, 50, 100, 100]


def test_one_node_alone_keeps_its_weight() -> None:
    play = Play(noise=0.3, a=Engine())
    assert play.tick(60) == {"a": 100}


def test_two_readings_in_one_moment_leave_a_memory_that_can_be_read() -> None:
    pool = config("a", pool={"policy": "capacity"})
    memory: dict[str, NodeMemory] = {}
    for now, tokens in ((100.0, 0), (100.25, 2**53)):
        _, memory = decide(pool, {"a": good(generation_tokens=tokens)}, memory, set(), now)
    problems: list[str] = []
    assert build(NodeMemory, dataclasses.asdict(memory["a"]), "a", problems) == memory["a"]
    assert problems == []


def means(**values: float) -> Means:
    return Means(**({"speed": 10.0, "running": 20.0, "finished": 10.0, "kv_cache_usage": 0.35} | values))


def test_requests_count_as_far_as_they_are_certain() -> None:
    assert credible_requests(means(running=20), 20, 100) == 20
    assert credible_requests(means(running=30, finished=0), 20, 100) == 20  # none has ended: nothing new is known
    few, many = (credible_requests(means(running=30), 20, readings) for readings in (1, 100))
    assert 20 < few < 23
    assert 29 < many < 30
    assert credible_requests(means(running=10), 20, 100) == pytest.approx(10, abs=1)


def test_requests_are_shared_by_speed_up_to_the_room_of_each() -> None:
    rules = Capacity(speed_exponent=1, max_kv_cache_usage=0.7)
    fast, slow = means(speed=30, running=10, kv_cache_usage=0.2), means(speed=10, running=30, kv_cache_usage=0.2)
    assert fair_shares(rules, {"a": fast, "b": slow}) == pytest.approx({"a": 30, "b": 10})
    full = means(speed=30, running=10, kv_cache_usage=0.7)  # can hold 10
    assert fair_shares(rules, {"a": full, "b": slow}) == pytest.approx({"a": 10, "b": 30})
    half = means(speed=10, running=30, kv_cache_usage=0.7)  # can hold 30: all are full
    assert fair_shares(rules, {"a": full, "b": half}) == pytest.approx({"a": 10, "b": 30})
    over = means(speed=10, running=60, kv_cache_usage=1)  # can hold 42; with the other node's 10, that is less than 70
    assert fair_shares(rules, {"a": full, "b": over}) == pytest.approx({"a": 70 * 10 / 52, "b": 70 * 42 / 52})


def test_a_node_with_a_queue_has_room_for_what_it_runs() -> None:
    assert room_for(means(running=4, waiting=10, kv_cache_usage=0.1), 0.7) == 4
    assert room_for(means(running=4, waiting=1, kv_cache_usage=0.1), 0.7) == pytest.approx(28)
    assert room_for(means(running=40, waiting=10, kv_cache_usage=1), 0.7) == pytest.approx(28)
    assert room_for(means(running=4, kv_cache_usage=0), 0.7) == pytest.approx(280)


def test_nodes_that_generate_nothing_keep_their_weights() -> None:
    weights = {"a": 100.0, "b": 50.0}
    stuck = means(speed=0)
    assert corrections(Capacity(), {"a": stuck, "b": stuck}, weights, {"a": 20, "b": 20}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("way_out", ["down", "drained"])
def test_a_node_in_the_slow_start_of_lua_is_not_taken_for_a_light_one(way_out: str) -> None:
    play = Play(a=Engine(), b=Engine(), c=Engine())
    play.nginx = {"balancer": "work", "confirm_url": "http://127.0.0.1:1/generation", "slow_start_seconds": 30}
    play.tick(20)
    if way_out == "down":
        play.nodes["c"].fault = refused()
        play.tick(5)
        play.nodes["c"].fault = None
    else:
        play.drained = {"c"}
        play.tick(5)
        play.drained = set()
    while not play.tick()["c"]:
        pass
    assert play.weights["c"] == 100, "at once its whole weight"
    for share in (0.4, 0.7, 1, 1, 1, 1, 1, 1):
        play.ramps = {"c": share}
        assert play.tick() == {"a": 100, "b": 100, "c": 100}
