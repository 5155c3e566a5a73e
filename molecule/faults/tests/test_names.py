"""Group 8: the names of nodes, asked of a real name server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import stack
import ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

RESOLVER = "sim-d"


@contextmanager
def name_changed(expression: str) -> Iterator[None]:
    """Edit the name server's list of nodes with sed, and put it back."""
    reread = "systemctl kill --signal=HUP dnsmasq"
    stack.run(RESOLVER, "sh", "-euc", f"sed -i.kept '{expression}' /etc/nodes.hosts; {reread}")
    try:
        yield
    finally:
        stack.run(RESOLVER, "sh", "-euc", f"mv /etc/nodes.hosts.kept /etc/nodes.hosts; {reread}")


@contextmanager
def resolver_hanging() -> Iterator[None]:
    """Let the name server take questions and answer none."""
    stack.run(RESOLVER, "systemctl", "kill", "--signal=STOP", "dnsmasq")
    try:
        yield
    finally:
        stack.run(RESOLVER, "systemctl", "kill", "--signal=CONT", "dnsmasq")


def wait_for_all_nodes() -> None:
    """Tick until every node has its full weight back."""
    stack.wait_until(
        lambda: ticks.tick() and set(stack.weights().values()) == {100}, within_seconds=90, what="all weigh 100 again"
    )


@pytest.mark.fault(
    8,
    "the name of one node stops resolving",
    sees="llm_cluster/node-b: up: …; its name does not resolve (name or service not known), last address used",
    keeps="all, that node too: it is scraped and served at its last address",
)
def test_one_name_stops_resolving() -> None:
    with name_changed("/node-b.test/d"):
        for _ in range(4):
            assert ticks.tick()
            assert stack.ADDRESSES["node-b"] in stack.published()
            assert set(stack.weights().values()) == {100}
        assert set(stack.shares(20)) == {"node-a", "node-b", "node-c"}
    wait_for_all_nodes()


@pytest.mark.fault(
    8,
    "the name of a node leads to another address",
    sees="reloaded: generation",
    keeps="all: the next tick sends its share to the new address",
)
def test_a_name_changes_address() -> None:
    new = stack.ADDRESSES["node-d"].partition(":")[0]
    with name_changed(f"s/.* node-b.test/{new} node-b.test/"):
        assert ticks.tick()
        assert stack.ADDRESSES["node-d"] in stack.published()
        assert stack.ADDRESSES["node-b"] not in stack.published()
        stack.wait_until(lambda: set(stack.shares(20)) == {"node-a", "node-c", "node-d"}, 30, "traffic goes there")
    wait_for_all_nodes()
    assert stack.ADDRESSES["node-d"] not in stack.published()


@pytest.mark.fault(
    8,
    "the name server hangs",
    sees="llm_cluster/node-b: up: …; its name does not resolve (the resolver does not answer), last address used",
    keeps="all, at their last addresses; the tick ends in time",
)
def test_the_resolver_hangs() -> None:
    with resolver_hanging():
        for _ in range(4):
            assert ticks.tick()
            for node in stack.nodes():
                assert f"{stack.ADDRESSES[node]} weight=100 " in stack.published()
    wait_for_all_nodes()
