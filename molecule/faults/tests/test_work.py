"""Group 7: nodes that go, hang and return, with the balancer `work`: Lua in nginx sees them before the script does.

An operator switches the balancer before the first of these tests. They come last: nobody switches it back.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import stack
import ticks
from clients import keep_asking

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE, MACHINE, UNIT = "node-c", "sim-c", "vllm-sim.service"
OTHERS = {"node-a", "node-b"}
ERROR_LOG = "/var/log/nginx/error.log"
LOADING_TICKS = 12  # two minutes of the timer's ticks


@pytest.fixture(scope="module", autouse=True)
def work_balancer() -> None:
    """Switch to the balancer `work`, as an operator does, while clients ask."""
    with keep_asking():
        done = stack.play(*ticks.OPERATOR, "-e", "nginx_ingress_balancer=work", "site.yml")
    assert done.returncode == 0, done.stdout


def logged() -> int:
    """Return how many lines nginx's error log has."""
    return int(ticks.shell(f"wc --lines <{ERROR_LOG}"))


def lines_after(line: int) -> list[str]:
    """Return the lines of nginx's error log after one of them."""
    return ticks.shell(f"tail --lines=+{line + 1} {ERROR_LOG}").splitlines()


def on_machine(*command: str) -> None:
    """Run systemctl on the node's machine."""
    stack.run(MACHINE, "systemctl", *command, UNIT)


@contextmanager
def asking(clients: int) -> Iterator[None]:
    """Let clients ask during the block. Not one of their requests may fail."""
    with ExitStack() as running:
        for _ in range(clients):
            running.enter_context(keep_asking())
        yield


def await_return() -> None:
    """Tick until the node has its weight and answers again."""
    stack.wait_until(
        lambda: ticks.tick() and stack.weights()[NODE] == 100 and NODE in stack.shares(30), 90, f"{NODE} answers again"
    )


@pytest.mark.fault(
    7,
    "restarts, between two ticks, with the balancer `work`",
    sees="10.231.79.23:18090 gets no requests for … s: it",
    keeps="every request: those that it had got are answered by another node",
)
def test_a_node_restarts(heard: list[str]) -> None:
    before = logged()
    with asking(6):
        on_machine("restart")
        stack.wait_until(lambda: NODE in stack.shares(12), 30, "it answers without a tick")
    heard += lines_after(before)
    await_return()


@pytest.mark.fault(
    7,
    "loads its model for minutes, with the balancer `work`",
    sees="llm_cluster/node-c: down: connection refused, 3 in a row",
    keeps="every request; once it is up again, it has its share within seconds",
)
def test_a_node_loads_its_model_for_minutes() -> None:
    with asking(6):
        on_machine("stop")
        try:
            for _ in range(LOADING_TICKS):
                assert ticks.tick()
            assert stack.weights() == {"node-a": 100, "node-b": 100, NODE: 0}
            assert set(stack.shares(20)) == OTHERS
        finally:
            on_machine("start")
        await_return()
