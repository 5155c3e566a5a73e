"""readings.json: what nginx is told of the nodes' KV caches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.unit.samples import config, good, refused
from vllm_lb.decide import decide
from vllm_lb.plan import Plan
from vllm_lb.readings import readings

if TYPE_CHECKING:
    from vllm_lb.observation import Sample

NODES = [{"name": "a", "host": "10.0.0.1", "port": 8000}, {"name": "b", "host": "2001:db8::1", "port": 18090}]
CONFIG = config(pool={"nodes": NODES}, interval_seconds=7)


def told(**samples: Sample) -> dict[str, Any]:
    """Return the nodes in the file after one tick with these samples."""
    pools, _ = decide(CONFIG, samples, {}, set(), 100.0)
    text = readings(CONFIG, Plan(version=1, decided_at="2026-01-01T00:00:00.250+00:00", pools=pools))
    content = json.loads(text)
    nodes: dict[str, Any] = content.pop("nodes")
    assert content == {"version": 1, "decided_at_seconds": 1767225600.25, "interval_seconds": 7}
    return nodes


def test_a_node_has_its_size_and_its_usage_under_its_address() -> None:
    a = good("10.0.0.1", kv_cache_usage=0.123456, kv_cache_tokens=6400)
    assert told(a=a, b=good("2001:db8::1", kv_cache_usage=0.5)) == {
        "10.0.0.1:8000": {"kv_tokens": 6400, "kv_usage": 0.1235},
        "[2001:db8::1]:18090": {"kv_usage": 0.5},
    }


def test_what_is_not_known_is_left_out() -> None:
    nothing = good("2001:db8::1", kv_cache_usage=None, waiting=None, running=None, preemptions=None)
    assert told(a=refused("10.0.0.1"), b=nothing) == {}


def test_the_usage_of_a_node_that_is_not_up_is_not_believed() -> None:
    asleep = good("10.0.0.1", kv_cache_usage=0.95, kv_cache_tokens=6400, awake=False)
    assert told(a=asleep, b=good("2001:db8::1"))["10.0.0.1:8000"] == {"kv_tokens": 6400}
