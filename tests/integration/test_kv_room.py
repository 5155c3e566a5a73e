"""Nodes whose KV caches are full, with the balancer `work`: a real nginx, and the readings that the script writes."""

from __future__ import annotations

import itertools
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import fetch, respond, wait_for
from tests.integration.test_work_balancer import work

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from tests.integration.test_work_balancer import WorkStack

__all__ = ["work"]  # a fixture
FULL, HALF = 0.95, 0.5
WITH_ROOM = "least work, with KV room"


@pytest.fixture
def entry(work: WorkStack) -> WorkStack:
    """Start nginx anew; node-2 has by far the largest weight, so each request goes there, as long as it may."""
    work.settings = {"readings_file": str(readings_file(work))}
    readings_file(work).parent.mkdir()
    work.restart()
    work.publish({"node-2": 100, "node-3": 1, "node-4": 1})
    return work


def readings_file(it: WorkStack) -> Path:
    """Return where nginx finds the readings."""
    return it.directory / "state" / "readings.json"


def read(it: WorkStack, interval_seconds: float = 3600, age_seconds: float = 0, **usages: float) -> None:
    """Write the readings of nodes with 100,000 tokens, as the script would have done some time ago."""
    nodes = {
        f"{node.address}:{node.port}": {"kv_tokens": 100_000, "kv_usage": usages[node.name.replace("-", "_")]}
        for node in it.nodes
    }
    times = {"decided_at_seconds": time.time() - age_seconds, "interval_seconds": interval_seconds}
    content = {"version": 1, "nodes": nodes} | times
    staged = readings_file(it).with_name("staged")
    staged.write_text(json.dumps(content))
    staged.replace(readings_file(it))


def served(it: WorkStack) -> set[str | None]:
    """Return which nodes serve twenty requests, over all workers."""
    return {it.post().node for _ in range(20)}


def leave_room(it: WorkStack) -> None:
    """Let node-2 have 2,000 tokens of room; no large request is under way while nginx takes the reading."""
    read(it, node_2=FULL, node_3=HALF, node_4=HALF)
    wait_for(lambda: served(it) <= {"node-3", "node-4"}, seconds=30)
    read(it, node_2=0.88, node_3=HALF, node_4=HALF)  # up to nine tenths
    wait_for(lambda: served(it) == {"node-2"}, seconds=30)


def passed_over(it: WorkStack) -> int:
    """Return how many requests nginx says that node-2 has not got because its KV cache had no room."""
    return int(it.known()["node-2"]["passed_over"])


@pytest.mark.fault(
    7,
    "a node's KV cache is full, with the balancer `work`",
    sees='vllm_nginx_lb_work_kv_full_total{pool="llm_cluster",node="node-2"} ',
    keeps="requests: nodes whose KV caches have room get them; where none has, every node gets some",
)
def test_a_node_with_a_full_kv_cache_gets_nothing_while_another_has_room(entry: WorkStack, heard: list[str]) -> None:
    assert served(entry) == {"node-2"}
    read(entry, node_2=FULL, node_3=HALF, node_4=HALF)
    wait_for(lambda: served(entry) <= {"node-3", "node-4"}, seconds=30)
    assert entry.post().choice == WITH_ROOM
    assert passed_over(entry) >= 21
    metrics = fetch(entry.status_port, "/work/metrics")
    assert f'vllm_nginx_lb_work_kv_full_total{{pool="llm_cluster",node="node-2"}} {passed_over(entry)}' in metrics
    heard.append(metrics)


def test_where_all_kv_caches_are_full_the_choice_is_as_without_readings(entry: WorkStack) -> None:
    read(entry, node_2=FULL, node_3=HALF, node_4=HALF)
    wait_for(lambda: served(entry) <= {"node-3", "node-4"}, seconds=30)
    read(entry, node_2=FULL, node_3=FULL, node_4=FULL)
    wait_for(lambda: served(entry) == {"node-2"}, seconds=30)
    assert entry.post().choice == "least work"


@pytest.mark.parametrize("what", ["removed", "stale"])
def test_readings_that_end_count_no_more(entry: WorkStack, what: str) -> None:
    read(entry, node_2=FULL, node_3=HALF, node_4=HALF)
    wait_for(lambda: served(entry) <= {"node-3", "node-4"}, seconds=30)
    if what == "stale":
        read(entry, interval_seconds=0.5, node_2=FULL, node_3=HALF, node_4=HALF)
    else:
        readings_file(entry).unlink()
    wait_for(lambda: served(entry) == {"node-2"}, seconds=30)
    assert "no KV cache counts as full" not in entry.log()


