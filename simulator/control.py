"""The control endpoint: change a node's speed, sleep and faults while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simulator.fault_settings import Fault, SettingError, fault_as_json, parse_fault

if TYPE_CHECKING:
    from simulator.fault_effects import FaultEffects
    from simulator.faults import Faults
    from simulator.node import Node

SLEEP_LEVELS = (0, 1, 2)
MAX_SPEED = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """The settings of one PUT. None leaves speed or sleep as it is; a fault that is None ends."""

    speed: float | None = None
    sleep: int | None = None
    faults: dict[str, Fault | None] = field(default_factory=dict)


def parse_change(body: object) -> Change:
    """Check the body of a PUT.

    Raises:
        SettingError: a key or value that is not allowed; the message says which and what is allowed.
    """
    if not isinstance(body, dict):
        raise SettingError("the body must be a JSON object")
    unknown = body.keys() - {"speed", "sleep", "faults"}
    if unknown:
        raise SettingError(f"{min(unknown)}: unknown; allowed: speed, sleep, faults")
    speed, sleep, faults = body.get("speed"), body.get("sleep"), body.get("faults", {})
    if speed is not None and not is_speed(speed):
        raise SettingError(f"speed: {speed!r}: must be a number above 0 and up to {MAX_SPEED}")
    if sleep is not None and (type(sleep) is not int or sleep not in SLEEP_LEVELS):
        raise SettingError(f"sleep: {sleep!r}: allowed: 0 (awake), 1, 2")
    if not isinstance(faults, dict):
        raise SettingError("faults: must be an object of faults by name")
    parsed = {name: None if value is None else parse_fault(name, value) for name, value in faults.items()}
    return Change(speed, sleep, parsed)


def is_speed(value: object) -> bool:
    """Whether a value can be a node's speed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_SPEED


class Control:
    """Handlers of /control."""

    def __init__(self, node: Node, faults: Faults, effects: FaultEffects) -> None:
        """Control a node and its faults."""
        self.node = node
        self.faults = faults
        self.effects = effects
        self.can_refuse = False

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the handlers."""
        router.add_get("/control", self.show)
        router.add_put("/control", self.change)
        router.add_delete("/control/faults", self.clear_faults)

    async def show(self, _: web.Request) -> web.Response:
        """Answer with settings, faults and the true state of the engines, which faults of /metrics do not change."""
        return web.json_response(self._state())

    async def change(self, request: web.Request) -> web.Response:
        """Change the settings in the body: all of them, or none if one is wrong."""
        try:
            change = parse_change(await request.json())
            if change.faults.get("refuse") and not self.can_refuse:
                raise SettingError("faults.refuse: needs --control-port, without which it could not be ended")
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        if change.speed is not None:
            self.node.speed = change.speed
        if change.sleep is not None:
            self.node.sleep_level = change.sleep
        for name, fault in change.faults.items():
            if fault:
                self.faults.active[name] = fault
            else:
                self.faults.active.pop(name, None)
        return await self._follow_faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        """End every fault."""
        self.faults.active.clear()
        return await self._follow_faults(request)

    async def _follow_faults(self, request: web.Request) -> web.Response:
        try:
            await self.effects.follow(spared=request.transport)
        except OSError as error:
            return web.json_response({"error": f"cannot listen again: {error}"}, status=500)
        return web.json_response(self._state())

    def _state(self) -> dict[str, Any]:
        engines = [
            {
                "running": len(lane.engine.running),
                "waiting": len(lane.engine.waiting),
                "kv_cache_usage": lane.engine.kv_cache_usage,
                "preemptions": lane.engine.counters.preemptions,
            }
            for lane in self.node.lanes
        ]
        return {
            "name": self.node.name,
            "model": self.node.model,
            "speed": self.node.speed,
            "sleep": self.node.sleep_level,
            "faults": {name: fault_as_json(name, fault) for name, fault in self.faults.active.items()},
            "engines": engines,
        }
