"""What an operator does on some other day, on two ingress hosts at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import entries
import openai
import stack

if TYPE_CHECKING:
    from pathlib import Path


def test_a_node_is_drained_everywhere_until_it_runs_nothing() -> None:
    pieces: list[object] = []
    with entries.client(entries.HOSTS["ingress-2"]) as user:
        stream = user.chat.completions.create(
            model="sim", max_tokens=300, stream=True, messages=[{"role": "user", "content": "a long one"}]
        )
        busy = next(iter(stream)).system_fingerprint
        assert busy
        node = busy.replace("sim", "node")
        reader = threading.Thread(target=lambda: pieces.extend(stream))
        reader.start()
        entries.play("playbooks/drain.yml", "-e", f"node={node}")
        reader.join()
    assert len(pieces) >= 299, "the stream came to its end"
    for host, address in entries.HOSTS.items():
        assert (stack.nodes(host)[node]["state"], stack.nodes(host)[node]["running"]) == ("drained", 0)
        with entries.client(address) as user:
            assert busy not in {entries.complete(user).system_fingerprint for _ in range(10)}
    entries.play("playbooks/undrain.yml", "-e", f"node={node}")
    assert {stack.nodes(host)[node]["state"] for host in entries.HOSTS} == {"up"}


def test_nodes_are_restarted_in_turn_and_nobody_notices(tmp_path: Path) -> None:
    done, failures = threading.Event(), []

    def ask() -> None:
        with entries.client(entries.HOSTS["ingress-1"]) as user:
            while not done.wait(0.2):
                try:
                    entries.complete(user)
                except openai.OpenAIError as error:
                    failures.append(repr(error))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        machine = f"{stack.container('sim')}-${{VLLM_NODE_NAME#node-}}"
        restart = f"podman exec {machine} systemctl restart vllm-sim && echo $VLLM_NODE_NAME >> {tmp_path}/order"
        entries.play(
            "playbooks/rolling.yml", "-e", json.dumps({"rolling_command": restart, "rolling_nodes": "node-a,node-b"})
        )
    finally:
        done.set()
        asker.join()
    assert (tmp_path / "order").read_text().split() == ["node-a", "node-b"]
    assert failures == []


def test_a_host_that_was_away_is_told_of_a_drain() -> None:
    away = stack.container("ingress-2")
    stack.podman("pause", away)
    try:
        hosts = stack.SCENARIO / "inventory" / "hosts.yml"
        given = json.dumps({"node": "node-a", "reason": "a fan is broken", "ansible_ssh_retries": 0})
        done = stack.play("-i", hosts, "playbooks/drain.yml", "-e", given)
    finally:
        stack.podman("unpause", away)
    assert done.returncode != 0
    assert "ingress-2 did not answer, or refused; node-a is drained on ingress-1 alone." in done.stdout
    assert [stack.nodes(host)["node-a"]["state"] for host in entries.HOSTS] == ["drained", "up"]

    entries.play("playbooks/drains.yml")
    told = [stack.nodes(host)["node-a"] for host in entries.HOSTS]
    assert {(node["state"], node["drain_reason"]) for node in told} == {("drained", "a fan is broken")}
    assert len({node["drained_since"] for node in told}) == 1
    with entries.client(entries.HOSTS["ingress-2"]) as user:
        assert "sim-a" not in {entries.complete(user).system_fingerprint for _ in range(10)}
    entries.play("playbooks/undrain.yml", "-e", "node=node-a")
    assert {stack.nodes(host)["node-a"]["state"] for host in entries.HOSTS} == {"up"}


def test_what_ctrl_c_ended_is_seen_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """The command waits until it may go on, at the latest for two minutes: Ansible's end may leave it running."""
    machine = f"{stack.container('sim')}-${{VLLM_NODE_NAME#node-}}"
    command = (
        f"touch {tmp_path}/$VLLM_NODE_NAME; n=0; "
        f"until [ -e {tmp_path}/go ] || [ $((n = n + 1)) -gt 1200 ]; do sleep 0.1; done; "
        f"[ -e {tmp_path}/go ] && podman exec {machine} systemctl restart vllm-sim"
    )
    given = {"rolling_command": command, "rolling_nodes": "node-a,node-b", "rolling_batch": 2}
    arguments = ["playbooks/rolling.yml", "-e", json.dumps(given)]
    started = subprocess.Popen(
        [stack.ANSIBLE_PLAYBOOK, "-i", stack.SCENARIO / "inventory" / "hosts.yml", *arguments],
        cwd=stack.PROJECT,
        env=os.environ | {"ANSIBLE_CONFIG": str(stack.PROJECT / "ansible.cfg")},
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        stack.wait_until((tmp_path / "node-a").exists, 120, "the command runs")
        os.killpg(started.pid, signal.SIGINT)
        assert started.wait(60) != 0
    finally:
        started.kill()
    for host in entries.HOSTS:
        assert [stack.nodes(host)[name]["state"] for name in ("node-a", "node-b")] == ["drained", "up"]
        assert "0 of 2 nodes done" in stack.run(host, "vllm-nginx-lb", "drains")

    (tmp_path / "go").touch()
    said = entries.play(*arguments)
    assert "In turn: node-a, node-b" in said
    assert "batches of 1 instead of 2, so that 1 of 2 nodes serve" in said
    for host in entries.HOSTS:
        assert {node["state"] for node in stack.nodes(host).values()} == {"up"}


def test_the_status_of_every_host_is_shown() -> None:
    said = entries.play("playbooks/status.yml")
    assert all(name in said for name in (*entries.HOSTS, "node-a", "node-b", "node-c"))


def test_nodes_of_the_same_inventory_are_no_change_and_the_closing_line_says_so() -> None:
    said = " ".join(entries.play("playbooks/nodes.yml").split())
    assert said.count("https://llm.test/v1 serves 3 nodes: 3 up; changed: nothing") == len(entries.HOSTS)
