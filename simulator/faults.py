"""Faults of answers that can be switched on while the node runs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

from simulator.fault_settings import API, BOTH, METRICS

if TYPE_CHECKING:
    from simulator.fault_settings import Fault

# How often a waiting handler checks that its client is connected. The supported versions of aiohttp report a lost
# connection in different ways; checking works with all.
POLL_SECONDS = 0.1

# Pieces of a dripped answer per second.
_DRIPS_PER_SECOND = 10

_HTML = "<!DOCTYPE html><html><head><title>It works!</title></head><body><h1>It works!</h1></body></html>"


def is_connected(request: web.BaseRequest) -> bool:
    """Whether the client is still there."""
    return request.transport is not None and not request.transport.is_closing()


class Faults:
    """The faults that are on, and the changes of answers that they cause.

    Attributes:
        active: by name; only the control endpoint changes it.
    """

    def __init__(self) -> None:
        """Start without faults."""
        self.active: dict[str, Fault] = {}

    def find(self, name: str, request: web.BaseRequest) -> Fault | None:
        """Return the fault if it is on for the path of this request."""
        scope = METRICS if request.path == "/metrics" else API
        fault = self.active.get(name)
        return fault if fault and fault.scope in {scope, BOTH} else None

    async def replace_answer(self, request: web.BaseRequest) -> web.Response | None:
        """Return the answer that a fault gives in place of the true one, or None; "hang" holds the request first."""
        while self.find("hang", request) and is_connected(request):  # noqa: ASYNC110 - see POLL_SECONDS
            await asyncio.sleep(POLL_SECONDS)
        status = self.find("status", request)
        if status:
            error = {"message": "simulated fault", "type": "SimulatedFault", "param": None, "code": status.number}
            return web.json_response({"error": error}, status=status.number)
        if self.find("wrong_content", request):
            return web.Response(text=_HTML, content_type="text/html")
        return None

    async def spoil_answer(self, request: web.BaseRequest, answer: web.StreamResponse) -> web.StreamResponse:
        """Send a complete answer slowly or in part if such a fault is on; else return it as it is."""
        if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
            return answer
        if not (self.find("slow_drip", request) or self.find("close", request)):
            return answer
        spoiled = web.StreamResponse(status=answer.status, headers=answer.headers)
        spoiled.content_length = len(answer.body)
        await spoiled.prepare(request)
        with contextlib.suppress(ConnectionResetError):
            await self.write(request, spoiled, answer.body)
        return spoiled

    async def write(self, request: web.BaseRequest, response: web.StreamResponse, data: bytes) -> None:
        """Write a piece of an answer.

        Raises:
            ConnectionResetError: the client is gone, or a fault has just closed its connection.
        """
        if not is_connected(request):
            raise ConnectionResetError("the client is gone")
        drip, close = self.find("slow_drip", request), self.find("close", request)
        if close:
            await response.write(data[: max(1, len(data) // 2)])
            if request.transport:
                request.transport.close()
            raise ConnectionResetError("closed by a simulated fault")
        if not drip:
            await response.write(data)
            return
        await self._drip(request, response, data, drip.number)

    async def _drip(
        self, request: web.BaseRequest, response: web.StreamResponse, data: bytes, bytes_per_second: int
    ) -> None:
        """Write data in small pieces for as long as the fault is on, and the rest at once."""
        size = -(-bytes_per_second // _DRIPS_PER_SECOND)
        sent = 0
        while sent < len(data) and self.find("slow_drip", request):
            await response.write(data[sent : sent + size])
            sent += size
            await asyncio.sleep(size / bytes_per_second)
        await response.write(data[sent:])
