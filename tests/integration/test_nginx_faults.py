"""Faults of nginx, of its other files, and edits by hand of the live configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.integration.conftest import PYTHON, SCRIPT, SEED, FakeNode, Stack, fetch, respond, wait_for

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

fault = pytest.mark.fault


def overload(stack: Stack) -> tuple[str, str]:
    """Change the load, so that the next tick publishes; return the live file and its generation."""
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    return stack.upstream.read_text(), stack.generation()


def assert_published(stack: Stack) -> None:
    """Run a tick, and check that the delayed change is live now."""
    stack.run()
    assert stack.weights()["node-a"] == 10
    assert stack.generation() == stack.status()["generation"]
    assert f"{stack.nodes[0].port} weight=10 " in stack.upstream.read_text()


# --- 3: nginx refuses the configuration ------------------------------------------------------------------


@fault(
    3,
    "somebody else's file is broken",
    sees='nothing changed, the configuration test fails …unknown directive "no_such_directive" in …other.conf:1',
    keeps="everything: ours is neither blamed nor touched",
)
def test_a_broken_foreign_file_is_named_and_nothing_is_touched(stack: Stack) -> None:
    live, generation = overload(stack)
    (stack.directory / "other.conf").write_text("no_such_directive on;\n")
    stack.write_nginx("include other.conf;")
    stack.run(1)
    assert stack.upstream.read_text() == live
    assert (stack.status()["outcome"], stack.generation()) == ("failed", generation)
    assert len(stack.backups()) == 1
    stack.write_nginx()
    assert_published(stack)


@fault(
    3,
    "nginx refuses our file (here: the operator's template)",
    sees='unknown directive "no_such_directive"…; rolled back to generation …',
    keeps="requests, and a restart of nginx: the file that was live is back, and nginx never saw the other",
)
def test_a_file_that_nginx_refuses_is_rolled_back(stack: Stack) -> None:
    live, generation = overload(stack)
    workers = stack.worker_pids()
    template = stack.directory / "template.j2"
    template.write_text("upstream llm_cluster { no_such_directive; }\n")
    stack.config["nginx"]["upstream_template"] = str(template)
    stack.run(1)
    assert stack.upstream.read_text() == live
    assert (stack.generation(), stack.worker_pids()) == (generation, workers)
    assert (stack.status()["outcome"], stack.status()["applied"]) == ("rolled_back", False)
    stack.config["nginx"]["upstream_template"] = None
    assert_published(stack)


def test_the_first_file_of_all_is_rolled_back_to_the_seed(stack: Stack) -> None:
    template = stack.directory / "template.j2"
    template.write_text("upstream llm_cluster { no_such_directive; }\n")
    stack.config["nginx"]["upstream_template"] = str(template)
    assert "rolled back to generation seed" in stack.run(1)
    assert stack.upstream.read_text() == SEED


@fault(
    3,
    "our file was emptied, and nginx blames another one for it",
    sees="upstream.conf was empty or missing: written again",
    keeps="requests; the tick puts it back",
)
def test_an_emptied_file_is_written_again_although_nginx_blames_another(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.upstream.write_text("")
    stack.run()
    assert stack.upstream.read_text() == live


# --- 4: a reload does not take ---------------------------------------------------------------------------


@fault(
    4,
    "the reload does not take: a port is taken, which the test does not see",
    sees="the reload did not take: generation … is still live; rolled back to generation …",
    keeps="requests, and a restart of nginx: the file that was live is back",
)
def test_a_reload_that_does_not_take_is_found_and_rolled_back(stack: Stack) -> None:
    live, generation = overload(stack)
    other = FakeNode("other")
    stack.write_nginx(f"server {{ listen 127.0.0.1:{other.port}; }}")  # passes nginx -t, but cannot be bound
    stack.run(1)
    assert (stack.upstream.read_text(), stack.generation()) == (live, generation)
    assert stack.status()["outcome"] == "rolled_back"
    other.stop()
    assert_published(stack)


@fault(
    4,
    "the reload does not take: a shared memory zone has another key than before",
    sees="the reload did not take: generation … is still live; rolled back to generation …",
    keeps="requests, and a restart of nginx: the file that was live is back",
)
def test_a_changed_shared_zone_is_found_and_rolled_back(stack: Stack) -> None:
    zone = "limit_req_zone {} zone=z:1m rate=100r/s;"
    stack.write_nginx(zone.format("$binary_remote_addr"))
    live, generation = overload(stack)
    stack.write_nginx(zone.format("$server_name"))
    stack.run(1)
    assert (stack.upstream.read_text(), stack.generation()) == (live, generation)
    stack.write_nginx(zone.format("$binary_remote_addr"))
    assert_published(stack)


@fault(
    4,
    "the command that reloads cannot be run",
    sees="/nonexistent/nginx cannot be run: …; going back failed too: …",
    keeps="requests: nginx runs what it ran, and the file says the same",
)
def test_a_reload_that_cannot_be_started_is_rolled_back(stack: Stack) -> None:
    live, generation = overload(stack)
    stack.config["nginx"]["reload_command"] = ["/nonexistent/nginx", "-s", "reload"]
    stack.run(1)
    assert (stack.upstream.read_text(), stack.generation()) == (live, generation)
    stack.config["nginx"]["reload_command"] = [*stack.nginx, "-s", "reload"]
    assert_published(stack)


# --- 5: nginx is away ------------------------------------------------------------------------------------


@fault(
    5,
    "nginx is stopped",
    sees="nginx does not answer at http://…/generation (connection refused): is it running?",
    keeps="what the operator wants: it is not started, and the file is as it was",
)
def test_a_stopped_nginx_is_not_started(stack: Stack) -> None:
    live, _ = overload(stack)
    stack.stop()
    stack.run(1)
    assert stack.upstream.read_text() == live
    assert not (stack.directory / "nginx.pid").exists()
    stack.start()
    assert_published(stack)


@fault(
    5,
    "nginx is stopped, and could not start: upstream.conf is damaged",
    sees="is it running?; …upstream.conf could not start it and is generation … again",
    keeps="nginx can be started again; it is not started",
)
def test_a_damaged_file_is_put_back_while_nginx_is_stopped(stack: Stack) -> None:
    live, generation = overload(stack)
    stack.stop()
    stack.upstream.write_text("upstream llm_cluster {\n")
    stack.run(1)
    assert stack.upstream.read_text() == live
    stack.start()
    assert stack.generation() == generation
    assert_published(stack)


@fault(
    5,
    "nginx is stopped between test and reload",
    sees="going back failed too: … is it running?",
    keeps="nginx can be started: the file that was live is back",
)
def test_nginx_that_is_stopped_in_the_middle_finds_its_former_file(stack: Stack) -> None:
    live, generation = overload(stack)
    pid_file = stack.directory / "nginx.pid"
    stops = f"kill -TERM $(cat {pid_file}); while [ -s {pid_file} ]; do sleep 0.02; done"
    stack.config["nginx"]["reload_command"] = ["/bin/sh", "-c", f"[ ! -s {pid_file} ] || {{ {stops}; }}"]
    stack.run(1)
    assert stack.upstream.read_text() == live
    stack.config["nginx"]["reload_command"] = [*stack.nginx, "-s", "reload"]
    stack.start()
    assert stack.generation() == generation
    assert_published(stack)


@fault(
    5,
    "nginx is not installed any more",
    sees="nothing changed, the configuration test fails already: /nonexistent/nginx cannot be run: …",
    keeps="everything: nothing is touched",
)
def test_a_missing_nginx_is_named_and_nothing_is_touched(stack: Stack) -> None:
    live, _ = overload(stack)
    stack.config["nginx"]["test_command"] = ["/nonexistent/nginx", "-t"]
    stack.run(1)
    assert stack.upstream.read_text() == live


# --- 6: two at once, or one that hangs -------------------------------------------------------------------


@fault(
    6,
    "several runs start at once",
    sees="another run holds the lock",
    keeps="everything: one of them works, the others leave with exit code 75",
)
def test_of_several_runs_at_once_one_works(stack: Stack) -> None:
    overload(stack)
    overlap = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        overlap.wait(1)
        respond(handler, b"", 500)

    stack.nodes[1].answer = slow
    command = [PYTHON, str(SCRIPT), "--config", str(stack.write_config()), "run"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [run.communicate(timeout=60)[1] for run in runs]
    stack.heard += said
    assert sorted(run.returncode for run in runs) == [0, 75, 75, 75], said
    stack.nodes[1].answer = None
    assert_published(stack)


@fault(
    6,
    "somebody holds the lock of the state directory, which the unprivileged half can do",
    sees="reloaded: generation …",
    keeps="apply and rollback, which have a lock of their own that only root can hold",
)
def test_the_lock_of_the_state_directory_does_not_hold_up_what_publishes(stack: Stack) -> None:
    overload(stack)
    assert stack.script("collect").returncode == 0
    with stack.holding(stack.directory / "state" / "lock"):
        assert stack.script("run").returncode == 75
        assert stack.script("apply").returncode == 0
        assert stack.script("rollback").returncode == 0
    with stack.holding(stack.upstream.parent / ".lock"):
        assert stack.script("apply").returncode == 75


@fault(
    6,
    "a command of nginx hangs, and the tick is ended from outside",
    sees="reloaded: generation …",
    keeps="requests; the next tick repairs the rest",
)
def test_a_tick_that_hangs_and_is_ended_is_repaired(stack: Stack) -> None:
    overload(stack)
    stack.config["nginx"]["reload_command"] = ["/bin/sh", "-c", f"touch {stack.directory}/hangs; exec sleep 30"]
    command = [PYTHON, str(SCRIPT), "--config", str(stack.write_config()), "run"]
    with subprocess.Popen(command, start_new_session=True) as run:
        wait_for((stack.directory / "hangs").exists)
        os.killpg(run.pid, signal.SIGTERM)  # as systemd does at TimeoutStartSec
    assert run.returncode == -signal.SIGTERM
    assert fetch(stack.ingress_port, "/v1/models").startswith("node-")
    stack.config["nginx"]["reload_command"] = [*stack.nginx, "-s", "reload"]
    assert_published(stack)


# --- 11: an edit by hand ---------------------------------------------------------------------------------


@fault(
    11,
    "the operator edits upstream.conf",
    sees="changed by hand: +    server 127.0.0.1:…; # mine",
    keeps="requests; the edited text is kept beside it, what was decided replaces it",
)
def test_an_edit_by_hand_is_told_kept_and_replaced(stack: Stack) -> None:
    stack.run()
    live, workers = stack.upstream.read_text(), stack.worker_pids()
    edited = live.replace("least_conn;", f"least_conn;\n    server 127.0.0.1:{stack.nodes[0].port}; # mine")
    stack.upstream.write_text(edited)
    subprocess.run([*stack.nginx, "-s", "reload"], check=True)  # makes the edit live, under the same generation
    wait_for(lambda: not stack.worker_pids() & workers)
    edited_workers = stack.worker_pids()
    stack.config["nginx"]["min_reload_interval_seconds"] = 3600  # the cooldown does not delay a repair
    said = stack.run()
    (kept,) = stack.edits()
    assert f"{stack.upstream} was changed by hand: kept as {kept}" in said
    assert kept.read_text() == edited
    assert stack.upstream.read_text() == live
    assert not stack.worker_pids() & edited_workers
    assert stack.run() == ""


@fault(
    11,
    "the operator edits upstream.conf so that nginx refuses it",
    sees="changed by hand: +garbage",
    keeps="requests; the edited text is kept beside it, what was decided replaces it",
)
def test_a_broken_edit_by_hand_is_replaced(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    stack.upstream.write_text(live + "garbage\n")
    stack.run()
    assert stack.upstream.read_text() == live


@pytest.mark.slow
def test_a_long_edit_is_told_in_part_and_ten_edits_are_kept(stack: Stack) -> None:
    stack.run()
    live = stack.upstream.read_text()
    for number in range(12):
        stack.upstream.write_text(live + f"# edit {number}\x1b[31m\n" * 50)
        said = stack.run()
        assert "changed by hand: ... and 10 lines more" in said
        assert "\x1b" not in said
    kept = stack.edits()
    assert len(kept) == 10
    assert "# edit 11" in kept[0].read_text()
    assert "# edit 2\x1b" in kept[-1].read_text()


# --- 12: rollback ----------------------------------------------------------------------------------------


def damage(backup: Path) -> None:
    """Let a disk fault turn a bit of a backup."""
    backup.write_text(backup.read_text().replace("weight=100", "weight=900", 1))


@fault(
    12,
    "`rollback` with no backup",
    sees="no backup beside …upstream.conf: nothing to go back to",
    keeps="everything: nothing is touched",
)
def test_rollback_without_a_backup(stack: Stack) -> None:
    assert stack.script("rollback").returncode == 1
    assert stack.upstream.read_text() == SEED
    stack.run()
    live = stack.upstream.read_text()
    assert stack.script("rollback").returncode == 1  # there is only the seed, which has no node
    assert stack.upstream.read_text() == live


@fault(
    12,
    "`rollback`, and the only backup is damaged",
    sees="no backup beside …upstream.conf (1 damaged): nothing to go back to",
    keeps="everything: nothing is touched",
)
def test_rollback_with_a_corrupt_backup(stack: Stack) -> None:
    live, _ = overload(stack)
    stack.run()
    damage(stack.backups()[1])
    assert stack.script("rollback").returncode == 1
    stack.await_generation(stack.status()["generation"])
    assert stack.upstream.read_text() != live


@fault(
    12,
    "`rollback` with ten backups, of which the newest former one is damaged",
    sees="generation … is live; the next tick decides anew, so stop vllm-nginx-lb.timer to keep it",
    keeps="requests; the newest one that is whole goes live, older ones than ten are gone",
)
def test_rollback_with_ten_backups(stack: Stack) -> None:
    for number in range(12):
        stack.nodes[number % 3].load["kv"] = 0.95 if stack.nodes[number % 3].load["kv"] < 0.5 else 0.1
        stack.run()
    backups = stack.backups()
    assert len(backups) == 10
    former, decided = backups[2].read_text(), stack.status()["generation"]
    damage(backups[1])
    assert stack.script("rollback").returncode == 0
    assert stack.upstream.read_text() == former
    status = stack.status()
    assert (status["outcome"], status["error"]) == ("rolled_back", "rolled back by the operator")
    stack.await_generation(status["generation"])
    assert f'"{status["generation"]}"' in former
    stack.run()
    assert stack.status()["generation"] == decided == stack.generation()


@fault(
    12,
    "`rollback` to a text that nginx refuses today",
    sees='zero size shared memory zone "gone"…; rolled back to generation …',
    keeps="requests: a text is tested before it goes live, and what was live stays",
)
def test_a_text_that_is_restored_is_tested_first(stack: Stack) -> None:
    stack.write_nginx("limit_req_zone $binary_remote_addr zone=gone:1m rate=100r/s;")
    template = stack.directory / "template.j2"
    server = f"server 127.0.0.1:{stack.nodes[0].port};"
    template.write_text(f"limit_req zone=gone burst=99;\nupstream llm_cluster {{ {server} }}\n")
    stack.config["nginx"]["upstream_template"] = str(template)
    stack.run()
    stack.config["nginx"]["upstream_template"] = None
    stack.run()
    live, generation, workers = stack.upstream.read_text(), stack.generation(), stack.worker_pids()
    stack.write_nginx()
    assert stack.script("rollback").returncode == 1
    assert (stack.upstream.read_text(), stack.generation(), stack.worker_pids()) == (live, generation, workers)


# --- Faults that a review found ---------------------------------------------------------------------------


@fault(
    3,
    "somebody else's file is broken before our first file is written",
    sees='nothing published, the configuration test failed already: …unknown directive "no_such_directive"',
    keeps="requests: the file that was there is back",
)
def test_a_broken_foreign_file_does_not_cost_the_file_from_before_our_first(stack: Stack) -> None:
    (stack.directory / "other.conf").write_text("no_such_directive on;\n")
    stack.write_nginx("include other.conf;")
    stack.run(1)
    assert stack.upstream.read_text() == SEED
    stack.write_nginx()
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}


@fault(
    11,
    "upstream.conf is edited while somebody else's file is broken",
    sees='nothing published, the configuration test failed already: …unknown directive "no_such_directive"',
    keeps="requests; the edited text is kept beside it, what was live is back",
)
def test_an_edit_beside_a_broken_foreign_file_is_put_back(stack: Stack) -> None:
    stack.run()
    live, workers = stack.upstream.read_text(), stack.worker_pids()
    (stack.directory / "other.conf").write_text("no_such_directive on;\n")
    stack.write_nginx("include other.conf;")
    stack.upstream.write_text(live + "# edited\n")
    stack.run(1)
    assert (stack.upstream.read_text(), stack.worker_pids()) == (live, workers)
    assert stack.status()["outcome"] == "failed"
    assert len(stack.edits()) == 1
    stack.write_nginx()
    assert stack.run() == ""


@fault(
    11,
    "upstream.conf was written by hand before our first",
    sees="upstream.conf was changed by hand: kept as …",
    keeps="requests; the text is kept beside it, what was decided replaces it",
)
def test_a_file_from_before_our_first_is_kept(stack: Stack) -> None:
    mine = SEED.replace("seed", "mine").replace("127.0.0.1:9 down", f"127.0.0.1:{stack.nodes[0].port}")
    stack.upstream.write_text(mine)
    subprocess.run([*stack.nginx, "-s", "reload"], check=True)
    wait_for(lambda: stack.generation() == "mine")
    stack.run()
    assert [path.read_text() for path in stack.edits()] == [mine]


@fault(
    5,
    "nginx stops after a tick died between rename and test, and refuses what that tick wrote",
    sees="upstream.conf could not start it and is generation … again",
    keeps="nginx can be started; it is not started",
)
@pytest.mark.parametrize("command", ["run", "rollback"])
def test_a_text_that_was_never_live_does_not_keep_nginx_down(stack: Stack, command: str) -> None:
    live, generation = overload(stack)
    template = stack.directory / "template.j2"
    template.write_text("upstream llm_cluster { no_such_directive; }\n")
    dies = ["/bin/sh", "-c", f'grep -q no_such {stack.upstream} && kill -9 $PPID; exec "$@"', "-", *stack.nginx, "-t"]
    stack.config["nginx"] |= {"upstream_template": str(template), "test_command": dies}
    assert stack.script("run").returncode == -9
    stack.stop()
    stack.config["nginx"] |= {"upstream_template": None, "test_command": [*stack.nginx, "-t"]}
    assert stack.script(command).returncode == 1
    assert stack.upstream.read_text() == live
    stack.start()
    assert stack.generation() == generation
    assert_published(stack)


@fault(
    4,
    "a reload takes longer than its confirmation waits for",
    sees="the reload did not take: generation … is still live; tried again in … s",
    keeps="requests; it is not tried again in every tick, for each time leaves workers behind",
)
def test_what_could_not_be_published_is_not_tried_in_every_tick(stack: Stack) -> None:
    live, generation = overload(stack)
    stack.script("drain", "node-b")
    reload = " ".join([*stack.nginx, "-s", "reload"])
    count = stack.directory / "reloads"
    stack.config["nginx"] |= {
        "reload_command": ["/bin/sh", "-c", f"echo >>{count}; (sleep 1; {reload}) >/dev/null 2>&1 &"],
        "confirm_timeout_seconds": 0.1,
        "min_reload_interval_seconds": 600,
    }
    for kv in (0.1, 0.95, 0.1):  # with other weights it is still the same change
        stack.nodes[2].load["kv"] = kv
        stack.run(1)
    assert len(count.read_text()) == 2  # there and back
    assert stack.upstream.read_text() == live
    stack.await_generation(generation)
    stack.config["nginx"] |= {"reload_command": [*stack.nginx, "-s", "reload"], "confirm_timeout_seconds": 3}
    stack.run(1)
    stack.upstream.write_text("damaged {")  # the repair does not wait
    stack.run()
    assert stack.weights() == {"node-a": 10, "node-b": 0, "node-c": 100}


@fault(
    12,
    "things that are no backups have the names of backups",
    sees="generation … is live; the next tick decides anew",
    keeps="everything: they are passed over",
)
def test_odd_things_beside_the_upstream_file(stack: Stack) -> None:
    overload(stack)
    stack.run()
    beside = stack.upstream.parent
    (beside / ".upstream.conf.000100.bak").mkdir()
    (beside / ".upstream.conf.000101.edited").mkdir()
    os.mkfifo(beside / ".upstream.conf.000102.0.bak")
    (beside / ".upstream.conf.000103.bak").symlink_to("/nonexistent")
    (beside / ".upstream.conf.999999999999.bak").write_text("mine")
    (beside / "upstream.conf.20261122.bak").write_text("mine")
    for kv in (0.1, 0.95, 0.8):
        stack.nodes[0].load["kv"] = kv
        stack.upstream.write_text(stack.upstream.read_text() + "# edited\n")
        stack.run()
    assert stack.script("rollback").returncode == 0
    assert (beside / "upstream.conf.20261122.bak").exists()


def test_an_include_of_all_files_does_not_take_our_copies_in(stack: Stack) -> None:
    conf = stack.directory / "nginx.conf"
    conf.write_text(conf.read_text().replace(str(stack.upstream), f"{stack.upstream.parent}/*"))
    overload(stack)
    stack.upstream.write_text(stack.upstream.read_text() + "# edited\n")
    assert_published(stack)


def test_the_lock_of_what_publishes_is_for_root_alone(stack: Stack) -> None:
    stack.run()
    assert (stack.upstream.parent / ".lock").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_stops_nothing(stack: Stack) -> None:
    overload(stack)
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        command = [PYTHON, str(SCRIPT), "--config", str(stack.write_config())]
        assert subprocess.run([*command, "run"], stderr=full, check=False).returncode == 0
        assert stack.weights()["node-a"] == 10
        done = subprocess.run([*command, "status"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def records(stack: Stack) -> list[str]:
    """Return the names of the records beside the upstream file."""
    return sorted(path.name for path in stack.upstream.parent.glob(".upstream.conf.*.json"))


def test_what_does_not_go_live_leaves_no_record(stack: Stack) -> None:
    stack.run()
    before = records(stack)
    in_the_way = stack.upstream.parent / ".upstream.conf.copy.new"
    in_the_way.mkdir()
    for kv in (0.95, 0.8):
        stack.nodes[0].load["kv"] = kv
        stack.run(1)
    assert records(stack) == before
    in_the_way.rmdir()
    stack.run()
    assert len(records(stack)) == len(before) + 1


def test_an_old_backup_that_the_operator_puts_back_becomes_the_newest(stack: Stack) -> None:
    stack.run()
    first = stack.generation()
    stack.nodes[0].load["kv"] = 0.95
    stack.run()
    oldest = stack.backups()[-1].read_text()
    stack.upstream.write_text(oldest)
    subprocess.run([*stack.nginx, "-s", "reload"], check=True)
    stack.await_generation(first)
    stack.nodes[0].load["kv"] = 0.1
    stack.run()
    assert stack.status()["outcome"] == "unchanged"
    assert stack.backups()[0].read_text() == oldest
    newest = stack.backups()[0].stat()
    stack.run()
    assert stack.backups()[0].stat() == newest, "it is written once"


def test_with_consistent_hash_weights_that_nginx_rounds_alike_wait(stack: Stack) -> None:
    stack.config["pools"][0]["method"] = "consistent_hash"
    stack.config["nginx"]["min_weight_change_ratio"] = 0.1
    stack.config["policies"] = {"stepped": {"levels": [20, 15], "kv_cache": [{"at_least": 0.9, "weight": 15}]}}
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    assert stack.script("run").returncode == 0
    assert stack.status()["deferred_cause"] == "deadband"


def test_a_confirm_url_that_does_not_speak_http_is_no_traceback(stack: Stack) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as server, authority.cert_pem.tempfile() as trusted:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with context.wrap_socket(connection, server_side=True) as client:
                        client.sendall(b"220 mail\r\n")

        threading.Thread(target=greet, daemon=True).start()
        stack.config["nginx"]["confirm_url"] = f"https://127.0.0.1:{server.getsockname()[1]}/generation"
        assert stack.script("collect").returncode == 0
        done = stack.script("apply", SSL_CERT_FILE=trusted)
    assert done.returncode == 1
    assert "(the answer is not http): is it running?" in done.stderr
