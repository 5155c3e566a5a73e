"""Short ways to write configurations, samples and readings in tests."""

from __future__ import annotations

from typing import Any

from vllm_lb.causes import ScrapeCause
from vllm_lb.observation import Reading, Sample
from vllm_lb.schema import build
from vllm_lb.settings import Config


def reading(**changes: Any) -> Reading:
    """Return an idle node's reading, with changes."""
    idle = {"kv_cache_usage": 0.1, "waiting": 0, "running": 1, "preemptions": 0, "engines": 1, "awake": True}
    return Reading(**(idle | changes))


def good(address: str = "127.0.0.1", **changes: Any) -> Sample:
    """Return a good scrape."""
    return Sample(address, 0.01, reading(**changes))


def refused(address: str | None = "127.0.0.1") -> Sample:
    """Return a scrape without any answer."""
    return Sample(address, 0.01, error="connection refused", cause=ScrapeCause.CONNECTION_REFUSED, answered=False)


def unreadable(address: str = "127.0.0.1") -> Sample:
    """Return a scrape whose answer cannot be used."""
    return Sample(address, 0.01, error="HTTP 500", cause=ScrapeCause.HTTP_STATUS)


def config(*names: str, pool: dict[str, Any] | None = None, **sections: Any) -> Config:
    """Return a configuration of one pool, weighed by the ladder, whose nodes are 127.0.0.1, .2, … in order."""
    nodes = [{"name": name, "host": f"127.0.0.{i}"} for i, name in enumerate(names, 1)]
    raw = {"pools": [{"name": "llm_cluster", "policy": "stepped", "nodes": nodes} | (pool or {})]} | sections
    problems: list[str] = []
    built = build(Config, raw, "", problems)
    assert not problems, problems
    assert isinstance(built, Config)
    return built
