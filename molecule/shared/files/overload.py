# ruff: noqa: INP001 - copied to a container as it is, not part of a package
"""Keep a node busy past what it can take, until stopped.

Usage: overload.py URL CONCURRENCY, for instance overload.py http://10.0.0.1:18090 40. A node that asks for a key gets
that of the environment, VLLM_API_KEY. Runs with Debian's python3-aiohttp.
"""

from __future__ import annotations

import asyncio
import os
import sys

import aiohttp

BODY = {"model": "sim", "prompt": "load " * 600, "max_tokens": 100}


async def ask_forever(session: aiohttp.ClientSession, url: str) -> None:
    """Send one request after the other, and ignore failures."""
    while True:
        async with session.post(f"{url}/v1/completions", json=BODY) as answer:
            await answer.read()


async def overload(url: str, concurrency: int) -> None:
    """Keep `concurrency` requests going at once."""
    key = os.environ.get("VLLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    unlimited, patient = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=unlimited, timeout=patient, headers=headers) as session:
        await asyncio.gather(*(ask_forever(session, url) for _ in range(concurrency)))


if __name__ == "__main__":
    asyncio.run(overload(sys.argv[1], int(sys.argv[2])))
