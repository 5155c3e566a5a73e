"""What the API server counts of its HTTP requests, as vLLM's prometheus-fastapi-instrumentator does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import Metric

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NOT_COUNTED = {"/metrics", "/health", "/version", "/control", "/control/faults"}
_PRECISE = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    *(7.5, 10.0, 30.0, 60.0),
)
_COARSE = (0.1, 0.5, 1.0)


class HttpMetrics(Collector):
    """Families about HTTP requests; most have no samples before the first request has ended."""

    def __init__(self, *, several_processes: bool) -> None:
        """Start at zero. Several API servers show neither creation times nor families without samples."""
        self._several_processes = several_processes
        self._registry = each = CollectorRegistry()
        self._requests = Counter(
            "http_requests_total",
            "Total number of requests by method, status and handler.",
            ["method", "status", "handler"],
            registry=each,
        )
        self._received = Summary(
            "http_request_size_bytes", "Content length of requests by handler.", ["handler"], registry=each
        )
        self._sent = Summary(
            "http_response_size_bytes", "Content length of answers by handler.", ["handler"], registry=each
        )
        self._precise = Histogram(
            "http_request_duration_highr_seconds", "Latency of all requests.", buckets=_PRECISE, registry=each
        )
        self._coarse = Histogram(
            "http_request_duration_seconds",
            "Latency by method and handler.",
            ["method", "handler"],
            buckets=_COARSE,
            registry=each,
        )

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        for family in self._registry.collect():
            if self._several_processes:
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            if family.samples or not self._several_processes:
                yield family

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request when it has ended."""
        resource = request.match_info.route.resource
        path = resource.canonical if resource else "none"
        if path in _NOT_COUNTED:
            return await handler(request)
        began, status, size = time.monotonic(), 500, 0
        try:
            answer = await handler(request)
            status, size = answer.status, answer.content_length or 0
        finally:
            seconds = time.monotonic() - began
            self._requests.labels(request.method, f"{status // 100}xx", path).inc()
            self._received.labels(path).observe(request.content_length or 0)
            self._sent.labels(path).observe(size)
            self._precise.observe(seconds)
            self._coarse.labels(request.method, path).observe(seconds)
        return answer
