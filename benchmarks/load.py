"""Open-loop load: each request is sent at its time whether earlier ones have ended or not, and read to its end."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.summary import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workload import Call

NODE = re.compile(rb'"system_fingerprint": ?"node-([0-9]+)"')
TOKEN, END = b"word ", b"data: [DONE]"
MODEL = "sim"


def body(call: Call) -> bytes:
    """Return a request's body."""
    return json.dumps(
        {"model": MODEL, "prompt": call.prompt(), "max_tokens": call.output_tokens, "stream": call.streamed}
    ).encode()


class Load:
    """Sends requests, and keeps their outcomes, in seconds of the model."""

    def __init__(self, scale: float) -> None:
        """Count `scale` real seconds as one of the model."""
        self.scale = scale
        self.outcomes: list[Outcome] = []

    async def send_all(self, url: str, calls: Sequence[Call], bodies: Sequence[bytes], begin: float) -> None:
        """Send requests at their times after `begin`, a moment of the loop's clock, and wait for every end."""
        loop = asyncio.get_running_loop()
        # A connection for each request: nginx closes kept ones at a reload, sometimes while a request is on its way.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            tasks = []
            for call, content in zip(calls, bodies, strict=True):
                await asyncio.sleep(max(0.0, begin + call.at * self.scale - loop.time()))
                outcome = Outcome(call.at, problem="failed", conversation=call.conversation)
                self.outcomes.append(outcome)
                tasks.append(asyncio.create_task(self._send(session, url, call, content, outcome)))
            await asyncio.gather(*tasks)

    async def _send(
        self, session: aiohttp.ClientSession, url: str, call: Call, content: bytes, outcome: Outcome
    ) -> None:
        now = asyncio.get_running_loop().time
        sent, first, last, pieces = now(), None, 0.0, []
        headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
        try:
            async with session.post(url, data=content, headers=headers) as answer:
                async for piece in answer.content.iter_any():
                    last = now()
                    pieces.append(piece)
                    if first is None and TOKEN in piece:
                        first = last
                complete = answer.status == 200  # noqa: PLR2004 - HTTP's own number
        except (aiohttp.ClientError, OSError):
            complete = False
        text = b"".join(pieces)
        complete = complete and text.count(TOKEN) == call.output_tokens and (END in text or not call.streamed)
        node = NODE.search(text)
        outcome.node = int(node[1]) if node else None
        if not call.streamed:
            outcome.tokens = call.output_tokens
            outcome.whole_answer = (last - sent) / self.scale if complete else None
        elif first is not None:
            outcome.first_token = (first - sent) / self.scale
            if call.output_tokens > 1:
                outcome.per_token = (last - first) / self.scale / (call.output_tokens - 1)
        outcome.problem = None if complete else "cut" if first is not None else "failed"
