"""Runs the engines of one node in real time, and tells the readers of answers about their tokens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from simulator.engine import Engine
from simulator.engine_metrics import EngineMetrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator.engine_config import EngineConfig
    from simulator.engine_records import Request, StepReport

# An engine that is behind the clock by less than this catches up step by step. Longer delays are lost, as they are for
# a real engine whose process gets no processor.
CATCH_UP_SECONDS = 1.0


class Generation:
    """One accepted request, for the handler that answers it."""

    __slots__ = ("_changed", "_interval", "cut", "died", "lane", "request")

    def __init__(self, request: Request, lane: Lane, interval: int) -> None:
        """Follow a request; wake the reader at the first token, at each `interval`-th (0: none) and at the last."""
        self.cut = False
        self.died = False
        self.request = request
        self.lane = lane
        self._interval = interval
        self._changed = asyncio.Event()

    async def progress(self, patience: float | None = None) -> int | None:
        """Wait until there are more tokens, or the request was aborted.

        Returns:
            How many tokens there are, or None if nothing has happened in `patience` seconds.
        """
        try:
            await asyncio.wait_for(self._changed.wait(), patience)
        except TimeoutError:
            return None
        self._changed.clear()
        return self.request.generated

    def notify(self) -> None:
        """Tell the reader that the request moved on."""
        made = self.request.generated
        if self.request.finished or (self._interval and (made == 1 or made % self._interval == 0)):
            self._changed.set()

    def die(self) -> None:
        """Tell the reader that the engine has died."""
        self.died = True
        self._changed.set()

    def end_early(self) -> None:
        """Tell the reader that the engine has ended the request before its last token."""
        self.cut = True
        self.abort()

    def abort(self) -> None:
        """Abort the request, unless it is complete."""
        self.lane.abort(self)
        self._changed.set()


class Lane:
    """One engine and the task that drives it."""

    def __init__(self, config: EngineConfig, speed: float) -> None:
        """Create an idle engine."""
        self.engine = Engine(config, speed)
        self.metrics = EngineMetrics(self.engine)
        self.wake = asyncio.Event()
        self._open: dict[Request, Generation] = {}
        self._moves = asyncio.Event()
        self._moves.set()

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return len(self.engine.running) + len(self.engine.waiting)

    def submit(self, request: Request, interval: int) -> Generation:
        """Queue a request whose reader wants every `interval`-th token, or 0 for the whole answer alone.

        Raises:
            ValueError: the engine can never serve it.
        """
        self.engine.submit(request, asyncio.get_running_loop().time())
        generation = Generation(request, self, interval)
        self._open[request] = generation
        self.wake.set()
        return generation

    def abort(self, generation: Generation) -> None:
        """Take an unfinished request out of the engine."""
        if self._open.pop(generation.request, None):
            self.engine.abort(generation.request)
            self.metrics.ended["abort"] += 1

    def hang(self) -> None:
        """Stand still, in the middle of a step too; the gauges stay as they are now."""
        self.metrics.stuck = self.metrics.gauges
        self._moves.clear()

    def go_on(self) -> None:
        """Move again after hang()."""
        self.metrics.stuck = None
        self._moves.set()

    def die(self) -> None:
        """Stand still for ever, and end all requests."""
        self.hang()
        for request, generation in self._open.items():
            self.engine.abort(request)
            generation.die()
        self._open.clear()

    def abort_all(self) -> None:
        """End all requests early, with the tokens that they have."""
        for generation in list(self._open.values()):
            generation.end_early()

    async def drive(self) -> None:
        """Run steps for ever. A late step does not shift the next one: the engine catches up."""
        now = asyncio.get_running_loop().time
        free_at = now()
        while True:
            await self._moves.wait()
            ends_at = self._begin(free_at, now())
            if ends_at is None:
                self.wake.clear()
                await self.wake.wait()
                free_at = now()
                continue
            # Even a late step yields once, so that connections are served while the engine catches up.
            await asyncio.sleep(max(0.0, ends_at - now()))
            await self._moves.wait()
            self._deliver(self.engine.finish())
            free_at = ends_at

    def _begin(self, free_at: float, now: float) -> float | None:
        if self.metrics.sleep_level:
            return None
        ends_at = self.engine.begin(max(free_at, now - CATCH_UP_SECONDS))
        if ends_at is None and self.engine.waiting:  # they arrived after the moment that the engine has reached
            ends_at = self.engine.begin(now)
        return ends_at

    def _deliver(self, report: StepReport) -> None:
        self.metrics.observe_step(report)
        for request in report.advanced:
            generation = self._open.pop(request) if request.finished else self._open[request]
            generation.notify()


class Node:
    """Several engines behind one address; a request goes to the least loaded one."""

    def __init__(self, name: str, model: str, config: EngineConfig, *, engines: int, speed: float) -> None:
        """Create idle engines; run() sets them going."""
        self.name = name
        self.model = model
        self.config = config
        self.lanes: Sequence[Lane] = [Lane(config, speed) for _ in range(engines)]
        self._dead = False

    @property
    def speed(self) -> float:
        """Pace of the engines; 1 is what the configuration says."""
        return self.lanes[0].engine.speed

    @speed.setter
    def speed(self, value: float) -> None:
        for lane in self.lanes:
            lane.engine.speed = value

    @property
    def sleep_level(self) -> int:
        """0 awake, 1 weights offloaded, 2 everything discarded. Engines asleep keep requests waiting."""
        return self.lanes[0].metrics.sleep_level

    @sleep_level.setter
    def sleep_level(self, value: int) -> None:
        for lane in self.lanes:
            lane.metrics.sleep_level = value
            lane.wake.set()

    @property
    def unfinished(self) -> int:
        """Requests running and waiting, of all engines."""
        return sum(lane.load for lane in self.lanes)

    @property
    def dead(self) -> bool:
        """Whether the engines have died."""
        return self._dead

    def hang(self, *, on: bool) -> None:
        """Let all engines stand still, or go on."""
        for lane in self.lanes:
            if on:
                lane.hang()
            else:
                lane.go_on()

    def die(self) -> None:
        """End all engines and their requests."""
        self._dead = True
        for lane in self.lanes:
            lane.die()

    def abort_all(self) -> None:
        """End all requests early."""
        for lane in self.lanes:
            lane.abort_all()

    def restart(self) -> None:
        """Give a dead node new engines, which have counted nothing."""
        self._dead = False
        for lane in self.lanes:
            lane.metrics.reset()
            lane.go_on()

    def submit(self, request: Request, interval: int) -> Generation:
        """Queue a request at the least loaded engine; see Lane.submit.

        Raises:
            ValueError: no engine can ever serve it.
        """
        return min(self.lanes, key=lambda lane: lane.load).submit(request, interval)

    async def run(self) -> None:
        """Drive all engines until cancelled."""
        await asyncio.gather(*(lane.drive() for lane in self.lanes))
