"""What an operator sees: `status` on terminals and in pipes, `explain`, `replay`, and the journal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import PYTHON, SCRIPT, Stack, respond, wait_for
from vllm_lb import __version__
from vllm_lb import journal as journal_module
from vllm_lb.journal import NOTICE, is_stderr_the_journal, log
from vllm_lb.settings import NginxSettings
from vllm_lb.view import ejected
from vllm_lb.view.ejected import ejected_nodes

if TYPE_CHECKING:
    from pathlib import Path

COLOUR = re.compile(r"\x1b\[(?:\d+;)*3[0-7]m")


class Terminal:
    """A run of the script on a terminal of its own, and its output."""

    def __init__(self, stack: Stack, *arguments: str, **environment: str) -> None:
        """Start the script."""
        self.seen = ""
        ours, theirs = os.openpty()
        script = [PYTHON, str(SCRIPT), "--config", str(stack.write_config()), *arguments]
        # In the background of a shell, the tests ignore SIGINT. The script must not inherit that.
        command = ["env", "--default-signal=INT", *script]
        settings = {"TERM": "xterm-256color", "COLUMNS": "120", **environment}
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept | settings)
        os.close(theirs)
        self.reader = threading.Thread(target=self.read, args=(ours,), daemon=True)
        self.reader.start()

    def read(self, ours: int) -> None:
        """Keep the output until the terminal is closed."""
        with open(ours, "rb", buffering=0) as file, contextlib.suppress(OSError):
            while piece := file.read(65536):
                self.seen += piece.decode()

    def ended(self) -> int:
        """Wait for the end of the script and return its exit code."""
        code = self.process.wait(30)
        self.reader.join(10)
        assert "Traceback" not in self.seen, self.seen
        return code

    @property
    def lines(self) -> list[str]:
        """The output without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen).replace("\r", "").splitlines()


@pytest.fixture
def stack_of_all_states(stack: Stack) -> Stack:
    """Have a node that is up, one that cannot be read, and one that is drained."""
    stack.run()
    stack.script("drain", "--reason", "new fan", "node-c")
    stack.nodes[1].answer = lambda request: respond(request, b"no", 500)
    stack.nodes[0].load["kv"] = 0.8
    stack.run()
    return stack


def test_a_terminal_gets_what_fits(stack_of_all_states: Stack) -> None:
    terminal = Terminal(stack_of_all_states, "status")
    assert terminal.ended() == 0
    assert not COLOUR.search(terminal.seen)
    text = "\n".join(terminal.lines)
    assert re.search(r"node-a +up +0.80 +0 +1 +60 +kv 0.80 >= 0.75\b", text)
    assert re.search(r"node-b +unknown +- +- +- +100 +HTTP 500, last weight held", text)
    assert re.search(r"node-c +drained +0.10 +0 +1 +0 +drained by the operator: new fan \(\d+ s ago\)", text)
    assert re.search(r"reloaded \d+ s ago, at 20\S+, generation [0-9a-f]{16}\n", text)
    assert "2 reloads in the last hour, old workers of 0 reloads still drain" in text
    assert max(map(len, terminal.lines)) <= 120


@pytest.mark.parametrize("columns", ["60", "50"])
def test_a_narrow_terminal_gets_reasons_below(stack_of_all_states: Stack, columns: str) -> None:
    terminal = Terminal(stack_of_all_states, "status", COLUMNS=columns)
    assert terminal.ended() == 0
    head, table, reasons, tail = "\n".join(terminal.lines).split("\n\n")
    assert max(map(len, f"{head}\n{table}\n{tail}".splitlines())) <= int(columns)
    assert "1 up, 1 unknown, 1 drained;" in " ".join(head.split())
    assert re.fullmatch(r"node-b +unknown +- +- +- +100", table.splitlines()[2])
    assert "node-b: HTTP 500, last weight held" in reasons


def test_status_begins_with_the_outcome_and_the_totals(stack_of_all_states: Stack) -> None:
    lines = stack_of_all_states.script("status").stdout.splitlines()
    assert lines[0] == f"{os.uname().nodename}, vllm-nginx-lb {__version__}"
    assert re.match(r"reloaded \d+ s ago, ", lines[1])
    assert lines[2] == "3 nodes: 1 up, 1 unknown, 1 drained; 2 running, 0 waiting; highest KV 0.80 (node-a)"
    assert re.fullmatch(r"1 node drained by hand; the longest is node-c \(\d+ s\)", lines[3])
    assert stack_of_all_states.status()["host"] == os.uname().nodename


