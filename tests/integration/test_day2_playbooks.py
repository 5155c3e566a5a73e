"""The day-2 playbooks, run by Ansible on ingress hosts that are this machine, with the real script behind them.

In place of systemd there is a stand-in for `systemctl`, whose service is one tick of every host. Its timer does
nothing, so each `status` is a tick too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import PYTHON, ROOT, SCRIPT, FakeNode, free_port, respond
from tests.playbook import start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # Ansible takes seconds for a playbook
# The balancer's command of one host, which records its arguments.
BALANCER = """\
#!/bin/sh
cd "$(dirname "$0")" || exit
exec 9>>lock && flock 9
run() { @PYTHON@ @SCRIPT@ --config config.yml "$@"; }
echo "$*" >>asked
if [ "$1" = status ]; then run run >/dev/null 2>&1; fi
[ -e words ] || exec @PYTHON@ @SCRIPT@ --config config.yml "$@"
run "$@" >said
code=$?
sed -f words said
exit $code
"""
SYSTEMCTL = """\
#!/bin/sh
cd "$(dirname "$0")" || exit
case "$1 $2" in
    "show "*service*) echo "Id=$2
LoadState=loaded
ActiveState=inactive
Result=$(cat result)";;
    "show "*timer*) echo "Id=$2
LoadState=loaded
ActiveState=$(cat timer)";;
    "start "*timer*) echo active >timer;;
    "stop "*timer*) echo inactive >timer;;
    "start "*service*)
        echo success >result.$$
        for host in ingress-*; do $host/balancer run || echo exit-code >result.$$; done
        mv result.$$ result
        grep -q success result;;
esac
"""


@dataclass
class Site:
    """Ingress hosts and three nodes."""

    folder: Path
    ingresses: list[str]
    nodes: dict[str, FakeNode]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # further settings of nodes, by name
    away: set[str] = field(default_factory=set)  # ingress hosts that do not answer

    def play(self, name: str, *options: str, **variables: Any) -> tuple[int, str]:
        """Run a playbook; return its exit code, and its output as one line."""
        started = self.start(name, *options, **variables)
        try:
            said = started.communicate(timeout=300)
        except BaseException:
            started.kill()
            raise
        return started.returncode, " ".join("".join(said).split())

    def start(self, name: str, *options: str, **variables: Any) -> subprocess.Popen[str]:
        """Start a playbook."""
        hosts = {
            name: {"ansible_host": "127.0.0.1", "vllm_port": node.port, **self.settings.get(name, {})}
            for name, node in self.nodes.items()
        }
        answers, silent = {"ansible_connection": "local"}, {"ansible_host": "127.0.0.1", "ansible_port": free_port()}
        ingresses = {host: silent if host in self.away else answers for host in self.ingresses}
        inventory = {"ingress": {"hosts": ingresses}, "vllm": {"hosts": hosts}}
        given = {
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "__vllm_nginx_lb_command": f"{self.folder}/{{{{ inventory_hostname }}}}/balancer",
            "__vllm_nginx_lb_poll_seconds": 0.1,
            "vllm_nginx_lb_interval_seconds": 1,
            **variables,
        }
        return start(
            self.folder, inventory, ROOT / "playbooks" / f"{name}.yml", *options, path=str(self.folder), **given
        )

    def configure(self) -> None:
        """Write what the roles would write, and run a tick on each host."""
        (self.folder / "timer").write_text("active\n")
        write_program(self.folder / "systemctl", SYSTEMCTL)
        for host in self.ingresses:
            (self.folder / host).mkdir()
            write_program(self.folder / host / "balancer", BALANCER)
            self.write_config(host)
        self.tick()

    def write_config(self, host: str, **ports: int) -> None:
        """Write config.yml of a host, with other ports for some nodes."""
        known = {name: node.port for name, node in self.nodes.items()} | ports
        config = {
            "state_directory": str(self.folder / host / "state"),
            "scrape": {"timeout_seconds": 2},
            "nginx": {
                "upstream_file": str(self.folder / host / "upstream.conf"),
                "test_command": ["true"],
                "reload_command": ["true"],
                "min_reload_interval_seconds": 0,
            },
            "health": {"fall": 1, "rise": 1},
            "pools": [
                {
                    "name": "llm_cluster",
                    "nodes": [{"name": name, "host": "127.0.0.1", "port": port} for name, port in known.items()],
                }
            ],
        }
        (self.folder / host / "config.yml").write_text(json.dumps(config))

    def tick(self) -> None:
        """Let every host read the nodes."""
        subprocess.run([self.folder / "systemctl", "start", "vllm-nginx-lb.service"], check=True, capture_output=True)

    def status(self, host: str = "ingress-1") -> dict[str, dict[str, Any]]:
        """Return a host's status of each node."""
        status = json.loads((self.folder / host / "state" / "status.json").read_text())
        return {node["name"]: node for pool in status["pools"] for node in pool["nodes"]}

    def states(self, host: str = "ingress-1") -> list[str]:
        """Return the states of the nodes for a host."""
        return [node["state"] for node in self.status(host).values()]

    def asked(self, host: str = "ingress-1") -> list[str]:
        """Return the commands that a host's balancer was given."""
        return (self.folder / host / "asked").read_text().splitlines()

    def moves(self, host: str = "ingress-1") -> list[str]:
        """Return those of these commands that change something."""
        return [words.partition(" --")[0] for words in self.asked(host) if re.match("(un)?drain ", words)]


