"""One tick against a real nginx and real sockets."""

from __future__ import annotations

import collections
import fcntl
from typing import TYPE_CHECKING

from tests.integration.conftest import FakeNode, Stack, fetch

if TYPE_CHECKING:
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


def test_a_broken_foreign_file_is_named_and_nothing_is_touched(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    (stack.directory / "other.conf").write_text("no_such_directive on;\n")
    stack.write_nginx("include other.conf;")
    stack.nodes[0].load["kv"] = 0.95
    said = stack.run(1)
    assert "the configuration test fails already" in said
    assert 'unknown directive "no_such_directive"' in said
    assert "other.conf:1" in said
    assert stack.upstream.read_text() == live
    assert stack.status()["outcome"] == "failed"


def test_a_file_that_nginx_refuses_is_rolled_back(stack: Stack) -> None:
    stack.run()
    live, generation = stack.upstream.read_text(), stack.status()["generation"]
    template = stack.directory / "template.j2"
    template.write_text("upstream llm_cluster { no_such_directive; }\n")
    stack.config["nginx"]["upstream_template"] = str(template)
    said = stack.run(1)
    assert 'unknown directive "no_such_directive"' in said
    assert f"rolled back to generation {generation}" in said
    assert stack.upstream.read_text() == live
    stack.await_generation(generation)
    assert (stack.status()["outcome"], stack.status()["applied"]) == ("rolled_back", False)


def test_a_reload_that_cannot_be_started_is_rolled_back(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.nodes[0].load["kv"] = 0.95
    stack.config["nginx"]["reload_command"] = ["/nonexistent/nginx", "-s", "reload"]
    assert "/nonexistent/nginx cannot be run" in stack.run(1)
    assert stack.upstream.read_text() == live
    stack.config["nginx"]["reload_command"] = [*stack.nginx, "-s", "reload"]
    stack.run()
    assert stack.weights()["node-a"] == 10


def test_an_emptied_file_is_written_again_although_nginx_blames_another(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.upstream.write_text("")
    stack.run()
    assert stack.upstream.read_text() == live


def test_a_reload_that_does_not_take_is_found_and_rolled_back(stack: Stack) -> None:
    stack.run()
    live, generation = stack.upstream.read_text(), stack.status()["generation"]
    with FakePort() as port:
        stack.write_nginx(f"server {{ listen 127.0.0.1:{port}; }}")  # passes nginx -t, but cannot be bound
        stack.nodes[0].load["kv"] = 0.95
        said = stack.run(1)
    assert f"the reload did not take: generation {generation} is still live" in said
    assert stack.upstream.read_text() == live
    assert stack.status()["outcome"] == "rolled_back"
    stack.run()
    assert stack.weights()["node-a"] == 10
    assert stack.generation() == stack.status()["generation"] != generation


class FakePort:
    """A port that somebody else listens on."""

    def __enter__(self) -> int:
        """Listen."""
        self.node = FakeNode("other")
        return self.node.port

    def __exit__(self, *_error: object) -> None:
        """Stop listening."""
        self.node.stop()


def test_killed_between_rename_and_reload_is_repaired_by_the_next_tick(stack: Stack) -> None:
    stack.run()
    before = stack.generation()
    stack.nodes[0].load["kv"] = 0.95
    stack.config["nginx"]["reload_command"] = ["/bin/sh", "-c", "kill -9 $PPID"]
    assert stack.script("run").returncode == -9
    assert "weight=10 " in stack.upstream.read_text()
    assert stack.generation() == before
    stack.config["nginx"]["reload_command"] = [*stack.nginx, "-s", "reload"]
    stack.run()
    assert stack.generation() == stack.status()["generation"] != before


def test_an_edit_by_hand_is_overwritten(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.upstream.write_text(live.replace("weight=100", "weight=1", 1))
    stack.run()
    assert stack.upstream.read_text() == live
    stack.upstream.write_text("garbage")
    stack.run()
    assert stack.upstream.read_text() == live


def test_a_missing_directory_and_a_stopped_nginx_are_named(stack: Stack) -> None:
    stack.config["nginx"]["confirm_url"] = "http://127.0.0.1:1/generation"
    assert "nginx does not answer at http://127.0.0.1:1/generation (connection refused)" in stack.run(1)
    stack.config["nginx"] |= {"confirm_url": None, "upstream_file": "/nonexistent/upstream.conf"}
    assert "/nonexistent/upstream.conf cannot be written: No such file or directory" in stack.run(1)


def test_a_second_run_is_told_so(stack: Stack) -> None:
    stack.run()
    with (stack.directory / "state" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = stack.script("run")
    assert (done.returncode, done.stderr) == (75, "another run holds the lock\n")


def test_priorities_in_the_journal(stack: Stack) -> None:
    done = stack.script("run", JOURNAL_STREAM="8:1")
    assert "<5>llm_cluster/node-a: weight new -> 100" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("<5>reloaded: generation ")
    assert stack.script("run", JOURNAL_STREAM="8:1").stderr.startswith("<7>unchanged")


def test_a_missing_nginx_is_named_and_nothing_is_touched(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.config["nginx"]["test_command"] = ["/nonexistent/nginx", "-t"]
    stack.nodes[0].load["kv"] = 0.95
    assert "nothing changed, the configuration test fails already: /nonexistent/nginx cannot be run" in stack.run(1)
    assert stack.upstream.read_text() == live
