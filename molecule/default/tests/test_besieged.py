"""Attackers open connections and send half requests: /health, the status port and the tick still answer this host."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import stack

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = stack.INGRESS["container_ip"]
PROGRAM = (stack.PROJECT / "molecule" / "shared" / "files" / "half_requests.py").read_text(encoding="utf-8")
PROBE = stack.PROJECT / "molecule" / "shared" / "roles" / "containers" / "files" / "has_nftables.sh"
# The role's defaults, with the worker_connections of the inventory
ALL = stack.INGRESS["nginx_ingress_worker_connections"] * 7 // 16
EACH = min(2048, ALL // 2)
ATTEMPTS = 3000  # of each attacker in a round
ASK = """
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).status)
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module", autouse=True)
def nftables() -> None:
    """Skip all, and say why, where the kernel of this host refuses the rules."""
    said = subprocess.run([PROBE], check=True, capture_output=True, text=True).stdout.strip()
    if said != "yes":
        pytest.skip(f"this host's kernel refuses nftables: {said}")


class Attacker:
    """An attacker on one of the machines."""

    def __init__(self, machine: str) -> None:
        """Begin."""
        command = [stack.PODMAN, "exec", "--interactive", stack.container(machine), "python3", "-c", PROGRAM]
        self.process = subprocess.Popen(
            [*command, ADDRESS, "8080", str(ATTEMPTS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def connections(self) -> int:
        """Wait for the end of a round, and return how many connections are open then."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def stop(self) -> None:
        """End all connections."""
        self.process.communicate()


@contextmanager
def attackers(*machines: str) -> Iterator[list[Attacker]]:
    """Attack from some machines at once."""
    with ExitStack() as ended:
        found = []
        for machine in machines:
            found.append(Attacker(machine))
            ended.callback(found[-1].stop)
        yield found


def ask(machine: str, url: str) -> str:
    """Return the status that a machine gets, or its error."""
    return stack.run(machine, "python3", "-c", ASK, url).strip()


def assert_status_and_tick_are_alive() -> None:
    """Make sure that this host can ask both servers, and that a tick reads all nodes and confirms its weights."""
    assert ask("ingress-1", "http://127.0.0.1:8080/health") == "200"
    assert ask("ingress-1", "http://127.0.0.1:18091/") == "200"
    before = stack.status()["decided_at"]
    stack.on_ingress("systemctl", "start", "vllm-nginx-lb.service")
    after = stack.status()
    assert after["decided_at"] != before
    assert (after["error"], {node["state"] for node in stack.nodes().values()}) == (None, {"up"})


def test_one_address_takes_its_connections_and_no_more() -> None:
    with attackers("sim-a") as (attacker,):
        stack.wait_until(lambda: attacker.connections() == EACH, 60, f"the attacker has {EACH} connections")
        assert ask("sim-b", f"http://{ADDRESS}:8080/v1/models") == "200"
        assert ask("sim-b", f"http://{ADDRESS}:8080/health") == "200"
        assert_status_and_tick_are_alive()
        assert attacker.connections() <= EACH


def test_many_addresses_leave_room_for_the_status_server_and_the_tick() -> None:
    with attackers("sim-a", "sim-b", "sim-c") as all_of_them:
        # Connections that the kernel has refused or forgotten count for a moment.
        stack.wait_until(
            lambda: sum(each.connections() for each in all_of_them) > ALL * 0.95, 120, f"they have about {ALL}"
        )
        assert_status_and_tick_are_alive()
        assert sum(each.connections() for each in all_of_them) <= ALL
    stack.wait_until(lambda: ask("sim-d", f"http://{ADDRESS}:8080/v1/models") == "200", 60, "clients are back")


def test_the_status_server_is_not_in_the_kernels_table_of_connections() -> None:
    rules = json.loads(stack.on_ingress("nft", "--json", "list", "chain", "inet", "vllm_nginx_lb", "output"))
    assert json.dumps(rules).count('"notrack"') == 2
