"""The decision: states, holding, draining, and the guard that never lets a pool go empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.samples import config, good, refused, unreadable
from vllm_lb.decide import decide
from vllm_lb.observation import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_lb.memory import NodeMemory

ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}


class Fleet:
    """A pool ticking every 10 s of a clock of its own."""

    def __init__(self, *names: str, drained: frozenset[str] = frozenset(), **sections: Any) -> None:
        """Start with nothing remembered."""
        self.config = config(*names, **sections)
        self.memory: Mapping[str, NodeMemory] = {}
        self.now = 1000.0
        self.drained = drained

    def tick(self, seconds: float = 10, /, **samples: Sample) -> dict[str, tuple[str, int]]:
        """Decide some seconds later and return each node's state and weight; nodes not named are idle."""
        idle = {node.name: good(node.host) for node in self.config.pools[0].nodes}
        self.now += seconds
        plans, self.memory = decide(self.config, idle | samples, self.memory, self.drained, self.now)
        self.pool = plans[0]
        return {node.name: (node.state, node.weight) for node in plans[0].nodes}

    def reason(self, name: str) -> str:
        """Return why a node has its weight."""
        return next(node.reason for node in self.pool.nodes if node.name == name)


def test_first_sight_gets_its_weight_at_once() -> None:
    fleet = Fleet("a", "b")
    assert fleet.tick(b=good("127.0.0.2", kv_cache_usage=0.9)) == {"a": ("up", 100), "b": ("up", 30)}
    assert fleet.reason("b") == "kv 0.90 >= 0.85"


def test_refused_three_times_is_down_and_two_good_scrapes_bring_it_back_low() -> None:
    fleet = Fleet("a", "b")
    fleet.tick()
    assert fleet.tick(b=refused("127.0.0.2"))["b"] == ("unknown", 100)
    assert fleet.reason("b") == "connection refused (1 of 3), last weight held"
    assert fleet.tick(b=refused("127.0.0.2"))["b"] == ("unknown", 100)
    assert fleet.tick(b=refused("127.0.0.2"))["b"] == ("down", 0)
    assert fleet.reason("b") == "connection refused, 3 in a row"
    assert fleet.tick()["b"] == ("down", 0)
    assert fleet.reason("b") == "1 of 2 good scrapes"
    assert fleet.tick()["b"] == ("up", 10)
    assert fleet.reason("b") == "back after 2 good scrapes, starting low"
    assert fleet.tick()["b"] == ("up", 100)


@pytest.mark.parametrize("policy", ["stepped", "static"])
def test_a_node_that_returns_starts_low_for_an_interval_however_many_ticks_it_has(policy: str) -> None:
    fleet = Fleet("a", "b", pool={"policy": policy})
    lowest = 10 if policy == "stepped" else 100
    for _ in range(3):
        fleet.tick(b=refused("127.0.0.2"))
    fleet.tick()
    assert [fleet.tick(2)["b"] for _ in range(6)] == [("up", lowest)] * 4 + [("up", 100)] * 2
    assert fleet.memory["b"].returned_at is None, "forgotten as soon as it has nothing to say"


def test_a_good_scrape_ends_the_count_of_failures() -> None:
    fleet = Fleet("a", "b")
    for _ in range(4):
        fleet.tick(b=refused("127.0.0.2"))
        fleet.tick(b=refused("127.0.0.2"))
        assert fleet.tick()["b"] == ("up", 100)


def test_a_failure_ends_the_count_of_good_scrapes() -> None:
    fleet = Fleet("a", "b")
    for _ in range(3):
        fleet.tick(b=refused("127.0.0.2"))
    for _ in range(3):
        assert fleet.tick()["b"] == ("down", 0)
        assert fleet.tick(b=refused("127.0.0.2"))["b"] == ("down", 0)


def test_unreadable_holds_its_weight_then_goes_to_the_lowest_level() -> None:
    fleet = Fleet("a", "b")
    fleet.tick(b=good("127.0.0.2", kv_cache_usage=0.8))
    for _ in range(18):
        assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("unknown", 60)
    assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("unknown", 10)
    assert fleet.reason("b") == "HTTP 500, not read for 190 s"
    assert fleet.tick()["b"] == ("up", 100)


def test_never_read_starts_at_the_lowest_level() -> None:
    fleet = Fleet("a", "b")
    assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("unknown", 10)
    assert fleet.reason("b") == "HTTP 500, never read"


def test_a_down_node_is_not_brought_back_by_an_unreadable_answer() -> None:
    fleet = Fleet("a", "b")
    for _ in range(3):
        fleet.tick(b=refused("127.0.0.2"))
    assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("down", 0)


def test_asleep_is_no_target() -> None:
    fleet = Fleet("a", "b")
    fleet.tick()
    assert fleet.tick(b=good("127.0.0.2", awake=False))["b"] == ("down", 0)
    assert fleet.reason("b") == "asleep"
    assert fleet.tick()["b"] == ("down", 0)
    assert fleet.tick()["b"] == ("up", 10)


