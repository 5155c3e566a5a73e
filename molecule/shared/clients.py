"""Clients that send requests without a pause, and remember every request that failed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import openai
import stack

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM_TOKENS = 200


class Clients:
    """Clients of the ingress, each with a connection of its own for every request.

    Attributes:
        pause: a test holds it while nginx itself is away; no short question is asked meanwhile.
        answered: number of requests that were answered in full.
        failures: one line for each request that failed.
    """

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.pause = threading.Lock()
        self.answered = 0
        self.failures: list[str] = []
        self._over = threading.Event()

    def ask(self, *, streamed: bool = False) -> None:
        """Ask one short question after the other, or read one stream after the other, until told to stop."""
        with stack.client() as user:
            over = False
            while not over:
                # Streams would keep the short questions waiting.
                with nullcontext() if streamed else self.pause:
                    self._ask_once(user, streamed=streamed)
                over = self._over.wait(0.1)

    def _ask_once(self, user: openai.OpenAI, *, streamed: bool) -> None:
        question = {"model": "sim", "messages": [{"role": "user", "content": "still there?"}]}
        headers = {"Connection": "close"}
        try:
            if streamed:
                stream = user.chat.completions.create(  # type: ignore[call-overload]
                    **question, max_tokens=STREAM_TOKENS, stream=True, extra_headers=headers
                )
                read = sum(bool(piece.choices and piece.choices[0].delta.content) for piece in stream)
                assert read == STREAM_TOKENS, f"a stream ended after {read} of {STREAM_TOKENS} tokens"
            else:
                user.chat.completions.create(**question, max_tokens=2, extra_headers=headers)  # type: ignore[call-overload]
        except (openai.OpenAIError, AssertionError) as error:
            self.failures.append(f"{time.time():.3f}: {error!r} {error.__cause__!r}")
        else:
            self.answered += 1

    def stop(self) -> None:
        """End the clients."""
        self._over.set()


@contextmanager
def keep_asking(*, streams: int = 0) -> Iterator[Clients]:
    """Let one client ask, and others read streams, until the block ends; then every request must have been answered."""
    clients = Clients()
    with ThreadPoolExecutor(max_workers=1 + streams) as pool:
        asked = [pool.submit(clients.ask), *(pool.submit(clients.ask, streamed=True) for _ in range(streams))]
        try:
            yield clients
        finally:
            clients.stop()
    for each in asked:
        each.result()
    assert clients.failures == []
    assert clients.answered > 0
