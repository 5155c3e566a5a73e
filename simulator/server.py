"""The HTTP side of the node: applications, middlewares and sockets."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from simulator.admission import Admission
from simulator.control import Control
from simulator.fault_effects import FaultEffects
from simulator.fault_settings import API, Fault
from simulator.faults import Faults
from simulator.http_metrics import HttpMetrics
from simulator.listener import Listener
from simulator.metrics import CONTENT_TYPE_HEAD, MetricsPage, NodeCollector
from simulator.openai_api import OpenAiApi

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from simulator.node import Node

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SIMULATED_VERSION = "0.32.0"
MAX_BODY_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How a node is reached.

    Attributes:
        host: address to listen on.
        port: 0 for any free one.
        control_port: second port, for the control endpoint alone; 0 for any free one, None for none.
        keep_alive_seconds: idle connections are closed after this.
        api_key: if set, /v1 requires it as bearer token.
        guard_metrics: /metrics requires it too.
        old_metric_names: name the KV cache gauge as before vLLM 0.9.
        stream_interval: tokens in one piece of a stream, after the first; vLLM has the same option.
        api_servers: processes that share the port and the page of metrics; several engines have several, too.
        shutdown_timeout: how many seconds SIGTERM lets requests go on, while new ones are refused; as in vLLM.
        faults: what is on from the start, by name.
    """

    host: str = "127.0.0.1"
    port: int = 18090
    control_port: int | None = None
    keep_alive_seconds: float = 5.0
    api_key: str | None = None
    guard_metrics: bool = False
    old_metric_names: bool = False
    stream_interval: int = 1
    api_servers: int = 1
    shutdown_timeout: float = 0.0
    faults: Mapping[str, Fault] = field(default_factory=dict)


class Server:
    """Serves one node on one port, and its control endpoint on a second one if wanted."""

    def __init__(self, config: ServerConfig, node: Node) -> None:
        """Prepare; start() opens the sockets."""
        self.config = config
        self.node = node
        self.faults = Faults()
        engines = [lane.metrics for lane in node.lanes]
        several = config.api_servers > 1 or len(engines) > 1
        collector = NodeCollector(node.model, engines, several_processes=several, old_names=config.old_metric_names)
        requests = HttpMetrics(several_processes=several)
        self.page = MetricsPage(collector, requests, several_processes=several)
        self.api = OpenAiApi(node, self.faults, Admission(node, self.faults, collector), config.stream_interval)
        app = web.Application(
            client_max_size=MAX_BODY_BYTES,
            middlewares=[requests.count, self._apply_faults, _errors_as_json, self._check_key],
        )
        runner = web.AppRunner(app, keepalive_timeout=config.keep_alive_seconds, access_log=None)
        self.listener = Listener(runner, config.host, config.port)
        self.effects = FaultEffects(node, self.faults, self.page, self.listener)
        self.control = Control(node, self.faults, self.effects)
        self._add_routes(app.router)
        self.control_listener = self._control_listener()

    async def start(self) -> None:
        """Open the sockets.

        Raises:
            OSError: an address cannot be used.
        """
        await self.listener.open()
        if self.control_listener:
            await self.control_listener.open()
            self.control.can_refuse = True
        self.faults.active.update(self.config.faults)
        await self.effects.follow()

    async def run(self) -> None:
        """Serve until cancelled."""
        await asyncio.gather(self.node.run(), self.api.abort_abandoned())

    async def drain(self) -> None:
        """Refuse new requests until the time for a shutdown is over. vLLM too waits for all of it."""
        self.faults.active["draining"] = Fault(API)
        await asyncio.sleep(self.config.shutdown_timeout)

    def stop(self) -> None:
        """Close the sockets and cut all connections; nobody waits for answers under way."""
        self.listener.close()
        if self.control_listener:
            self.control_listener.close()

    def _add_routes(self, router: web.UrlDispatcher) -> None:
        self.api.add_routes(router)
        self.control.add_routes(router)
        router.add_get("/metrics", self.show_metrics)
        router.add_get("/health", self.show_health)
        router.add_get("/version", self.show_version)

    def _control_listener(self) -> Listener | None:
        if self.config.control_port is None:
            return None
        app = web.Application(middlewares=[_errors_as_json])
        self.control.add_routes(app.router)
        return Listener(web.AppRunner(app, access_log=None), self.config.host, self.config.control_port)

    async def show_metrics(self, request: web.Request) -> web.Response:
        """Answer /metrics."""
        content_type = CONTENT_TYPE_HEAD if request.method == "HEAD" else self.page.content_type
        return web.Response(body=self.page.render(), headers={"Content-Type": content_type})

    async def show_health(self, _: web.Request) -> web.Response:
        """Answer /health: empty, as vLLM does; 503 when the engine has died, but 200 when it hangs."""
        return web.Response(status=503 if self.node.dead else 200)

    async def show_version(self, _: web.Request) -> web.Response:
        """Answer /version with the vLLM version that is simulated."""
        return web.json_response({"version": SIMULATED_VERSION})

    @web.middleware
    async def _apply_faults(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/control"):
            return await handler(request)
        answer: web.StreamResponse | None = await self.faults.replace_answer(request)
        if answer is None:  # not `if not answer`: in some versions of aiohttp an answer without items is false
            answer = await handler(request)
        return await self.faults.spoil_answer(request, answer)

    @web.middleware
    async def _check_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = self.config.api_key
        guarded = request.path.startswith("/v1") or (self.config.guard_metrics and request.path == "/metrics")
        if key and guarded:
            given = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {key}".encode()):
                return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer unknown paths and wrong methods in JSON, as FastAPI does."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"detail": error.reason}, status=error.status)
