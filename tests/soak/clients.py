"""Clients of the ingress: streamed completions, each read to its last token."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future
    from random import Random
    from types import TracebackType
    from typing import Any

PROMPT = "word " * 40
LONGEST_SECONDS = 150
LONGEST_HEADER = 32 * 1024  # the ingress passes more than aiohttp takes by default


@dataclass(frozen=True)
class Answer:
    """The end of a request: `problem` is None if every token came. Times are on the monotonic clock."""

    request_id: str
    began: float
    ended: float
    problem: str | None


async def ask(url: str, max_tokens: int) -> Answer:
    """Send one request, and read its answer to the end.

    Each has a connection of its own: nginx closes kept ones when it reloads, and a client that keeps connections must
    repeat a request whose connection is closed at that moment.
    """
    began, request_id, problem = time.monotonic(), "", None
    body = {"prompt": PROMPT, "max_tokens": max_tokens, "stream": True}
    timeout = aiohttp.ClientTimeout(total=LONGEST_SECONDS)
    try:
        session = aiohttp.ClientSession(timeout=timeout, max_field_size=LONGEST_HEADER)
        async with session, session.post(url, json=body) as answer:
            request_id = answer.headers.get("X-Request-Id", "")
            text = await answer.read()
            tokens = text.count(b"word ")
            if answer.status != 200:
                problem = f"status {answer.status}"
            elif tokens != max_tokens or not text.endswith(b"data: [DONE]\n\n"):
                problem = "incomplete"
    except (aiohttp.ClientError, TimeoutError) as error:
        problem = type(error).__name__
    return Answer(request_id, began, time.monotonic(), problem)


class Clients:
    """Clients on a thread of their own; leaving the context waits for the requests under way."""

    def __init__(self, ingress_port: int, pause_seconds: float = 0) -> None:
        """Prepare; a client of keep_busy() pauses after a request that failed."""
        self.url = f"http://127.0.0.1:{ingress_port}/v1/completions"
        self.answers: list[Answer] = []
        self._pause_seconds = pause_seconds
        self._tasks: list[Future[Any]] = []
        self._stopping = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the requests under way finish, or break them off after an error, and end the thread."""
        try:
            if kind is None:
                self.finish()
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._over.wait()

    def keep_busy(self, clients: int, max_tokens: range, chance: Random) -> None:
        """Start clients that send one request after the other until finish()."""
        for _ in range(clients):
            self._start(self._ask_on(max_tokens, chance))

    def ask(self, max_tokens: int) -> None:
        """Start one request."""
        self._start(self._ask_once(max_tokens))

    def finish(self) -> None:
        """Wait until every request under way has ended."""
        self._stopping = True
        for task in self._tasks:
            task.result(LONGEST_SECONDS)

    @property
    def under_way(self) -> int:
        """How many requests, or clients of keep_busy(), have not ended."""
        return sum(not task.done() for task in self._tasks)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _ask_once(self, max_tokens: int) -> Answer:
        answer = await ask(self.url, max_tokens)
        self.answers.append(answer)
        return answer

    async def _ask_on(self, max_tokens: range, chance: Random) -> None:
        while not self._stopping:
            answer = await self._ask_once(chance.choice(max_tokens))
            if answer.problem:
                await asyncio.sleep(self._pause_seconds)
