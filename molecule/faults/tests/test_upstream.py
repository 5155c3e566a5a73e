"""What differs with the balancer `upstream`: nginx gets weights and nodes by a reload, and keeps them without one.

The life of a site with the default balancer is in the scenario `default`.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import stack
import ticks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNITS = ("vllm-nginx-lb.service", "vllm-nginx-lb.timer")


@contextmanager
def overloaded(node: str) -> Iterator[None]:
    """Send a node more than it can take, past the ingress, from the spare machine."""
    stack.podman("cp", str(stack.PROJECT / "molecule/shared/files/overload.py"), f"{stack.container('sim-d')}:/root")
    # The spare machine is a node, too: it has the nodes' key.
    options = ["--unit=overload", "--property=EnvironmentFile=/etc/vllm-sim.env"]
    load = ["python3", "/root/overload.py", f"http://{stack.ADDRESSES[node]}", "40"]
    stack.run("sim-d", "systemd-run", *options, *load)
    try:
        yield
    finally:
        stack.run("sim-d", "systemctl", "stop", "overload.service")


def play(*arguments: str | Path) -> None:
    """Run a playbook as the operator, which must succeed."""
    done = stack.play(*arguments)
    assert done.returncode == 0, done.stdout


def test_ticks_that_change_nothing_neither_reload_nor_say_anything() -> None:
    assert ticks.tick()
    before = (stack.generation(), stack.workers())
    said = stack.journal()
    for _ in range(6):
        assert ticks.tick()
        assert stack.status()["outcome"] == "unchanged"
    assert (stack.generation(), stack.workers()) == before
    later = stack.journal()[len(said) :]
    noise = [each for each in later if each["SYSLOG_IDENTIFIER"] == "vllm-nginx-lb" or int(each["PRIORITY"]) > 4]
    assert noise == []


def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    stack.on_ingress("systemd-analyze", "verify", "--man=no", *(f"/etc/systemd/system/{unit}" for unit in UNITS))
    # The threshold is ten times the exposure.
    stack.on_ingress("systemd-analyze", "security", "--threshold=20", ticks.SERVICE)


def test_nodes_are_read_without_privileges_and_applied_as_root() -> None:
    owners = stack.on_ingress(
        "stat", "--format=%n %U", "/var/lib/vllm-nginx-lb/plan.json", stack.STATUS_FILE, stack.published_file()
    )
    assert dict(line.split() for line in owners.splitlines()) == {
        "/var/lib/vllm-nginx-lb/plan.json": "vllm-nginx-lb",
        stack.STATUS_FILE: "root",
        stack.published_file(): "root",
    }


def test_an_overloaded_node_gets_less_until_the_load_ends() -> None:
    before, workers = stack.generation(), stack.workers()
    with overloaded("node-a"):
        # Waiting requests and a full batch are one level each.
        stack.wait_until(lambda: ticks.tick() and stack.weights()["node-a"] <= 30, 60, "node-a is two levels down")
        ticks.await_live()
        assert stack.generation() != before
        assert stack.workers() != workers, "weights go live by a reload"
        answered = stack.shares(200)
        assert answered["node-a"] < min(answered["node-b"], answered["node-c"]) / 2, answered
        assert answered["node-a"] > 0, "a trickle must reach the node, or nobody sees that it recovered"
    assert any(entry.get("VLLM_NGINX_LB_OUTCOME") == "reloaded" for entry in stack.journal("PRIORITY=5")), (
        "the journal has the reload in fields"
    )
    assert "weight 100 -> " in ticks.balancer("explain", "node-a").stdout

    stack.wait_until(
        lambda: ticks.tick() and set(stack.weights().values()) == {100}, within_seconds=90, what="all weigh 100 again"
    )
    ticks.await_live()
    assert "node-a" in stack.shares(30)


def test_nodes_come_and_go_with_the_inventory(tmp_path: Path) -> None:
    inventory = shutil.copytree(ticks.INVENTORY, tmp_path / "inventory")
    hosts = inventory / "hosts.yml"
    kept = [line for line in hosts.read_text(encoding="utf-8").splitlines() if not line.startswith("    node-b:")]
    address = stack.ADDRESSES["node-d"].partition(":")[0]
    hosts.write_text("\n".join([*kept, f"    node-d: {{ansible_host: {address}}}", ""]), encoding="utf-8")

    play(f"--inventory={hosts}", ticks.VAULT, "site.yml")

    try:
        assert set(stack.nodes()) == {"node-a", "node-c", "node-d"}
        ticks.await_live(stack.ADDRESSES["node-d"])
        assert stack.ADDRESSES["node-b"] not in stack.published()
        stack.wait_until(lambda: set(stack.shares(40)) == {"node-a", "node-c", "node-d"}, 60, "node-d answers")
    finally:
        play(*ticks.OPERATOR, *ticks.QUICKLY, "playbooks/balancer.yml")
    stack.wait_until(
        lambda: ticks.tick() and set(stack.shares(40)) == {"node-a", "node-b", "node-c"}, 60, "node-b answers again"
    )


def test_a_rollback_makes_the_former_upstream_live_until_the_operator_resumes() -> None:
    with ticks.drained("node-c"):
        assert ticks.tick()
        ticks.await_out("node-c")
        former = stack.generation()
    assert ticks.tick()
    ticks.await_live()
    assert stack.generation() != former

    play(*ticks.OPERATOR, "playbooks/rollback.yml")

    try:
        assert f'"{stack.generation()}"' in stack.published()
        assert f"{stack.ADDRESSES['node-c']} down" in stack.published()
        status = stack.status()
        assert (status["outcome"], status["generation"]) == ("rolled_back", stack.generation())
        assert stack.on_ingress("systemctl", "is-active", ticks.TIMER, check=False).strip() == "inactive"
        assert set(stack.shares(20)) == {"node-a", "node-b"}
    finally:
        play(*ticks.OPERATOR, "playbooks/resume.yml")
    assert stack.on_ingress("systemctl", "is-active", ticks.TIMER).strip() == "active"
    stack.wait_until(lambda: ticks.tick() and "node-c" in stack.shares(20), 60, "node-c answers again")