def test_preemptions_count_only_when_new() -> None:
    fleet = Fleet("a", "b")
    assert fleet.tick(b=good("127.0.0.2", preemptions=500))["b"] == ("up", 100)
    assert fleet.tick(b=good("127.0.0.2", preemptions=501))["b"] == ("up", 60)
    assert fleet.tick(b=good("127.0.0.2", preemptions=501))["b"] == ("up", 100)
    assert fleet.tick(b=good("127.0.0.2", preemptions=3))["b"] == ("up", 100)
    fleet.tick(b=unreadable("127.0.0.2"))
    assert fleet.tick(b=good("127.0.0.2", preemptions=4))["b"] == ("up", 60)


def test_draining_by_inventory_and_by_operator() -> None:
    fleet = Fleet(
        drained=frozenset({"b", "gone"}),
        pool={
            "nodes": [
                {"name": "a", "host": "127.0.0.1", "drain": True},
                {"name": "b", "host": "127.0.0.2"},
                {"name": "c", "host": "127.0.0.3"},
            ]
        },
    )
    assert fleet.tick() == {"a": ("drained", 0), "b": ("drained", 0), "c": ("up", 100)}
    assert (fleet.reason("a"), fleet.reason("b")) == ("drained in the inventory", "drained by the operator")
    fleet.drained = frozenset()
    assert fleet.tick()["b"] == ("up", 100)


def test_no_node_readable_keeps_the_last_weights() -> None:
    fleet = Fleet("a", "b")
    fleet.tick(b=good("127.0.0.2", kv_cache_usage=0.8))
    for _ in range(30):
        states = fleet.tick(a=refused("127.0.0.1"), b=refused("127.0.0.2"))
        assert {name: weight for name, (_, weight) in states.items()} == {"a": 100, "b": 60}
        assert fleet.pool.held == "no node can be read, last weights kept"
    assert fleet.tick() == {"a": ("down", 10), "b": ("down", 10)}
    assert fleet.pool.held == "no node would be left to serve, lowest weights set"
    assert fleet.tick() == {"a": ("up", 10), "b": ("up", 10)}


def test_the_first_tick_without_any_reading_lets_every_node_try() -> None:
    fleet = Fleet("a", "b")
    assert fleet.tick(a=refused(), b=refused("127.0.0.2")) == {"a": ("unknown", 10), "b": ("unknown", 10)}
    assert fleet.pool.held == "no node can be read, lowest weights set"


def test_the_last_serving_node_stays_when_the_others_are_drained() -> None:
    fleet = Fleet("a", "b", drained=frozenset({"a"}))
    fleet.tick()
    for _ in range(5):
        assert fleet.tick(b=refused("127.0.0.2"))["b"][1] == 100


def test_a_node_on_its_way_back_is_better_than_dead_ones() -> None:
    fleet = Fleet("a", "b")
    fleet.tick()
    for _ in range(4):
        fleet.tick(a=refused("127.0.0.1"), b=refused("127.0.0.2"))
    assert fleet.tick(a=refused("127.0.0.1")) == {"a": ("down", 0), "b": ("down", 10)}
    asleep = good("127.0.0.2", awake=False)
    assert fleet.tick(a=refused("127.0.0.1"), b=asleep) == {"a": ("down", 0), "b": ("down", 10)}


def test_a_name_without_an_address_is_left_out() -> None:
    fleet = Fleet("a", "b")
    assert fleet.tick(b=refused(None))["b"] == ("unknown", 0)


def test_two_names_of_one_server_share_one_place() -> None:
    fleet = Fleet("a", "b")
    assert fleet.tick(b=good("127.0.0.1")) == {"a": ("up", 100), "b": ("down", 0)}
    assert fleet.reason("b") == "same address as a"
    both = {"a": refused("127.0.0.1"), "b": refused("127.0.0.1")}
    assert all(fleet.tick(**both) == {"a": fleet.tick(**both)["a"], "b": ("down", 0)} for _ in range(4))


def test_static_weights_do_not_move_with_load() -> None:
    nodes = [{"name": "a", "host": "127.0.0.1"}, {"name": "b", "host": "127.0.0.2", "capacity": 0.5}]
    fleet = Fleet(pool={"policy": "static", "nodes": nodes})
    busy = good("127.0.0.2", kv_cache_usage=1.0, waiting=50)
    assert fleet.tick(b=busy) == {"a": ("up", 100), "b": ("up", 50)}
    for _ in range(30):
        assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("unknown", 50)


def test_a_reboot_does_not_make_readings_from_the_future() -> None:
    fleet = Fleet("a", "b")
    fleet.tick()
    fleet.now = 5.0
    assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("unknown", 100)
    fleet.now = 300.0
    assert fleet.tick(b=unreadable("127.0.0.2"))["b"] == ("unknown", 10)


def test_a_sleeper_whose_name_does_not_resolve_is_not_woken_by_the_last_resort() -> None:
    settings = config("a", "b", health={"fall": 1})
    asleep = good("127.0.0.1", awake=False)
    lost = Sample("127.0.0.1", 0.1, asleep.reading, unresolved="name or service not known")
    _, memory = decide(settings, {"a": asleep, "b": good("127.0.0.2")}, {}, set(), 0.0)
    pools, _ = decide(settings, {"a": lost, "b": refused("127.0.0.2")}, memory, set(), 10.0)
    assert {node.name: node.weight for node in pools[0].nodes} == {"a": 0, "b": 100}
