"""Send a minute of load through the demo's ingress, slow one node down meanwhile, and show what happens.

The clients use the openai library and stream. For each node the table shows the balancer's last decision, and the share
of requests that the clients count.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "files"))

from vllm_lb.text import two_digits
from vllm_lb.view.status import CLEAR_SCREEN
from vllm_lb.view.table import aligned

INVENTORY = Path(__file__).parent / "inventory" / "hosts.yml"
INGRESS = "ingress-1"
SLOWED = "node-c"
REQUESTS_PER_SECOND = 6.0
PROMPT = "Why does a load balancer need to know how busy a node is? " * 8
TOKENS = 40
HIDDEN_STREAMS = 24  # requests to the slowed node that do not pass nginx
HEADINGS = ("NODE", "KV", "WAITING", "RUNNING", "WEIGHT", "SHARE", "REASON")
SHARE_WINDOW_SECONDS = 10.0
PRINT_SECONDS = 5.0  # time between two tables if the output is no terminal
PHASES = (
    # seconds, name, what happens
    (15, "calm", "all nodes equal"),
    (30, "slowed", f"{SLOWED} runs at half speed, and gets requests that do not pass nginx"),
    (25, "relieved", f"{SLOWED} runs at full speed again, without those requests"),
)


@dataclass
class Tally:
    """The answers that the clients counted."""

    answers: collections.deque[tuple[float, str]] = field(default_factory=collections.deque)  # time, node
    by_phase: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    finished: int = 0
    failed: list[str] = field(default_factory=list)
    phase: str = ""

    def answered(self, node: str) -> None:
        """Count a request when its answer begins."""
        self.answers.append((time.monotonic(), node))
        self.by_phase[self.phase][node] += 1

    def recent_shares(self) -> dict[str, float]:
        """Return each node's share of the requests of the last seconds."""
        while self.answers and self.answers[0][0] < time.monotonic() - SHARE_WINDOW_SECONDS:
            self.answers.popleft()
        return shares(collections.Counter(node for _, node in self.answers))


def shares(counts: collections.Counter[str]) -> dict[str, float]:
    """Return counts as ratios of their sum."""
    return {node: count / counts.total() for node, count in counts.items()}


def read_status(container: str) -> dict[str, Any]:
    """Return the balancer's last decision, even if it is too old (exit code 1); without pools before the first tick."""
    done = subprocess.run(
        ["podman", "exec", container, "vllm-nginx-lb", "status", "--json"], capture_output=True, text=True, check=False
    )
    with contextlib.suppress(json.JSONDecodeError):
        return dict(json.loads(done.stdout))
    return {"pools": []}


async def ask(client: openai.AsyncOpenAI, names: dict[str, str], tally: Tally) -> None:
    """Stream one completion to its last token."""
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model="sim", messages=[{"role": "user", "content": PROMPT}], max_tokens=TOKENS, stream=True
        )
        address = raw.headers.get("x-upstream-addr", "").rpartition(",")[2].strip()
        tally.answered(names.get(address, address))
        async for _ in raw.parse():
            pass
        tally.finished += 1
    except openai.OpenAIError as error:
        tally.failed.append(str(error))


async def send_load(client: openai.AsyncOpenAI, names: dict[str, str], tally: Tally) -> None:
    """Send requests at a steady rate until cancelled, then let those under way finish."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            task = asyncio.create_task(ask(client, names, tally))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(1 / REQUESTS_PER_SECOND)
    finally:
        await asyncio.gather(*tasks)


async def keep_busy(session: aiohttp.ClientSession, url: str) -> None:
    """Send one request after another to a node, without nginx, until cancelled."""
    body = {"model": "sim", "prompt": PROMPT * 5, "max_tokens": 300, "stream": True}
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                await answer.read()


async def set_speed(session: aiohttp.ClientSession, url: str, speed: float) -> None:
    """Change a simulated node's speed."""
    async with session.put(f"{url}/control", json={"speed": speed}) as answer:
        answer.raise_for_status()


