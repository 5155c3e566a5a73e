"""Group 10: a state directory that is damaged or somebody else's, and a reboot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import stack
import ticks

if TYPE_CHECKING:
    from clients import Clients

STATE = "/var/lib/vllm-nginx-lb"


@pytest.mark.fault(
    10,
    "the state directory belongs to somebody else",
    sees="reloaded: generation",
    keeps="all: the next tick owns its state again",
)
@pytest.mark.parametrize("owner", ["root:root", "nobody:nogroup"])
def test_the_state_is_somebody_elses(owner: str) -> None:
    with ticks.drained("node-c"):
        stack.on_ingress("chown", "--recursive", owner, STATE)
        assert ticks.tick()
        ticks.await_out("node-c")
    owners = stack.on_ingress("stat", "--format=%U", STATE, f"{STATE}/plan.json", f"{STATE}/memory.json").split()
    assert owners == ["vllm-nginx-lb"] * 3


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            f"truncate --size=20 {STATE}/memory.json",
            marks=pytest.mark.fault(
                10,
                "memory.json is truncated",
                sees="memory of earlier ticks dropped, starting afresh: …memory.json is not JSON",
                keeps="all: every node is judged by what it says now",
            ),
            id="memory-truncated",
        ),
        pytest.param(
            f"""echo '{{"version": 0, "nodes": []}}' >{STATE}/memory.json""",
            marks=pytest.mark.fault(
                10,
                "memory.json is of another version",
                sees="memory of earlier ticks dropped, starting afresh: ",
                keeps="all: every node is judged by what it says now",
            ),
            id="memory-of-another-version",
        ),
        pytest.param(
            f"truncate --size=20 {STATE}/status.json",
            marks=pytest.mark.fault(
                10,
                "status.json is truncated",
                sees="/var/lib/vllm-nginx-lb/status.json is not JSON",
                keeps="all: nothing is decided by it, and the next tick writes it anew",
            ),
            id="status-truncated",
        ),
        pytest.param(
            f"""echo '{{"version": 0}}' >{STATE}/status.json""",
            marks=pytest.mark.fault(
                10,
                "status.json is of another version",
                sees="/var/lib/vllm-nginx-lb/status.json is not one of this version's",
                keeps="all: nothing is decided by it, and the next tick writes it anew",
            ),
            id="status-of-another-version",
        ),
        pytest.param(
            f"truncate --size=20 {STATE}/plan.json",
            marks=pytest.mark.fault(
                10,
                "plan.json is truncated",
                sees="/var/lib/vllm-nginx-lb/plan.json is not JSON",
                keeps="the last upstream serves; the next tick writes a new plan",
            ),
            id="plan-truncated",
        ),
        pytest.param(
            f"""echo '{{"version": 0}}' >{STATE}/plan.json""",
            marks=pytest.mark.fault(
                10,
                "plan.json is of another version",
                sees="plan refused: ",
                keeps="the last upstream serves; the next tick writes a new plan",
            ),
            id="plan-of-another-version",
        ),
    ],
)
def test_a_file_of_the_state_is_damaged(damage: str, heard: list[str]) -> None:
    ticks.shell(damage)
    # The commands that read status.json and plan.json: the tick writes both anew before it needs them.
    heard += [ticks.balancer(command).stderr for command in ("status", "apply")]
    assert ticks.tick()
    assert ticks.balancer("status").returncode == 0
    assert set(stack.weights().values()) == {100}


@pytest.mark.fault(
    10,
    "the ingress reboots",
    sees="unchanged … s ago",
    keeps="after the boot nginx serves what it served before, and the timer ticks",
)
def test_the_ingress_reboots(clients: Clients, heard: list[str]) -> None:
    with ticks.drained("node-c"):
        assert ticks.tick()
        with clients.pause:
            before = stack.published()
            rebooted_at = datetime.now(UTC)
            stack.podman("stop", "--time=60", stack.container("ingress-1"))
            stack.podman("start", stack.container("ingress-1"))
            stack.wait_until(
                lambda: stack.attempt("ingress-1", "systemctl", "is-active", "nginx").returncode == 0, 60, "nginx is up"
            )
            assert stack.published() == before
        stack.wait_until(
            lambda: datetime.fromisoformat(stack.status()["decided_at"]) > rebooted_at,
            within_seconds=6 * stack.INTERVAL_SECONDS,
            what="the timer ticks by itself",
        )
        heard.append(ticks.balancer("status").stdout)
        ticks.await_out("node-c")
        assert set(stack.shares(20)) == {"node-a", "node-b"}
    assert ticks.tick()
    assert set(stack.weights().values()) == {100}
