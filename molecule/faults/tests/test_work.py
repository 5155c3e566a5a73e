"""Group 7: nodes that go, hang and return, with the balancer `work`: Lua in nginx sees them before the script does.

An operator switches the balancer before the first of these tests. They come last: nobody switches it back.
"""

from __future__ import annotations

import json
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

    from clients import Clients

NODE, MACHINE, UNIT = "node-c", "sim-c", "vllm-sim.service"
OTHERS = {"node-a", "node-b"}
ERROR_LOG = "/var/log/nginx/error.log"
LOADING_TICKS = 12  # two minutes of the timer's ticks
STREAMS, TOKENS = 6, 600
# Lua ejects a node that so many clients have left, each after five seconds without an answer.
LEAVERS = 3
CROWD, PATIENCE_SECONDS = 12, 7


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


def at_node(what: str) -> int:
    """Return a number that Lua knows of the node: its open `streams`, or `picks`, how often it was chosen."""
    nodes = json.loads(stack.status_answer("/work"))["nodes"]
    return int(next(node[what] for node in nodes if node["node"] == NODE))


def on_machine(*command: str) -> None:
    """Run systemctl on the node's machine."""
    stack.run(MACHINE, "systemctl", *command, UNIT)


@contextmanager
def asking(clients: int = 0) -> Iterator[list[Clients]]:
    """Let clients ask during the block and until the node is back: it has its weight and answers again.

    None of their requests may fail.
    """
    with ExitStack() as running:
        them = [running.enter_context(keep_asking()) for _ in range(clients)]
        try:
            yield them
        finally:
            # Without it, a test that fails would be the fault of the next one.
            stack.wait_until(
                lambda: ticks.tick() and stack.weights()[NODE] == 100 and NODE in stack.shares(30),
                within_seconds=90,
                what=f"{NODE} answers again",
            )


def connections() -> int:
    """Return how many connections nginx has to the node, idle ones included."""
    return len(stack.on_ingress("ss", "-Htn", "state", "established", "dst", stack.ADDRESSES[NODE]).splitlines())


@contextmanager
def paused(*clients: Clients) -> Iterator[None]:
    """Let clients pause, and begin when nginx has no idle connection to the node.

    A process that stood still and goes on closes connections that were idle for too long, before it sees that one of
    them has a request. nginx tries that request elsewhere, but not after nginx_ingress_next_upstream_timeout_seconds,
    and this machine may be slower than that.
    """
    with ExitStack() as waiting:
        for them in clients:
            waiting.enter_context(them.pause)
        stack.wait_until(lambda: connections() == at_node("streams"), 20, "no connection is idle")
        yield


@contextmanager
def stopped(*clients: Clients) -> Iterator[None]:
    """Let the node's process stand still (SIGSTOP), and clients ask meanwhile. The kernel accepts their connections."""
    with paused(*clients):
        on_machine("kill", "--signal=STOP")
    try:
        yield
    finally:
        on_machine("kill", "--signal=CONT")


@contextmanager
def holding() -> Iterator[None]:
    """Let the node accept requests and answer none. It answers what it holds at the end."""
    stack.control(NODE, faults={"hang": {"scope": "api"}})
    try:
        yield
    finally:
        stack.control(NODE, faults={"hang": None})


def crowd(patience_seconds: float) -> int:
    """Let clients ask all at once; return how many had no answer in time. No request may fail otherwise."""
    question: dict[str, Any] = {"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": "there?"}]}
    with stack.client() as user, ThreadPoolExecutor(max_workers=CROWD) as pool:
        hasty = user.with_options(timeout=patience_seconds)

        def gives_up(_: int) -> bool:
            try:
                hasty.chat.completions.create(**question)
            except openai.APITimeoutError:
                return True
            return False

        return sum(pool.map(gives_up, range(CROWD)))


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


@pytest.mark.fault(
    7,
    "hangs (SIGSTOP), with the balancer `work`",
    sees="llm_cluster/node-c: down: no answer within … s, 3 in a row",
    keeps="every request: the others get the new ones; the node answers those on new connections when it goes on",
)
def test_a_node_hangs(clients: Clients) -> None:
    def gets_none() -> bool:
        """Ask, and tell whether the node was chosen for none. A worker may not have read the new weight yet."""
        before = at_node("picks")
        return crowd(patience_seconds=2) == 0 and at_node("picks") == before

    with asking(6) as six, stopped(clients, *six):
        for _ in range(3):
            assert ticks.tick()
        assert stack.weights()[NODE] == 0
        assert at_node("streams") > 0
        stack.wait_until(gets_none, within_seconds=20, what="the other nodes get all requests")


@pytest.mark.fault(
    7,
    "accepts requests and answers none, with the balancer `work`",
    sees="10.231.79.23:18090 gets no requests for … s: clients leave it without an answer, and another node answers",
    keeps="all but the few requests that clients give up; its metrics are well all the time",
)
def test_a_node_accepts_and_never_answers(heard: list[str]) -> None:
    before, left = logged(), []

    def is_ejected() -> bool:
        """Ask, and tell whether Lua has ejected the node. A busy node gets only a few of the requests."""
        left.append(crowd(PATIENCE_SECONDS))
        return "clients leave it" in "\n".join(lines_after(before))

    with asking(), holding():
        stack.wait_until(is_ejected, within_seconds=90, what="the node is ejected")
        assert ticks.tick()
        assert stack.weights()[NODE] == 100
    assert sum(left[:-1]) < LEAVERS <= sum(left)
    heard += lines_after(before)


@pytest.mark.fault(
    7,
    "stalls in the middle of streams, with the balancer `work`",
    sees="llm_cluster/node-c: unknown: no answer within … s (1 of 3), last weight held",
    keeps="the streams of the other nodes; its own go on with it, to their last token",
)
def test_a_node_stalls_in_the_middle_of_streams(clients: Clients) -> None:
    question = {"model": "sim", "max_tokens": TOKENS, "messages": [{"role": "user", "content": "tell me a lot"}]}
    with asking(), paused(clients), stack.client() as user, ExitStack() as opened:
        streams = [opened.enter_context(stream(user, question)) for _ in range(STREAMS)]
        its_own = [pieces for node, pieces in streams if node == NODE]
        elsewhere = [pieces for node, pieces in streams if node != NODE]
        assert its_own
        assert elsewhere
        for pieces in its_own:
            next(pieces)
        with stopped():
            read = [len(list(pieces)) for pieces in elsewhere]
            assert ticks.tick()
            assert at_node("streams") >= len(its_own)
        read += [1 + len(list(pieces)) for pieces in its_own]
    assert read == [TOKENS] * STREAMS


@contextmanager
def stream(user: openai.OpenAI, question: dict[str, Any]) -> Iterator[tuple[str, Iterator[str]]]:
    """Open a stream; yield the node that answers and an iterator over its tokens."""
    with user.chat.completions.with_streaming_response.create(stream=True, **question) as answer:
        [node] = [name for name, address in stack.ADDRESSES.items() if address == answer.headers["x-upstream-addr"]]
        yield node, (line for line in answer.iter_lines() if '"content":"word' in line)