FILTERS: list[tuple[list[str], int, list[str]]] = [
    (["node-b"], 0, ["node-b"]),
    (["node-[ab]", "node-c"], 0, ["node-a", "node-b", "node-c"]),
    (["--state", "drained", "--state", "unknown"], 0, ["node-b", "node-c"]),
    (["--pool", "llm_cluster", "--state", "up", "node-*"], 0, ["node-a"]),
    (["--limit", "2"], 0, ["node-b", "node-c"]),
    (["--state", "down"], 0, []),
    (["node-z"], 2, []),
    (["--pool", "embeddings"], 2, []),
    (["--state", "away"], 2, []),
    (["--limit", "0"], 2, []),
    (["--limit", "2", "--all"], 2, []),
]


def test_status_shows_the_nodes_that_are_asked_for(stack_of_all_states: Stack) -> None:
    for options, code, names in FILTERS:
        done = stack_of_all_states.script("status", *options)
        assert (done.returncode, re.findall(r"^llm_cluster +(\S+)", done.stdout, re.MULTILINE)) == (code, names), (
            options
        )
        done = stack_of_all_states.script("status", "--json", *options)
        assert done.returncode == code, options
        if code == 0:
            pools = json.loads(done.stdout)["pools"]
            assert [node["name"] for pool in pools for node in pool["nodes"]] == names, options
    assert "no node 'node-z' in the last decision" in stack_of_all_states.script("status", "node-z").stderr


