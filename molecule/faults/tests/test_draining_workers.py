"""Group 13: old workers of nginx that finish their streams, as the service sees them from its sandbox."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import stack
import ticks

TOKENS = 3000  # a minute of tokens; the test makes the nodes ten times as fast for the rest


def set_speed(speed: float) -> None:
    """Let all nodes work at a speed."""
    for node in stack.nodes():
        stack.control(node, speed=speed)


def draining() -> int:
    """Run a tick, and return how many generations of workers it saw draining."""
    assert ticks.tick()
    return int(stack.status()["draining_generations"])


@pytest.mark.fault(
    13,
    "nginx is reloaded while a stream runs",
    sees="reloaded: generation …",
    keeps="the stream, to its last token; the sandboxed service counts the workers that finish it",
)
def test_draining_workers_are_counted_from_the_sandbox() -> None:
    question = {"model": "sim", "max_tokens": TOKENS, "messages": [{"role": "user", "content": "tell me a lot"}]}
    with stack.client() as user, ExitStack() as cleanup:
        cleanup.callback(set_speed, 1)
        stream = user.chat.completions.create(stream=True, **question)  # type: ignore[call-overload]
        words = [next(stream)]
        with ticks.drained("node-c"):
            assert ticks.tick()
            ticks.await_out("node-c")
            assert draining() == 1
        set_speed(10)
        words += stream
        stack.wait_until(lambda: draining() == 0, within_seconds=40, what="the former workers are gone")
    assert len([word for word in words if word.choices and word.choices[0].delta.content]) == TOKENS
