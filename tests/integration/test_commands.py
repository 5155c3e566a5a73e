"""The commands an operator types, each as a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from tests.integration.conftest import SCRIPT, SEED, Stack


def test_version_and_help() -> None:
    for option, words in (("--version", "vllm-nginx-lb "), ("--help", "check-config")):
        done = subprocess.run([sys.executable, SCRIPT, option], capture_output=True, text=True, check=True)
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "required: COMMAND"), (["jump"], "invalid choice: 'jump'"), (["drain"], "required: NODE")],
)
def test_usage_errors(arguments: list[str], words: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr


def test_every_command_refuses_a_bad_configuration_and_touches_nothing(stack: Stack) -> None:
    stack.config["scrape"]["timeout_seconds"] = -1
    for arguments in (["run"], ["collect"], ["apply"], ["check-config"], ["status"], ["rollback"], ["drain", "node-a"]):
        done = stack.script(*arguments)
        assert done.returncode == 2
        assert done.stderr == (
            f"{stack.directory}/config.yml: scrape.timeout_seconds: -1: expected a number from 0.1 to 60\n"
        )
    assert stack.upstream.read_text() == SEED
    assert not (stack.directory / "state").exists()


def test_check_config_prints_the_effective_configuration(stack: Stack) -> None:
    done = stack.script("check-config")
    assert done.returncode == 0
    effective = yaml.safe_load(done.stdout)
    assert effective["scrape"]["workers"] == 32
    assert effective["pools"][0]["nodes"][0]["name"] == "node-a"


def test_check_config_finds_a_faulty_template(stack: Stack) -> None:
    template = stack.directory / "template.j2"
    template.write_text("{{ oops }}")
    stack.config["nginx"]["upstream_template"] = str(template)
    done = stack.script("check-config")
    assert (done.returncode, done.stderr) == (2, "nginx.upstream_template: 'oops' is undefined\n")


def test_dry_run_changes_nothing(stack: Stack) -> None:
    stack.nodes[0].load["kv"] = 0.95
    done = stack.script("run", "--dry-run")
    assert done.returncode == 0
    assert "llm_cluster  node-a  up     0.95  0        1        10      kv 0.95 >= 0.92" in done.stdout
    assert f"+    server 127.0.0.1:{stack.nodes[0].port} weight=10 " in done.stdout
    assert stack.upstream.read_text() == SEED
    assert not (stack.directory / "state").exists()
    stack.run()
    assert "The upstream file would not change." in stack.script("run", "--dry-run").stdout


def test_status_for_people_and_for_programs(stack: Stack) -> None:
    done = stack.script("status")
    assert done.returncode == 1
    assert "status.json is missing: no tick has ended yet" in done.stderr
    stack.run()
    assert "node-a  up     0.10  0        1        100     kv 0.10 < 0.75" in stack.script("status").stdout
    assert json.loads(stack.script("status", "--json").stdout) == stack.status()
    assert (stack.directory / "state" / "status.json").stat().st_mode & 0o777 == 0o644


def test_metrics_for_the_textfile_collector(stack: Stack) -> None:
    stack.run()
    stack.run()
    path = stack.directory / "state" / "metrics.prom"
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    for line in (
        'vllm_nginx_lb_node_weight{node="node-a",pool="llm_cluster"} 100.0',
        'vllm_nginx_lb_node_state{node="node-a",pool="llm_cluster",state="up"} 1.0',
        'vllm_nginx_lb_node_state{node="node-a",pool="llm_cluster",state="down"} 0.0',
        'vllm_nginx_lb_node_kv_cache_usage_ratio{node="node-a",pool="llm_cluster"} 0.1',
        'vllm_nginx_lb_pool_lowest_weight{policy="stepped",pool="llm_cluster"} 10.0',
        "vllm_nginx_lb_last_tick_success 1.0",
        'vllm_nginx_lb_reloads_total{outcome="reloaded"} 1.0',
    ):
        assert f"{line}\n" in text


def test_metrics_tell_of_faults_and_leave_out_what_is_not_known(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].stop()
    stack.write_nginx("broken;")
    stack.nodes[1].load["kv"] = 0.95
    stack.run(expect=1)
    stack.run(expect=1)
    text = (stack.directory / "state" / "metrics.prom").read_text()
    assert "vllm_nginx_lb_last_tick_success 0.0\n" in text
    assert "vllm_nginx_lb_last_reload_success 0.0\n" in text
    assert 'vllm_nginx_lb_reloads_total{outcome="failed"} 1.0\n' in text
    assert 'vllm_nginx_lb_node_state{node="node-a",pool="llm_cluster",state="unknown"} 1.0\n' in text
    assert 'vllm_nginx_lb_node_kv_cache_usage_ratio{node="node-b",pool="llm_cluster"} 0.95\n' in text
    assert 'vllm_nginx_lb_node_kv_cache_usage_ratio{node="node-a"' not in text


def test_drain_and_undrain(stack: Stack) -> None:
    stack.run()
    assert "node-a drained; the next tick makes it live" in stack.script("drain", "node-a").stdout
    assert "node-a is already drained" in stack.script("drain", "node-a").stdout
    stack.run()
    assert stack.weights() == {"node-a": 0, "node-b": 100, "node-c": 100}
    assert f"server 127.0.0.1:{stack.nodes[0].port} down" in stack.upstream.read_text()
    assert "node-a undrained" in stack.script("undrain", "node-a").stdout
    assert "node-a is not drained" in stack.script("undrain", "node-a").stdout
    stack.run()
    assert stack.weights()["node-a"] == 100


def test_the_last_node_cannot_be_drained(stack: Stack) -> None:
    stack.script("drain", "node-a")
    done = stack.script("drain", "node-b", "node-c")
    words = "node-b, node-c are the last nodes of pool llm_cluster that serve: undrain or mend another one first\n"
    assert (done.returncode, done.stderr) == (1, words)
    stack.script("drain", "node-b")
    done = stack.script("drain", "node-c")
    words = "node-c is the last node of pool llm_cluster that serves: undrain or mend another one first\n"
    assert (done.returncode, done.stderr) == (1, words)


def test_a_drain_has_a_time_a_reason_and_somebody_who_did_it(stack: Stack) -> None:
    stack.run()
    before = datetime.now(UTC)
    assert stack.script("drain", "node-a", "--reason", "fan\n\x1b[2J", USER="alice").returncode == 0
    stack.run()
    node = next(each for each in stack.status()["pools"][0]["nodes"] if each["name"] == "node-a")
    since = datetime.fromisoformat(node["drained_since"])
    assert before - timedelta(milliseconds=1) <= since <= datetime.now(UTC)
    assert (node["drain_reason"], node["reason"]) == ("fan??[2J", "drained by the operator: fan??[2J")
    assert {each["drained_since"] for each in stack.status()["pools"][0]["nodes"]} == {node["drained_since"], None}
    metrics = (stack.directory / "state" / "metrics.prom").read_text()
    samples = re.findall(r"^vllm_nginx_lb_drained_since_seconds(\{.*\}) (.*)$", metrics, re.MULTILINE)
    assert [(labels, float(value)) for labels, value in samples] == [
        ('{node="node-a",pool="llm_cluster"}', since.timestamp())
    ]
    assert (
        "weight 100 ->   0 (up -> drained): drained by the operator: fan??[2J"
        in stack.script("explain", "node-a").stdout
    )
    shown = stack.script("drains").stdout
    assert re.fullmatch(rf"node-a: drained since {re.escape(node['drained_since'])} by alice@\S+: fan\?\?\[2J\n", shown)

    # Again: the node keeps its time, and gets a new reason if there is one.
    assert "node-a is already drained" in stack.script("drain", "node-a").stdout
    assert "already drained; the reason is now: disk" in stack.script("drain", "node-a", "--reason", "disk").stdout
    stack.script("undrain", "node-a")
    stack.script("drain", "node-a", "--by", "bob", "--at", "2020-01-01T00:00:00Z")
    stack.run()
    node = next(each for each in stack.status()["pools"][0]["nodes"] if each["name"] == "node-a")
    assert datetime.fromisoformat(node["drained_since"]) > since  # after the word that undrained it, whatever --at says
    assert (node["drain_reason"], node["reason"]) == (None, "drained by the operator")
    done = stack.script("drain", "node-b", "--at", "yesterday")
    assert (done.returncode, done.stderr) == (2, "--at: 'yesterday': expected an RFC 3339 time\n")


def test_a_host_takes_newer_entries_of_another_host(stack: Stack) -> None:
    def state(*arguments: str, name: str, **given: str) -> dict[str, Any]:
        stack.config["state_directory"] = str(stack.directory / name)
        done = stack.script(*arguments, **given)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    state("drain", "node-a", "node-b", "--json", name="here")
    state("undrain", "node-b", "--json", name="here")
    here = state("drains", "--json", name="here")["drains"]
    assert (sorted(here["nodes"]), sorted(here["undrained"])) == (["node-a"], ["node-b"])
    stack.config["state_directory"] = str(stack.directory / "there")
    assert "no node is drained by hand" in stack.script("drains").stdout
    for changed in (["node-a"], []):
        there = state("drains", "--merge", "--json", name="there", stdin=json.dumps([here]))
        assert (there["changed"], there["drains"]) == (changed, here)
    there = state("undrain", "node-a", "--json", name="there")
    assert there == {"nodes": ["node-a"], "drained": False, "changed": ["node-a"]}
    there = state("drains", "--merge", "--json", name="there", stdin=json.dumps([here]))
    assert (there["changed"], there["drains"]["nodes"]) == ([], {})  # its own word is newer

    for words in ("{", "{}", "[7]"):
        stack.config["state_directory"] = str(stack.directory / "there")
        done = stack.script("drains", "--merge", stdin=words)
        assert done.returncode in {1, 2}
        assert done.stderr.startswith("standard input is not ")


def test_an_unknown_node_is_named_with_the_known_ones(stack: Stack) -> None:
    done = stack.script("drain", "node-z")
    assert (done.returncode, done.stderr) == (2, "no node 'node-z': expected one of node-a, node-b, node-c\n")


def test_rollback_makes_the_former_file_live(stack: Stack) -> None:
    stack.run()
    first = stack.upstream.read_text()
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    second = stack.upstream.read_text()
    for former in (first, second):  # and again: back to where it was
        done = stack.script("rollback")
        assert done.returncode == 0, done.stderr
        assert "is live; the next tick decides anew, so stop vllm-nginx-lb.timer to keep it" in done.stdout
        assert stack.upstream.read_text() == former
    stack.run()
    assert stack.weights()["node-a"] == 10


@pytest.mark.slow
def test_backups_are_what_was_live_and_at_most_ten(stack: Stack) -> None:
    for number in range(12):
        stack.nodes[0].load["kv"] = 0.95 if number % 2 else 0.1
        stack.run()
    kept = stack.backups()
    assert [path.name.split(".")[3] for path in kept] == [f"{number:06d}" for number in range(12, 2, -1)]
    assert kept[0].read_text() == stack.upstream.read_text()


def test_collect_and_apply_are_the_two_halves_of_a_run(stack: Stack) -> None:
    assert "run collect first" in stack.script("apply").stderr
    assert stack.script("collect").returncode == 0
    assert stack.upstream.read_text() == SEED
    assert stack.script("apply").returncode == 0
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