@pytest.mark.fault(
    10,
    "nginx starts again, and readings.json is hours old or from the future",
    sees='vllm_nginx_lb_work_kv_full_total{pool="llm_cluster",node="node-2"} 0',
    keeps="everything: the fullness of KV caches plays no part until a tick writes a new one",
)
@pytest.mark.parametrize("age_seconds", [4 * 3600, -4 * 3600], ids=["old", "from-the-future"])
def test_an_old_file_is_not_new_again_because_nginx_starts(
    entry: WorkStack, heard: list[str], age_seconds: float
) -> None:
    entry.stop()
    read(entry, age_seconds=age_seconds, node_2=FULL, node_3=HALF, node_4=HALF)  # of ticks of an hour
    entry.start()
    assert served(entry) == {"node-2"}
    heard.append(fetch(entry.status_port, "/work/metrics"))


@pytest.mark.fault(
    10,
    "readings.json is damaged, of another version, or no file",
    sees="readings.json: …; no KV cache counts as full",
    keeps="everything: the fullness of KV caches plays no part until a tick writes a new one",
)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_text('{"version": 1, "nodes"'), id="truncated"),
        pytest.param(lambda path: path.write_text('{"version": 2}'), id="of-another-version"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 2_000_000), id="large"),
        pytest.param(os.mkfifo, id="pipe"),
        pytest.param(os.mkdir, id="directory"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="device"),
    ],
)
def test_readings_that_cannot_be_read_count_no_more(
    entry: WorkStack, heard: list[str], make: Callable[[Path], object]
) -> None:
    read(entry, node_2=FULL, node_3=HALF, node_4=HALF)
    wait_for(lambda: served(entry) <= {"node-3", "node-4"}, seconds=30)
    readings_file(entry).unlink()
    make(readings_file(entry))
    wait_for(lambda: served(entry) == {"node-2"}, seconds=30)
    heard.append(entry.log())


@pytest.mark.fault(
    2,
    "readings.json cannot be written, with the balancer `work`",
    sees="readings.json cannot be written: Is a directory",
    keeps="the weights: the tick publishes them; the fullness of KV caches plays no part",
)
def test_readings_that_cannot_be_written_hold_no_weights_up(entry: WorkStack) -> None:
    readings_file(entry).mkdir()
    before = entry.generation()
    entry.run()
    assert entry.status()["outcome"] == "published"
    assert entry.generation() != before
    readings_file(entry).rmdir()
    entry.run()
    assert json.loads(readings_file(entry).read_text())["version"] == 1


def test_a_request_larger_than_what_is_left_goes_elsewhere(entry: WorkStack) -> None:
    leave_room(entry)
    wait_for(lambda: entry.post(size=9000).choice == WITH_ROOM, seconds=30)
    wait_for(lambda: entry.post(size=100).node == "node-2")  # the other worker saw a large one there half a second ago


def say_usage(handler: BaseHTTPRequestHandler) -> None:
    """Answer that the prompt has a token for each 30 bytes."""
    body = json.dumps({"usage": {"prompt_tokens": int(handler.headers["Content-Length"]) // 30}}).encode()
    respond(handler, body, content_type="application/json")


def test_a_request_has_room_once_nginx_has_learned_how_few_tokens_it_has(entry: WorkStack) -> None:
    numbers = itertools.count()

    def choice() -> str | None:
        number = next(numbers)
        prompt = f"{number:08} ".ljust(9000, "x")  # no two begin alike
        client = f"127.1.{number // 250 % 250}.{number % 250 + 1}"  # each client teaches little
        return entry.post(body=json.dumps({"prompt": prompt}).encode(), client=client).choice

    leave_room(entry)
    wait_for(lambda: {choice() for _ in range(10)} == {WITH_ROOM}, seconds=30)
    for node in entry.nodes:
        node.posted = say_usage
    wait_for(lambda: {choice() for _ in range(10)} == {"least work"}, seconds=30)


def test_the_script_tells_nginx_which_kv_cache_is_full(entry: WorkStack) -> None:
    for node in entry.nodes:
        node.load |= {"kv": HALF, "kv_tokens": 100_000}
    entry.nodes[0].load["kv"] = FULL
    for node, capacity in zip(entry.config["pools"][0]["nodes"], (100, 1, 1), strict=True):
        node["capacity"] = capacity
    entry.run()
    assert readings_file(entry).stat().st_mode & 0o777 == 0o644
    assert entry.status()["pools"][0]["nodes"][0]["kv_cache_tokens"] == 100_000
    wait_for(lambda: served(entry) <= {"node-3", "node-4"}, seconds=30)
    entry.nodes[0].load["kv"] = HALF
    entry.run()
    wait_for(lambda: served(entry) == {"node-2"}, seconds=30)
