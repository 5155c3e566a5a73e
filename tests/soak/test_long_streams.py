"""Streams that last longer than a minute, through twenty changes of weights."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
import requests

from tests.integration.conftest import wait_for
from tests.soak.clients import Clients
from tests.soak.simulated_site import Node, Site, start_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STREAMS, TOKENS = 50, 120
# A token every 0.75 s, so that streams outlast the changes on a busy machine too. One prompt fills the KV cache.
NODE_OPTIONS = (
    *("--step-ms=750", "--prefill-token-ms=0", "--decode-sequence-ms=0"),
    *("--max-num-batched-tokens=32768", "--num-blocks=2000"),
)
LONG_PROMPT_TOKENS = 28_000
CHANGES, CHANGE_WITH_DRAIN = 20, 5
MOST_DRAINING = 3


@contextlib.contextmanager
def busy(node: Node) -> Iterator[None]:
    """Fill most of a node's KV cache by a request that does not pass the ingress."""

    def is_full() -> bool:
        return bool(node.control()["engines"][0]["kv_cache_usage"] > 0.8)

    body = {"prompt": [1] * LONG_PROMPT_TOKENS, "max_tokens": 1000, "stream": True}
    url = f"http://{node.address}/v1/completions"
    with requests.post(url, json=body, stream=True, timeout=60):
        wait_for(is_full)
        yield
    wait_for(lambda: not is_full())


@contextlib.contextmanager
def most_draining(site: Site) -> Iterator[Callable[[], int]]:
    """Watch nginx's workers; yield a function that returns the most reloads whose old workers drained at one time."""
    seen, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen[0] = max(seen[0], site.draining_generations())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        over.set()
        thread.join()


@pytest.mark.fault(
    13,
    "Streams of a minute and more keep the workers of three reloads alive while weights keep moving",
    sees="deferred: old workers of … reloads still drain, the limit is …",
    keeps="all 50 streams reach their last token; a drain goes out at once, weights when the streams have ended",
)
def test_no_stream_is_cut_and_draining_workers_are_bounded(
    tmp_path: Path, heard: list[str], record_property: Callable[[str, object], None]
) -> None:
    hosts = ("127.0.0.6", "127.0.0.7", "127.0.0.8", "127.0.0.9")
    with (
        start_site(tmp_path, heard, hosts, NODE_OPTIONS) as site,
        most_draining(site) as most,
        Clients(site.ingress_port) as clients,
    ):
        site.config["nginx"] |= {"min_reload_interval_seconds": 0, "max_draining_generations": MOST_DRAINING}
        site.config["policies"] = {"stepped": {"max_waiting": 10**6, "max_running": 10**6}}
        nodes = list(site.machines.values())
        outcomes = [decide(site)]
        wait_for(site.is_settled)
        weights = [site.weights()]
        for change in range(CHANGES):
            if change <= MOST_DRAINING:  # each reload leaves old workers with streams
                for _ in range(len(clients.answers) + clients.under_way, STREAMS * (change + 1) // (MOST_DRAINING + 1)):
                    clients.ask(TOKENS)
            wait_for(lambda: running(nodes) == clients.under_way)
            with busy(nodes[change % len(nodes)]):
                outcomes.append(decide(site))
                weights.append(site.weights())
            assert weights[-1] != weights[-2]
            if change == CHANGE_WITH_DRAIN:
                assert (outcomes[-1], site.draining_generations()) == ("deferred", MOST_DRAINING)
                site.script("drain", "node-d")
                assert decide(site) == "reloaded"
                assert site.live_weight(site.machines["node-d"]) == 0
        with busy(nodes[0]):
            outcomes.append(decide(site))
            clients.finish()
            wait_for(lambda: site.draining_generations() == 0)
            assert decide(site) == ("reloaded" if outcomes[-1] == "deferred" else "unchanged")
            assert site.live_weight(nodes[0]) == site.weights()["node-a"] < 100
        record_property(
            "long streams",
            f"{len(clients.answers)}, {CHANGES} changes of weights ({outcomes.count('deferred')} deferred), "
            f"{most()} generations draining at most",
        )
        assert [answer for answer in clients.answers if answer.problem] == []
        assert len(clients.answers) == STREAMS
        assert MOST_DRAINING < most() <= MOST_DRAINING + 1  # the drain adds one


def decide(site: Site) -> str:
    """Run a tick, and return its outcome."""
    done = site.script("run")
    assert done.returncode == 0, done.stderr
    return str(site.status()["outcome"])


def running(nodes: list[Node]) -> int:
    """Count the requests that have arrived at nodes."""
    engines = [engine for node in nodes for engine in node.control()["engines"]]
    return sum(engine["running"] + engine["waiting"] for engine in engines)
