"""Which requests the API server refuses before its engines see them, and with which error."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from simulator.openai_requests import ApiError

if TYPE_CHECKING:
    from simulator.faults import Faults
    from simulator.metrics import NodeCollector
    from simulator.node import Node

# From the first check of a request to the second one, vLLM counts the tokens of its prompt.
_TOKENIZING_SECONDS = 0.005


def engine_dead() -> ApiError:
    """Return what a request gets whose engine has died, whether before it came or while it waited."""
    return ApiError(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")


def _draining() -> ApiError:
    return ApiError(500, "cannot schedule new futures after shutdown")


def _full() -> ApiError:
    message = (
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance."
    )
    return ApiError(503, message, kind=HTTPStatus.SERVICE_UNAVAILABLE.phrase)


class Admission:
    """Checks new requests, as vLLM does: before it reads the prompt, and again when it gives it to the engine."""

    def __init__(self, node: Node, faults: Faults, collector: NodeCollector) -> None:
        """Check requests to a node; refusals by a limit are counted in the collector."""
        self._node = node
        self._faults = faults
        self._rejections = collector.rejections

    async def enter(self) -> None:
        """Check a request once, and wait as long as its prompt takes if there is a limit.

        Raises:
            ApiError: it is refused.
        """
        self.check()
        if "admission_limit" in self._faults.active:
            await asyncio.sleep(_TOKENIZING_SECONDS)

    def check(self) -> None:
        """Check a request.

        Raises:
            ApiError: it is refused.
        """
        if self._node.dead:
            raise engine_dead()
        if "draining" in self._faults.active:
            raise _draining()
        limit = self._faults.active.get("admission_limit")
        if limit and self._node.unfinished >= limit.number:
            self._rejections["max_num_queued_reqs"] += 1
            raise _full()
