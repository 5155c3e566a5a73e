"""What an operator does on some other day, on two ingress hosts at once."""

from __future__ import annotations

import json
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


def test_the_status_of_every_host_is_shown() -> None:
    said = entries.play("playbooks/status.yml")
    assert all(name in said for name in (*entries.HOSTS, "node-a", "node-b", "node-c"))


def test_nodes_of_the_same_inventory_are_no_change_and_the_closing_line_says_so() -> None:
    said = " ".join(entries.play("playbooks/nodes.yml").split())
    assert said.count("https://llm.test/v1 serves 3 nodes: 3 up; changed: nothing") == len(entries.HOSTS)
