"""An interrupted run loses nothing: the next run makes the host run what is on disk. Refused ports, as well."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import entries
import openai
import pytest
import stack

LEAVER = {"name": "leaver", "key": "key-of-one-who-leaves"}
HOLDER = "import socket, time; s = socket.create_server(('', 8099)); time.sleep(600)"


def interrupt(at: str, *arguments: str) -> None:
    """Run a playbook on the scenario's site, and kill it when it begins a task, as the end of a terminal may.

    With SIGINT, the moment is not certain: Ansible heeds it between some steps only, and a second one can leave its
    processes waiting for each other for good. Ctrl-C itself is tested with rolling.yml.
    """
    hosts = str(stack.SCENARIO / "inventory" / "hosts.yml")
    # With -v, Ansible prints each task as it begins.
    command = [str(stack.ANSIBLE_PLAYBOOK), "-v", "-i", hosts, *arguments]
    environment = os.environ | {"ANSIBLE_CONFIG": str(stack.PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    with subprocess.Popen(
        command,
        cwd=stack.PROJECT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as running:
        assert running.stdout
        said = ""
        for line in running.stdout:
            said += line
            if at in said:
                os.killpg(running.pid, signal.SIGKILL)
                break
    assert at in said, said
    assert running.returncode == -signal.SIGKILL, said


def changes(*arguments: str) -> dict[str, int]:
    """Run a playbook, and return how many tasks changed something on each host."""
    said = entries.play(*arguments)
    return {host: int(count) for host, count in re.findall(r"(\S+) : ok=\d+ changed=(\d+)", said)}


def is_let_in(host: str, key: str) -> bool:
    """Tell whether a client's key is good."""
    with entries.client(entries.HOSTS[host], key) as user:
        try:
            user.models.list()
        except openai.AuthenticationError:
            return False
    return True


@pytest.fixture(scope="module")
def _a_key_is_removed_and_the_run_interrupted() -> None:
    clients = [*stack.INVENTORY["ingress"]["vars"]["nginx_ingress_clients"], LEAVER]
    entries.play("playbooks/ingress.yml", "-e", json.dumps({"nginx_ingress_clients": clients}))
    for host in entries.HOSTS:
        assert is_let_in(host, LEAVER["key"])
        interrupt("Take | Test the configuration of nginx", "playbooks/ingress.yml", "--limit", host)


@pytest.mark.usefixtures("_a_key_is_removed_and_the_run_interrupted")
def test_a_key_that_an_interrupted_run_removed_is_refused_after_the_next_run() -> None:
    for host in entries.HOSTS:
        assert LEAVER["key"] not in stack.run(host, "cat", "/etc/nginx/vllm-nginx-lb/parts/clients.conf")
        assert is_let_in(host, LEAVER["key"]), "the interrupted run has not reloaded nginx"
    assert all(count > 0 for count in changes("playbooks/ingress.yml").values())
    for host in entries.HOSTS:
        assert not is_let_in(host, LEAVER["key"])
        assert is_let_in(host, entries.KEYS["team-a"])
    assert changes("playbooks/ingress.yml") == dict.fromkeys(entries.HOSTS, 0)


def test_keepalived_reads_what_an_interrupted_run_has_written() -> None:
    def check() -> None:
        stack.run("ingress-2", "sha256sum", "--check", "--status", "/run/vllm-nginx-lb-keepalived.sha256")

    check()
    other = ("playbooks/keepalived.yml", "-e", "keepalived_check_fall=4")
    interrupt("Service | Find out what the unit does", *other)
    with pytest.raises(AssertionError):
        check()
    changed = changes(*other)
    assert changed["ingress-2"] > 0
    check()
    assert changes(*other)["ingress-2"] == 0
    entries.play("playbooks/keepalived.yml")
    check()


def test_a_timer_has_its_new_interval_after_an_interrupted_run() -> None:
    """The unit's file is written, and nobody told systemd."""
    timer = "/etc/systemd/system/vllm-nginx-lb.timer"
    stack.run("ingress-1", "sed", "--in-place", "s/^OnUnitActiveSec=.*/OnUnitActiveSec=5h/", timer)
    stack.run("ingress-1", "systemctl", "daemon-reload")
    stack.run("ingress-1", "systemctl", "restart", "vllm-nginx-lb.timer", "vllm-nginx-lb.service")
    interrupt("Service | Find out what the unit does", "playbooks/balancer.yml", "--limit", "ingress-1")
    stack.run("ingress-1", "grep", "--quiet", "OnUnitActiveSec=10s", timer)
    entries.play("playbooks/balancer.yml", "--limit", "ingress-1")
    decided = stack.status()["decided_at"]
    stack.wait_until(lambda: stack.status()["decided_at"] != decided, 60, "a tick of the timer")


@pytest.mark.parametrize("host", entries.HOSTS)
def test_a_port_that_another_program_holds_costs_the_host_nothing(host: str) -> None:
    files = "cat /etc/nginx/conf.d/* /etc/nginx/vllm-nginx-lb/parts/*.conf; readlink /etc/nginx/vllm-nginx-lb/parts"
    # The kernel's bounds are for the ports on which nginx listens. A host may have no nftables.
    bounds = "ls /etc/nginx/vllm-nginx-lb; nft list ruleset 2>/dev/null | grep dport"
    before = stack.run(host, "sh", "-c", f"{files}; {bounds} || true")
    stack.run(host, "systemd-run", "--unit=holder", "python3", "-c", HOLDER)
    try:
        stack.wait_until(lambda: ":8099 " in stack.run(host, "ss", "-ltn"), 20, "the port is held")
        hosts = str(stack.SCENARIO / "inventory" / "hosts.yml")
        done = stack.play(
            "-i", hosts, "playbooks/ingress.yml", "--limit", host, "-e", "nginx_ingress_tls_listen_port=8099"
        )
        assert done.returncode != 0, done.stdout
        assert re.search(r"python3 \(process \d+\) listens on \S*:8099", done.stdout), done.stdout
        assert "The former configuration is back in its place" in done.stdout
        assert stack.run(host, "sh", "-c", f"{files}; {bounds} || true") == before
        assert is_let_in(host, entries.KEYS["team-a"])
        stack.run(host, "systemctl", "restart", "nginx.service")
        assert is_let_in(host, entries.KEYS["team-a"])
    finally:
        stack.run(host, "systemctl", "stop", "holder.service")


@pytest.mark.parametrize("host", entries.HOSTS)
def test_other_users_cannot_read_the_access_log(host: str) -> None:
    mode = stack.run(host, "stat", "--format=%a %G", "/var/log/nginx/upstream_trace.log").strip()
    assert mode == "640 adm"