def draw(status: dict[str, Any], tally: Tally, phase: str, left: float) -> str:
    """Return the table of this moment; `left` is how many seconds the phase still lasts."""
    recent = tally.recent_shares()
    rows: list[tuple[str, ...]] = [HEADINGS]
    for node in (node for pool in status["pools"] for node in pool["nodes"]):
        kv = "-" if node["kv_cache_usage"] is None else two_digits(node["kv_cache_usage"])
        counts = ["-" if node[key] is None else str(node[key]) for key in ("waiting", "running")]
        share = f"{recent.get(node['name'], 0):.0%}"
        rows.append((node["name"], kv, *counts, str(node["weight"]), share, node["reason"]))
    return "\n".join([f"{phase}  ({left:.0f} s left)", *aligned(rows)])


async def show(container: str, tally: Tally, phase: str, seconds: float) -> dict[str, Any]:
    """Show the table during one phase, and return the last status. A terminal is redrawn every second."""
    end = time.monotonic() + seconds
    status: dict[str, Any] = {"pools": []}
    printed = 0.0
    while (left := end - time.monotonic()) > 0:
        status = await asyncio.to_thread(read_status, container)
        table = draw(status, tally, phase, left)
        if sys.stdout.isatty():
            print(CLEAR_SCREEN + table, flush=True)
        elif time.monotonic() - printed > PRINT_SECONDS:
            printed = time.monotonic()
            print(table, flush=True)
        await asyncio.sleep(1)
    return status


async def run(address: str, container: str) -> tuple[Tally, dict[str, int]]:
    """Send the load through all phases; return what the clients counted, and by phase the slowed node's last weight."""
    nodes = [node for pool in read_status(container)["pools"] for node in pool["nodes"]]
    names = {f"{node['address']}:18090": node["name"] for node in nodes}
    url = next(f"http://{where}" for where, name in names.items() if name == SLOWED)
    tally, weights = Tally(), {}
    client = openai.AsyncOpenAI(base_url=f"http://{address}:8080/v1", api_key="demo", max_retries=0, timeout=120)
    async with client, aiohttp.ClientSession() as session:
        load = asyncio.create_task(send_load(client, names, tally))
        hidden: list[asyncio.Task[None]] = []
        for seconds, tally.phase, words in PHASES:
            await set_speed(session, url, 0.5 if tally.phase == "slowed" else 1.0)
            for task in hidden:
                task.cancel()
            streams = HIDDEN_STREAMS if tally.phase == "slowed" else 0
            hidden = [asyncio.create_task(keep_busy(session, url)) for _ in range(streams)]
            status = await show(container, tally, words, seconds)
            weights[tally.phase] = next(
                (n["weight"] for pool in status["pools"] for n in pool["nodes"] if n["name"] == SLOWED), 0
            )
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
    return tally, weights


def main() -> int:
    """Run the demo and say what happened; exit code 1 if a request failed."""
    described = subprocess.run(
        ["ansible-inventory", "--inventory", str(INVENTORY), "--host", INGRESS],
        capture_output=True,
        text=True,
        check=True,
    )
    address = json.loads(described.stdout)["container_ip"]
    container = f"vllm-nginx-lb-demo-{INGRESS}"
    tally, weights = asyncio.run(run(address, container))
    print("\nWhat happened:")
    for _, phase, words in PHASES:
        share = shares(tally.by_phase[phase]).get(SLOWED, 0)
        print(f"  {phase:<9} {SLOWED} ended with weight {weights[phase]:>3} and answered {share:4.0%}: {words}")
    first = f": {tally.failed[0]}" if tally.failed else ""
    print(f"  {tally.finished} streams finished, {len(tally.failed)} failed{first}")
    print(f"""
The demo is still running. To explore it:
  status page: http://{address}:18091/
  sudo podman exec {container} vllm-nginx-lb status
  sudo podman exec {container} journalctl -u vllm-nginx-lb -n 20
  sudo podman exec {container} cat /etc/nginx/vllm-nginx-lb/weights.json
  curl http://{address}:8080/v1/models
Add node-d ({{ansible_host: 10.231.78.24}}) to demo/inventory/hosts.yml and run `make demo` again: it serves.
Remove everything: make demo-down""")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
