"""Group 7: nodes that go, hang and return, with the balancer `work`: Lua in nginx sees them before the script does.

An operator switches the balancer before the first of these tests. They come last: nobody switches it back.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import openai
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
STREAMS, TOKENS = 6, 400
# Lua ejects a node that three clients have left after five seconds without an answer.
REQUESTS, PATIENCE_SECONDS, MOST_LOST = 80, 6, 12


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


@contextmanager
def stopped() -> Iterator[None]:
    """Let the node's process stand still (SIGSTOP). The kernel goes on to accept its connections."""
    on_machine("kill", "--signal=STOP")
    try:
        yield
    finally:
        on_machine("kill", "--signal=CONT")


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


@pytest.mark.fault(
    7,
    "hangs (SIGSTOP), with the balancer `work`",
    sees="llm_cluster/node-c: down: no answer within … s, 3 in a row",
    keeps="every request: the other nodes get the new ones; those at the node are answered when it goes on",
)
def test_a_node_hangs() -> None:
    with asking(6):
        with stopped():
            for _ in range(3):
                assert ticks.tick()
            assert stack.weights()[NODE] == 0
            assert set(stack.shares(20)) <= OTHERS
        await_return()


@pytest.mark.fault(
    7,
    "accepts requests and answers none, with the balancer `work`",
    sees="10.231.79.23:18090 gets no requests for … s: clients leave it without an answer, and another node answers",
    keeps="all but the few requests that clients give up; its metrics are well all the time",
)
def test_a_node_accepts_and_never_answers(heard: list[str]) -> None:
    before = logged()
    stack.control(NODE, faults={"hang": {"scope": "api"}})
    try:
        gone = impatient(REQUESTS, PATIENCE_SECONDS)
        assert 0 < gone <= MOST_LOST
        assert ticks.tick()
    finally:
        stack.control(NODE, faults={"hang": None})
    heard += lines_after(before)
    await_return()


def impatient(requests: int, seconds: float) -> int:
    """Send requests, four at a time; return how many had no answer in time. No other may fail."""
    question: dict[str, Any] = {"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": "there?"}]}
    with stack.client() as user, ThreadPoolExecutor(max_workers=4) as pool:
        hasty = user.with_options(timeout=seconds)

        def gives_up(_: int) -> bool:
            try:
                hasty.chat.completions.create(**question)
            except openai.APITimeoutError:
                return True
            return False

        return sum(pool.map(gives_up, range(requests)))


@pytest.mark.fault(
    7,
    "stalls in the middle of streams, with the balancer `work`",
    sees="llm_cluster/node-c: unknown: no answer within … s (1 of 3), last weight held",
    keeps="the streams of the other nodes; its own go on with it, to their last token",
)
def test_a_node_stalls_in_the_middle_of_streams() -> None:
    question = {"model": "sim", "max_tokens": TOKENS, "messages": [{"role": "user", "content": "tell me a lot"}]}
    with stack.client() as user, ExitStack() as opened:
        streams = [opened.enter_context(stream(user, question)) for _ in range(STREAMS)]
        at_node = [pieces for node, pieces in streams if node == NODE]
        elsewhere = [pieces for node, pieces in streams if node != NODE]
        assert at_node
        assert elsewhere
        for pieces in at_node:
            next(pieces)
        with stopped():
            read = [len(list(pieces)) for pieces in elsewhere]
            assert ticks.tick()
        read += [1 + len(list(pieces)) for pieces in at_node]
    assert read == [TOKENS] * STREAMS
    await_return()


@contextmanager
def stream(user: openai.OpenAI, question: dict[str, Any]) -> Iterator[tuple[str, Iterator[str]]]:
    """Open a stream; yield the node that answers and an iterator over its tokens."""
    with user.chat.completions.with_streaming_response.create(stream=True, **question) as answer:
        [node] = [name for name, address in stack.ADDRESSES.items() if address == answer.headers["x-upstream-addr"]]
        yield node, (line for line in answer.iter_lines() if '"content":"word' in line)