def test_status_tells_live_weights_from_decided_ones(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    assert "nginx runs" not in stack.script("status").stdout
    assert stack.script("rollback").returncode == 0
    stack.await_generation(stack.status()["generation"])
    said = stack.script("status").stdout
    runs = f"nginx runs the weights of generation {stack.generation()[:12]}: "
    assert f"\n{runs}1 node differs; node-a (live 100, decided 10)\n" in said
    assert re.search(r"^llm_cluster +node-a +up +0.95 +0 +1 +10 +100 +kv 0.95 >= 0.92$", said, re.MULTILINE)


def test_a_drained_node_that_still_gets_requests_is_not_shown_as_drained(stack: Stack) -> None:
    stack.run()
    stack.write_nginx("broken;")
    stack.script("drain", "node-c")
    stack.run(expect=1)
    said = stack.script("status").stdout
    assert ": 1 node differs; node-c still gets requests (live 100, decided 0)\n" in said
    assert "3 nodes: 2 up, 1 drained (1 still live);" in said
    (row,) = [line for line in said.splitlines() if line.startswith("llm_cluster  node-c ")]
    assert re.search(r"node-c +still live +0.10 +0 +1 +0 +100 +drained, and nginx still sends it requests: ", row)


def test_a_pipe_gets_plain_lines_of_any_length(stack_of_all_states: Stack) -> None:
    done = stack_of_all_states.script("status", COLUMNS="20", FORCE_COLOR="1")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "llm_cluster  node-b  unknown  -     -        -        100     HTTP 500, last weight held\n" in done.stdout


def test_status_fails_when_the_last_good_tick_is_too_old(stack: Stack) -> None:
    stack.config["interval_seconds"] = 1
    stack.run()
    assert stack.script("status").returncode == 0
    wait_for(lambda: stack.script("status").returncode == 1, 30, every=0.5)
    done = stack.script("status")
    assert "node-a" in done.stdout
    assert re.fullmatch(
        r"the last tick without a fault was \d+ s ago; one is due every 1 s: see journalctl -u vllm-nginx-lb, and "
        r"whether vllm-nginx-lb.timer is active\n",
        done.stderr,
    )
    done = stack.script("status", "--json")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (1, "reloaded")


def test_ticks_that_fail_do_not_make_the_last_good_one_younger(stack: Stack) -> None:
    stack.config["interval_seconds"] = 1
    stack.run()
    good = stack.status()["decided_at"]
    stack.nodes[0].load["kv"] = 0.95
    stack.write_nginx("broken;")

    def failed_for_long() -> bool:
        stack.run(expect=1)
        return stack.script("status").returncode == 1

    wait_for(failed_for_long)
    assert stack.status()["succeeded_at"] == good
    assert f"last tick without a fault: {good}" in stack.script("status").stdout
    assert stack.status()["changed_outcome"] == "failed"
    assert stack.status()["totals"]["failed"] >= 1
    stack.write_nginx()
    stack.run()
    assert stack.script("status").returncode == 0


def test_watching_goes_on_until_interrupted(stack: Stack) -> None:
    stack.run()
    terminal = Terminal(stack, "status", "--watch")
    wait_for(lambda: "kv 0.10" in terminal.seen)
    stack.nodes[0].load["kv"] = 0.8
    stack.run()
    wait_for(lambda: "kv 0.80" in terminal.seen)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 0


def test_a_copy_of_the_folder_runs_and_writes_nothing_there(stack: Stack) -> None:
    copy = stack.directory / "copy"
    shutil.copytree(SCRIPT.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    command = [PYTHON, str(copy / SCRIPT.name), "--config", str(stack.write_config())]
    for arguments in (["run"], ["status"], ["status", "--json"], ["explain", "node-a"], ["replay"], ["check-config"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not list(copy.glob("**/__pycache__"))


def test_explain_says_which_inputs_moved_a_weight_and_what_became_of_it(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load |= {"kv": 0.86, "waiting": 3.0}
    stack.config["nginx"]["min_reload_interval_seconds"] = 3600
    stack.run()
    stack.config["nginx"]["min_reload_interval_seconds"] = 0
    stack.nodes[0].load |= {"kv": 0.2, "waiting": 0.0}
    stack.run()
    lines = stack.script("explain", "node-a").stdout.splitlines()
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d  weight 100 ->  10: kv 0.86 >= 0.85, waiting 3 > 0", lines[0])
    assert lines[1].strip() == "since the tick before: kv 0.10 -> 0.86, waiting 0 -> 3"
    waits = r"decided, not live: deferred: the last reload was \d+ s ago, the cooldown is 3600 s"
    assert re.fullmatch(waits, lines[2].strip())
    assert lines[3].endswith("weight  10 -> 100: kv 0.20 < 0.75")
    assert "3 ticks" in lines[-2]
    assert lines[-1].strip().startswith("weight 10 to 100, kv 0.10 to 0.86, waiting 0 to 3, running 1")
    assert stack.script("explain", "node-b", "--since", "5m").stdout.splitlines()[-2].endswith(", 0 changes")
    assert (
        "no tick since 2999-01-01 is in the history"
        in stack.script("explain", "node-a", "--since", "2999-01-01").stdout
    )
    done = stack.script("explain", "node-z")
    assert (done.returncode, done.stderr) == (2, "no node 'node-z': expected one of node-a, node-b, node-c\n")


def test_replay_of_real_ticks(stack: Stack) -> None:
    for kv in (0.1, 0.8, 0.95, 0.3):
        stack.nodes[0].load["kv"] = kv
        stack.run()
    same = stack.script("replay")
    assert same.returncode == 0, same.stderr
    assert re.search(r"^node-a +67.5 +67.5 +3 +3 +0$", same.stdout, re.MULTILINE)
    other = stack.script("replay", str(stack.directory / "state" / "history.jsonl"), "--policy", "static")
    assert re.search(r"^node-a +67.5 +100.0 +3 +0 +2$", other.stdout, re.MULTILINE)
    done = stack.script("replay", "--set", "health.fall=0")
    assert done.returncode == 2
    assert "health.fall: 0: expected a number from 1 to 1000" in done.stderr


@pytest.mark.fault(
    2,
    "the history cannot be written",
    sees="history.jsonl cannot be written: Is a directory",
    keeps="everything but the history",
)
def test_a_history_that_cannot_be_written_stops_no_tick(stack: Stack) -> None:
    (stack.directory / "state").mkdir()
    (stack.directory / "state" / "history.jsonl").mkdir()
    said = stack.run()
    assert f"{stack.directory}/state/history.jsonl cannot be written: Is a directory" in said
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    assert "vllm_nginx_lb_node_weight" in (stack.directory / "state" / "metrics.prom").read_text()
    assert stack.script("status").returncode == 0


def test_status_fails_on_what_is_no_status_or_from_the_future(stack: Stack) -> None:
    stack.run()
    path = stack.directory / "state" / "status.json"
    good = json.loads(path.read_text())
    path.write_text('{"version": 2}')
    for options in ([], ["--json"]):
        done = stack.script("status", *options)
        assert done.returncode == 1
        assert "is not one of this version's" in done.stderr
    path.write_text(json.dumps(good | {"succeeded_at": "2099-01-01T00:00:00.000+00:00"}))
    done = stack.script("status")
    assert done.returncode == 1
    assert "in the future: was the clock set back?" in done.stderr


def test_a_reason_with_markup_stays_as_it_is(stack: Stack) -> None:
    stack.run()
    path = stack.directory / "state" / "status.json"
    found = json.loads(path.read_text())
    found["pools"][0]["held"] = "[/x] [bold]held[/bold] :skull:"
    path.write_text(json.dumps(found))
    terminal = Terminal(stack, "status")
    assert terminal.ended() == 0
    assert "llm_cluster: [/x] [bold]held[/bold] :skull:" in "\n".join(terminal.lines)


def test_the_journal_gets_changes_with_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stderr = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    monkeypatch.setattr(journal_module, "SOCKET", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(journal_module.SOCKET)
        journal.settimeout(10)
        log(NOTICE, "p/a: weight 100 -> 60: kv\nMESSAGE_ID=forged", node="a", weight=60, previous_weight=None)
        fields = journal.recv(65536).decode().splitlines()
        forged = journal.recv(65536).decode().splitlines()
    assert forged[0] == "MESSAGE=MESSAGE_ID=forged", "a line break begins another message, and no field"
    assert fields == [
        "MESSAGE=p/a: weight 100 -> 60: kv",
        "PRIORITY=5",
        "SYSLOG_IDENTIFIER=vllm-nginx-lb",
        "VLLM_NGINX_LB_NODE=a",
        "VLLM_NGINX_LB_WEIGHT=60",
    ]
    assert capsys.readouterr().err == ""
    log(NOTICE, "nobody listens", node="a")
    assert capsys.readouterr().err == "<5>nobody listens\n"
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")  # as from a service that started the shell
    assert not is_stderr_the_journal()


def test_each_problem_is_a_line_of_its_own_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    monkeypatch.setattr(journal_module, "SOCKET", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(journal_module.SOCKET)
        journal.settimeout(10)
        log(NOTICE, "first problem\nsecond problem", cause="config_invalid")
        entries = [journal.recv(65536).decode() for _ in range(2)]
    assert [entry.splitlines()[0] for entry in entries] == ["MESSAGE=first problem", "MESSAGE=second problem"]
    assert all("VLLM_NGINX_LB_CAUSE=config_invalid" in entry for entry in entries)


def answering(listener: socket.socket, pieces: list[bytes], gone: threading.Event) -> None:
    """Answer each connection piece by piece, until the other side is gone."""
    while not gone.is_set():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                for piece in pieces:
                    connection.sendall(piece)
                    gone.wait(0.05)


NONE_EJECTED = b'{"generation":"a","nodes":[]}\n'


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"HTTP/1.0 200 OK\r\n\r\n", NONE_EJECTED], {}),
        ([b"HTTP/1.0 200 OK\r\n\r\n", *[b" "] * 100, NONE_EJECTED], None),
        ([b"HTTP/1.0 302 Found\r\nLocation: /work/ejected\r\n\r\n", NONE_EJECTED], None),
        ([b"HTTP/1.0 200 OK\r\n\r\n", b" " * 2**20, NONE_EJECTED], None),
        ([], None),
    ],
    ids=["whole", "slow", "redirect", "large", "nothing"],
)
def test_status_waits_for_no_other_program_at_the_port_of_nginx(
    pieces: list[bytes], expected: dict[tuple[str, str], str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ejected, "TIMEOUT_SECONDS", 1)
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=answering, args=(listener, pieces, gone))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/generation"
        try:
            assert ejected_nodes(NginxSettings(balancer="work", confirm_url=url)) == expected
        finally:
            gone.set()
            thread.join()
