"""One run in real time, with real processes: nodes, proxy, script, load.

Everything runs on this machine and in one session. Engines, arrivals, the tick and all settings in seconds that decide
weights run `1 / scale` times as fast as real time. The time that the proxy and this machine take is not scaled, so it
counts `1 / scale` times, for every contestant alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.contestant import Contestant, ContestantError, Running, Site
from benchmarks.fleet import PORT, Fleet, SimulatedNode
from benchmarks.load import Load, body
from benchmarks.summary import Summary, seconds_until_halved, share_at_home, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.scenario import Event, Scenario
    from benchmarks.workload import Call

LONGEST_END_SECONDS = 240  # seconds of the model, from the last arrival to the end of the run


def free_ports(count: int) -> list[int]:
    """Return ports nothing listens on."""
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def processor_seconds(running: Running) -> float:
    """Return the processor time of a contestant's processes and of all their children, ended ones too."""
    total = 0.0
    for process in running.processes:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            for each in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = each.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
    return total


async def apply_events(events: Sequence[Event], nodes: Sequence[SimulatedNode], begin: float, scale: float) -> None:
    """Apply the events of a scenario to the nodes at their times; `begin` is a moment of the loop's clock."""
    loop = asyncio.get_running_loop()
    for event in events:
        await asyncio.sleep(max(0.0, begin + event.at * scale - loop.time()))
        await asyncio.to_thread(nodes[event.node].apply, event)


async def send(scenario: Scenario, seed: int, calls: Sequence[Call], fleet: Fleet, site: Site) -> Load:
    """Play a scenario against a contestant that serves, and return the load with its outcomes."""
    load, hidden_load, tasks = Load(site.scale), Load(site.scale), []
    bodies = await asyncio.to_thread(lambda: [body(call) for call in calls])
    hidden = scenario.hidden_calls(seed)
    begin = asyncio.get_running_loop().time() + 0.5
    for node in {node for node, _ in hidden}:
        own = [call for index, call in hidden if index == node]
        url = f"{fleet.nodes[node].url}/v1/completions"
        tasks.append(asyncio.create_task(hidden_load.send_all(url, own, [body(call) for call in own], begin)))
    tasks.append(asyncio.create_task(apply_events(scenario.events, fleet.nodes, begin, site.scale)))
    url = f"http://127.0.0.1:{site.port}/v1/completions"
    try:
        async with asyncio.timeout((scenario.seconds + LONGEST_END_SECONDS) * site.scale):
            await load.send_all(url, calls, bodies, begin)
            await asyncio.gather(*tasks)
    except TimeoutError:  # requests that have not ended keep their outcome: failed or cut
        for task in tasks:
            task.cancel()
    return load


def play(contestant: Contestant, scenario: Scenario, seed: int, scale: float, trace: Path | None = None) -> Summary:
    """Run one contestant through a scenario.

    Raises:
        ContestantError: it could not be started.
    """
    calls = scenario.calls(seed, trace)
    directory = Path(tempfile.mkdtemp(prefix="vllm-nginx-lb-bench-"))
    try:
        with Fleet(scenario.engine, scenario.speeds, directory, scale) as fleet:
            port, status_port = free_ports(2)
            if PORT in (port, status_port):
                raise ContestantError(f"port {PORT} belongs to the nodes: run it again")
            site = Site(directory=directory, backends=fleet.backends, port=port, status_port=status_port, scale=scale)
            with contestant.serve(site) as running:
                before, decided = processor_seconds(running), running.balancer_seconds
                load = asyncio.run(send(scenario, seed, calls, fleet, site))
                spent, deciding = processor_seconds(running) - before, running.balancer_seconds - decided
                preemptions = sum(node.preemptions for node in fleet.nodes)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    summary = summarise([outcome for outcome in load.outcomes if outcome.at >= scenario.warm_up])
    summary.preemptions = preemptions
    summary.reloads_per_hour = running.reloads * 3600 / scenario.seconds
    summary.peak_draining = running.peak_draining
    summary.proxy_cpu_ms = 1000 * spent / max(1, len(load.outcomes))
    summary.balancer_cpu_ms = 1000 * deciding / max(1, len(load.outcomes))
    summary.at_home = share_at_home(load.outcomes, scenario.warm_up)
    if scenario.slowed:
        summary.halved_after = seconds_until_halved(load.outcomes, *scenario.slowed)
    return summary