def write_program(path: Path, text: str) -> None:
    path.write_text(text.replace("@PYTHON@", PYTHON).replace("@SCRIPT@", str(SCRIPT)))
    path.chmod(0o755)


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Set up one ingress host, or as many as `@TWO` says, and three idle nodes."""
    nodes = {name: FakeNode(name) for name in ("node-a", "node-b", "node-c")}
    for node in nodes.values():
        node.load["running"] = 0
    it = Site(tmp_path, [f"ingress-{number + 1}" for number in range(getattr(request, "param", 1))], nodes)
    it.configure()
    yield it
    for node in nodes.values():
        node.stop()


TWO = pytest.mark.parametrize("site", [2], indirect=True, ids=["two"])


def finishing(node: FakeNode, running: int) -> None:
    """Let a node end one request with each scrape."""
    left = iter(range(running, 0, -1))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        node.load["running"] = next(left, 0)
        respond(handler, node.metrics().encode())

    node.answer = answer


# --- drain.yml and undrain.yml --------------------------------------------------------------------------------------


def test_drain_waits_until_the_node_runs_nothing(site: Site) -> None:
    finishing(site.nodes["node-a"], 5)
    code, said = site.play("drain", node="node-a")
    assert code == 0, said
    assert "node-a runs nothing" in said
    assert site.nodes["node-a"].load["running"] == 0
    assert site.status()["node-a"]["weight"] == 0
    # The tick that drains the node has read it before nginx knew, so a second tick comes before the playbook reads it.
    asked = [words.partition(" --")[0] for words in site.asked()]
    asked = asked[asked.index("drain node-a") :]
    assert asked[: asked.index("status")] == ["drain node-a", "run", "run"]

    code, said = site.play("undrain", vllm_node_name="node-a")  # the name it had before
    assert code == 0, said
    assert site.states() == ["up", "up", "up"]


@pytest.mark.parametrize(
    ("running", "seconds", "words"),
    [
        (2, 1, "node-a still has 2 request(s) after vllm_nginx_lb_drain_timeout_seconds (1); it stays drained"),
        (2, 0, None),
        (None, 1, "node-a cannot be read (HTTP 500), so what it runs is not known after vllm_nginx_lb_drain_timeout"),
        (-1, 1, "node-a cannot be read (left out: vllm:num_requests_running is -1), so what it runs is not known"),
    ],
    ids=["busy", "not waited for", "unreadable", "impossible"],
)
def test_drain_says_what_it_waited_for(site: Site, running: int | None, seconds: int, words: str | None) -> None:
    node = site.nodes["node-a"]
    node.load["running"] = running or 0
    if running is None:
        node.answer = lambda handler: respond(handler, b"", 500)
    code, said = site.play("drain", node="node-a", vllm_nginx_lb_drain_timeout_seconds=seconds)
    assert code == (2 if words else 0), said
    assert (words or "") in said
    assert site.states() == ["drained", "up", "up"]


@pytest.mark.parametrize("how", ["silent", "refuses", "refuses, in other words"])
def test_a_dead_node_runs_nothing(site: Site, how: str) -> None:
    node = site.nodes["node-a"]
    released = threading.Event()

    def answer(_handler: BaseHTTPRequestHandler) -> None:
        released.wait()

    if how == "silent":  # as a machine without power: down before it is drained
        node.answer = answer
        site.tick()
        assert site.states() == ["down", "up", "up"]
    else:
        node.stop()
    if "other words" in how:
        (site.folder / "ingress-1" / "words").write_text("s/connection refused/nobody listens/\n")
    code, said = site.play("drain", node="node-a", vllm_nginx_lb_drain_timeout_seconds=60)
    released.set()
    assert code == 0, said
    why = "no answer within 2 s" if how == "silent" else "connection refused"
    if "other words" in how:  # the playbooks use causes
        why = "nobody listens"
    assert f"node-a is down ({why}), so it runs nothing" in said


@pytest.mark.parametrize("playbook", ["drain", "undrain"])
def test_an_unknown_node_is_refused(site: Site, playbook: str) -> None:
    code, said = site.play(playbook, node="node-x")
    assert code == 2
    assert 'node is "node-x"; allowed is one of node-a, node-b, node-c; give it with -e node=NODE' in said
    assert site.moves() == []


def test_drain_changes_nothing_in_check_mode(site: Site) -> None:
    code, said = site.play("drain", "--check", node="node-a")
    assert code == 0, said
    assert site.moves() == []


def test_a_reason_may_look_like_an_option(site: Site) -> None:
    code, said = site.play("drain", node="node-a", reason="--json")
    assert code == 0, said
    assert site.status()["node-a"]["drain_reason"] == "--json"


@TWO
def test_a_host_that_was_away_learns_of_a_drain_and_of_its_end(site: Site) -> None:
    site.away = {"ingress-2"}
    code, said = site.play("drain", node="node-a,node-b", reason="a fan is broken")
    assert code != 0
    assert "ingress-2 did not answer, or refused; node-a, node-b are drained on ingress-1 alone." in said
    assert "When the host answers again, run playbooks/drains.yml, or this play again, or site.yml" in said
    assert "node-a runs nothing, node-b runs nothing" in said
    assert [site.states(host) for host in site.ingresses] == [["drained", "drained", "up"], ["up", "up", "up"]]
    node = site.status()["node-a"]
    assert node["reason"] == "drained by the operator: a fan is broken"

    site.away = set()
    code, said = site.play("drains")
    assert code == 0, said
    assert site.states("ingress-2") == ["drained", "drained", "up"]
    assert site.status("ingress-2")["node-a"]["drained_since"] == node["drained_since"]
    code, said = site.play("drains")
    assert re.findall(r"changed=(\d+)", said) == ["0", "0"]

    site.away = {"ingress-1"}
    code, said = site.play("undrain", node="node-a,node-b")
    assert code != 0
    assert "ingress-1 did not answer, or refused; node-a, node-b are back on ingress-2 alone." in said
    site.away = set()
    code, said = site.play("drain", node="node-c")  # any play that reaches both tells it
    assert code == 0, said
    assert [site.states(host) for host in site.ingresses] == [["up", "up", "drained"]] * 2

    site.away = {"ingress-2"}
    site.nodes["node-a"].load["running"] = 2
    code, said = site.play("drain", node="node-a", vllm_nginx_lb_drain_timeout_seconds=1)
    assert code != 0
    assert "node-a still has 2 request(s) after" in said
    assert "; not drained on hosts that did not answer, or refused: ingress-2" in said


# --- rolling.yml ----------------------------------------------------------------------------------------------------


def restarting(node: FakeNode, scrapes: int) -> None:
    """Let a node refuse that many scrapes from its next POST on, as while it loads its model."""

    def posted(handler: BaseHTTPRequestHandler) -> None:
        left = iter(range(scrapes))

        def answer(scraped: BaseHTTPRequestHandler) -> None:
            if next(left, None) is None:
                respond(scraped, node.metrics().encode())
            else:
                respond(scraped, b"", 503)

        node.answer = answer
        respond(handler, b"restarts")

    node.posted = posted


RESTART = (
    'curl --silent --fail --data x "$VLLM_NODE_SCHEME://$VLLM_NODE_HOST:$VLLM_NODE_PORT/" && '
    "for host in ingress-1 ingress-2; do "
    "python3 -c \"import json, sys; print(*json.load(sys.stdin)['nodes'])\" <@/$host/state/drained.json; "
    "done | xargs echo $VLLM_NODE_NAME: >>@/commands"
)


@TWO
def test_rolling_takes_one_node_after_the_other(site: Site) -> None:
    site.settings["node-c"] = {"vllm_drain": True}
    for node in site.nodes.values():
        restarting(node, 6)
    code, said = site.play("rolling", rolling_command=RESTART.replace("@", str(site.folder)))
    assert code == 0, said
    assert "In turn: node-a, node-b" in said
    assert "Left out, because the inventory has vllm_drain: true: node-c" in said
    assert (site.folder / "commands").read_text().splitlines() == [
        "node-a: node-a node-a",
        "node-b: node-b node-b",
    ]
    for host in site.ingresses:
        assert all(node["state"] == "up" and node["weight"] > 0 for node in site.status(host).values())
        assert site.moves(host) == ["drain node-a", "undrain node-a", "drain node-b", "undrain node-b"]


@TWO
def test_rolling_refuses_while_a_host_does_not_answer(site: Site) -> None:
    site.away = {"ingress-2"}
    code, said = site.play("rolling", rolling_command="true")
    assert code != 0
    assert "ingress-2 did not say which nodes are drained; every ingress host must answer and have the balancer" in said
    assert site.moves() == []


# The command succeeds only while the same command runs for another node; for node-b, the file `mended` must exist too.
TOGETHER = """\
echo $VLLM_NODE_NAME >>@/begun; echo "for $VLLM_NODE_NAME"; n=0
until [ $(wc -l <@/begun) -ge 2 ] || [ $((n = n + 1)) -gt 600 ]; do sleep 0.1; done
[ $n -le 600 ] && { [ $VLLM_NODE_NAME != node-b ] || [ -e @/mended ]; }
"""


def test_rolling_takes_a_batch_at_once_and_goes_on_where_it_stopped(site: Site) -> None:
    given = {"rolling_command": TOGETHER.replace("@", str(site.folder)), "rolling_batch": "2"}
    given |= {"rolling_serving_ratio": "0.3"}
    code, said = site.play("rolling", **given)
    assert code == 2
    assert "In batches: node-a, node-b; node-c" in said
    assert "rolling_command ended with 1 for node-b. node-b stays drained, and the run stops" in said
    assert "What it said last: for node-b" in said
    assert sorted((site.folder / "begun").read_text().split()) == ["node-a", "node-b"]
    assert site.states() == ["up", "drained", "up"]
    reason = site.status()["node-b"]["drain_reason"]
    assert re.fullmatch(r"rolling\.yml [0-9a-f]{8}, 0 of 3 nodes done, begun \S+", reason)

    (site.folder / "mended").touch()
    code, said = site.play("rolling", **given)
    assert code == 0, said
    assert "In batches: node-b, node-c" in said
    assert "Done already by this run" in said
    assert site.states() == ["up", "up", "up"]
    assert site.moves()[-2:] == ["drain node-b node-c", "undrain node-b node-c"]

    assert "In batches: node-a, node-b; node-c" in site.play("rolling", "--check", **given)[1]  # that run was over


# The command may still run when Ansible has ended. It ends by itself.
WAITING = "touch @/begun; n=0; until [ -e @/go ] || [ $((n = n + 1)) -gt 1200 ]; do sleep 0.1; done; [ -e @/go ]"


def test_ctrl_c_leaves_a_drain_that_is_seen_and_the_same_command_goes_on(site: Site) -> None:
    command = WAITING.replace("@", str(site.folder))
    play = site.start("rolling", rolling_command=command)
    try:
        deadline = time.monotonic() + 120
        while not (site.folder / "begun").exists():
            assert time.monotonic() < deadline
            assert play.poll() is None, play.communicate()
            time.sleep(0.1)
        os.killpg(play.pid, signal.SIGINT)  # as a terminal does
        said = " ".join("".join(play.communicate(timeout=120)).split())
    finally:
        play.kill()
    assert play.returncode != 0
    assert (
        "Batch 1 of 3: node-a. If the play ends early, it stays drained: run the same command again, which continues "
        "there, or playbooks/undrain.yml -e node=node-a."
    ) in said
    assert site.states() == ["drained", "up", "up"]
    assert "rolling.yml" in site.status()["node-a"]["reason"]

    (site.folder / "go").touch()
    code, said = site.play("rolling", rolling_command=command)
    assert code == 0, said
    assert "In turn: node-a, node-b, node-c" in said
    assert site.states() == ["up", "up", "up"]


@pytest.mark.parametrize("fault", ["command", "unwell"])
def test_rolling_stops_at_the_first_failure(site: Site, fault: str) -> None:
    command, words = "echo alas; false", "rolling_command ended with 1 for node-b. "
    if fault == "unwell":
        restarting(site.nodes["node-b"], 1000)
        command = 'curl --silent --fail --data x "http://$VLLM_NODE_HOST:$VLLM_NODE_PORT/"'
        words = (
            "node-b cannot be read (HTTP 503) vllm_nginx_lb_health_timeout_seconds (1) after rolling_command ended. "
        )
    code, said = site.play(
        "rolling", rolling_command=command, rolling_nodes="node-b,node-c", vllm_nginx_lb_health_timeout_seconds=1
    )
    assert code == 2, said
    assert (
        f"{words}node-b stays drained, and the run stops; correct the cause, then run the same command "
        "again, which continues there, or put it back with playbooks/undrain.yml -e node=node-b."
    ) in said
    assert ("What it said last: alas" in said) == (fault == "command")
    assert site.states() == ["up", "drained", "up"]
    assert site.moves() == ["drain node-b"]


@TWO
def test_rolling_refuses_while_one_host_sees_another_node_down(site: Site) -> None:
    site.write_config("ingress-2", **{"node-c": free_port()})
    given = {"rolling_command": "false", "rolling_nodes": "node-a", "vllm_nginx_lb_fall": 1}
    code, said = site.play("rolling", **given)
    assert code == 2
    assert "ingress-2: not up: node-c; pool llm_cluster: 1 nodes would serve, and 2 must" in said
    assert "; all other nodes must be up before node-a is taken out, and it was not touched" in said
    assert site.moves("ingress-1") == site.moves("ingress-2") == []

    code, said = site.play("rolling", rolling_force=True, rolling_serving_ratio=0.3, **given)
    assert "rolling_command ended with 1 for node-a" in said
    assert site.moves("ingress-1") == site.moves("ingress-2") == ["drain node-a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"rolling_command": "x", "rolling_nodes": "node-a,node-x"},
            'rolling_nodes has ["node-x"]; allowed are node-a',
        ),
        ({"rolling_command": "true", "rolling_nodes": ""}, 'rolling_nodes has [""]; allowed are node-a'),
        ({}, "rolling_command is empty"),
        ({"rolling_command": "x", "rolling_batch": "0"}, 'rolling_batch is "0"; allowed is a number of nodes from 1'),
        ({"rolling_command": "x", "rolling_batch": "101%"}, 'rolling_batch is "101%"; allowed is a number of nodes'),
        ({"rolling_command": "x", "rolling_serving_ratio": "50"}, 'rolling_serving_ratio is "50"; allowed is a number'),
        ({"rolling_command": "x", "rolling_serving_ratio": 0.9}, "pool llm_cluster: 3 of 3 nodes must serve"),
        ({"rolling_command": "x", "rolling_bach": 2}, "rolling_bach is not a variable of playbooks/rolling.yml; "),
        ({"arguments": ("-e", "rolling_command=ssh node-a")}, '-e has "node-a" outside of quotes'),
        (
            {"arguments": ("--limit", "ingress-1")},
            "this play is for ingress-1 alone; allowed is all of ingress-1, ingress-2",
        ),
    ],
    ids=[
        *("unknown", "no name", "no command", "no batch", "more than all", "no share", "no node to spare", "misspelt"),
        *("half a command", "limit"),
    ],
)
@TWO
def test_rolling_refuses_what_it_cannot_mean(site: Site, options: dict[str, Any], words: str) -> None:
    code, said = site.play("rolling", *options.pop("arguments", ()), **options)
    assert code == 2
    assert words in said
    assert site.moves() == []


# --- status.yml, rollback.yml, preflight.yml ------------------------------------------------------------------------


@TWO
def test_status_is_shown_of_each_host_and_a_failure_told(site: Site) -> None:
    code, said = site.play("status", "--check")
    assert code == 0, said
    assert said.count("llm_cluster node-a up") == 2

    (site.folder / "ingress-1" / "config.yml").write_text("pools: []")
    code, said = site.play("status")
    assert code == 2
    assert "ingress-1: vllm-nginx-lb status failed: config.yml: pools: []: expected a list of at least one pool" in said
    assert said.count("llm_cluster node-a up") == 1


def test_a_rollback_that_fails_leaves_the_timer_running(site: Site) -> None:
    code, said = site.play("rollback")
    assert code == 2
    assert "ingress-1: nothing was rolled back, and the timer is as it was before: no backup beside" in said
    assert (site.folder / "timer").read_text() == "active\n"


def test_a_rollback_stops_the_timer_and_resume_starts_it(site: Site) -> None:
    assert site.play("drain", node="node-a", vllm_nginx_lb_drain_timeout_seconds=0)[0] == 0
    code, said = site.play("rollback")
    assert code == 0, said
    told = re.search("The generation ([0-9a-f]+) is live again", said)
    assert told
    upstream = (site.folder / "ingress-1" / "upstream.conf").read_text()
    assert f'"{told[1]}"' in upstream
    assert not re.search("^ *server .* down", upstream, re.MULTILINE)
    assert (site.folder / "timer").read_text() == "inactive\n"

    code, said = site.play("resume")
    assert code == 0, said
    assert (site.folder / "timer").read_text() == "active\n"
    assert site.states() == ["drained", "up", "up"]


@pytest.mark.parametrize(
    ("variable", "value", "least"),
    [("vllm_nginx_lb_drain_timeout_seconds", -1, 0), ("vllm_nginx_lb_health_timeout_seconds", 0, 1)],
)
def test_preflight_checks_the_time_limits(site: Site, variable: str, value: int, least: int) -> None:
    code, said = site.play("preflight", **{variable: value, "vllm_nginx_lb_interval_seconds": 10})
    assert code == 2
    assert f"{variable} is {value}; allowed is a whole number from {least} to 86400; correct it" in said
