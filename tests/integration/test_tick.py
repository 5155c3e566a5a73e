"""One tick against a real nginx and real sockets."""

from __future__ import annotations

import collections
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import requests

from tests.integration.conftest import Stack, fetch, respond, wait_for

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path


def test_the_first_tick_replaces_the_seed(stack: Stack) -> None:
    said = stack.run()
    assert "llm_cluster/node-a: weight new -> 100: kv 0.10 < 0.75" in said
    status = stack.status()
    assert (status["version"], status["outcome"], status["applied"], status["error"]) == (1, "reloaded", True, None)
    assert stack.generation() == status["generation"] != "seed"
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    node = status["pools"][0]["nodes"][0]
    assert (node["state"], node["kv_cache_usage"], node["waiting"], node["running"]) == ("up", 0.1, 0, 1)


def test_nothing_new_means_no_reload(stack: Stack) -> None:
    stack.run()
    before, workers = stack.upstream.stat(), stack.worker_pids()
    for _ in range(3):
        stack.run()
    assert stack.upstream.stat() == before
    assert stack.worker_pids() == workers
    assert stack.status()["outcome"] == "unchanged"


def test_requests_follow_the_weights(stack: Stack) -> None:
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert stack.weights() == {"node-a": 10, "node-b": 100, "node-c": 100}
    seen = collections.Counter(fetch(stack.ingress_port, "/v1/models") for _ in range(210))
    assert seen == {"node-a": 10, "node-b": 100, "node-c": 100}


def test_the_scrape_asks_for_what_it_can_read(stack: Stack, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-key\n")
    stack.config["scrape"]["api_key_file"] = str(key)
    said = stack.script("run", http_proxy="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1")
    assert said.returncode == 0
    headers = stack.nodes[0].headers[0]
    assert headers["Authorization"] == "Bearer secret-key"
    assert headers["Accept"] == "text/plain;version=0.0.4"
    assert headers["Accept-Encoding"] == "identity"
    assert "secret-key" not in said.stderr + stack.script("check-config").stdout


def test_weight_changes_wait_for_the_interval_and_membership_changes_do_not(stack: Stack) -> None:
    stack.run()
    stack.config["nginx"]["min_reload_interval_seconds"] = 3600
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert (stack.status()["outcome"], stack.status()["applied"]) == ("deferred", False)
    assert "weight=10 " not in stack.upstream.read_text()
    stack.script("drain", "node-b")
    stack.run()
    assert stack.status()["outcome"] == "reloaded"
    assert "weight=10 " in stack.upstream.read_text()


def test_priorities_in_the_journal(stack: Stack) -> None:
    done = stack.script("run", JOURNAL_STREAM="8:1")
    assert "<5>llm_cluster/node-a: weight new -> 100" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("<5>reloaded: generation ")
    assert stack.script("run", JOURNAL_STREAM="8:1").stderr.startswith("<7>unchanged")


def node_of_session(stack: Stack, number: int) -> str:
    """Return the node that answers a session."""
    url = f"http://127.0.0.1:{stack.ingress_port}/"
    return requests.get(url, headers={"X-Chat": f"session-{number}"}, timeout=10).text


def test_sessions_stay_and_a_saturated_node_keeps_a_share_of_them(stack: Stack) -> None:
    stack.config["pools"][0] |= {"method": "consistent_hash", "hash_header": "X-Chat"}
    stack.run()
    before = {number: node_of_session(stack, number) for number in range(120)}
    assert set(before.values()) == {"node-a", "node-b", "node-c"}
    assert before == {number: node_of_session(stack, number) for number in before}

    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert stack.weights()["node-a"] == 10
    after = {number: node_of_session(stack, number) for number in before}
    moved = [number for number in before if after[number] != before[number]]
    assert {before[number] for number in moved} == {"node-a"}, "no other session moves"
    kept = [number for number in before if after[number] == "node-a"]
    assert 0 < len(kept) < len(moved)


def test_a_node_has_no_more_requests_than_it_may(stack: Stack) -> None:
    for node in stack.config["pools"][0]["nodes"]:
        node["max_conns"] = 1
    stack.run()
    held, arrived = threading.Event(), []

    def hold(handler: BaseHTTPRequestHandler) -> None:
        arrived.append(handler)
        held.wait(30)
        respond(handler, b"done")

    for fake in stack.nodes:
        fake.posted = hold
    url = f"http://127.0.0.1:{stack.ingress_port}/"
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(requests.post, url, data="x", timeout=30) for _ in range(3)]
        try:
            wait_for(lambda: len(arrived) == 3)
            assert requests.post(url, data="x", timeout=30).status_code == 502
        finally:
            held.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3
