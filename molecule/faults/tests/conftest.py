"""Around each test: clients that never stop asking, an ear on the journal, and a tick that succeeds at the end.

The timer stands still, so that a tick begins when a test says so.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import openai
import pytest
import stack
import ticks

from tests.faults import heard, told

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["heard", "told"]  # fixtures


class Clients:
    """A client that asks one short question after the other, each over a connection of its own.

    Attributes:
        pause: nothing is asked while somebody else holds it, because nginx itself is away.
    """

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.pause = threading.Lock()
        self.answered = 0
        self.failures: list[str] = []
        self._over = threading.Event()

    def ask(self) -> None:
        """Ask until told that it is over."""
        with stack.client() as user:
            over = False
            while not over:
                with self.pause:
                    self._ask_once(user)
                over = self._over.wait(0.1)

    def _ask_once(self, user: openai.OpenAI) -> None:
        try:
            user.chat.completions.create(
                model="sim",
                max_tokens=2,
                messages=[{"role": "user", "content": "still there?"}],
                extra_headers={"Connection": "close"},
            )
        except openai.OpenAIError as error:
            self.failures.append(f"{time.time():.3f}: {error!r} {error.__cause__!r}")
        else:
            self.answered += 1

    def stop(self) -> None:
        """Let the asking end."""
        self._over.set()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Stop the timer, which plays and a boot start, and leave it as the role does."""
    ticks.stop_timer()
    yield
    ticks.start_timer()


@pytest.fixture(autouse=True)
def clients(quiet: None, told: None, heard: list[str]) -> Iterator[Clients]:  # noqa: ARG001 - for what they do
    """Keep asking during the test, and hear all that the service says; then all must be well again."""
    began = time.time()
    asking = Clients()
    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = pool.submit(asking.ask)
        try:
            yield asking
        finally:
            asking.stop()
            heard += ticks.journal(began)
    asked.result()
    assert ticks.tick(), "the test left something behind: " + "\n".join(ticks.journal(began))
    ticks.await_live()
    assert asking.failures == []
    assert asking.answered > 0
