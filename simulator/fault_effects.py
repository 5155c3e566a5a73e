"""The faults that change the node itself, and not only its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from simulator.faults import Faults
    from simulator.listener import Listener
    from simulator.metrics import MetricsPage
    from simulator.node import Node


class FaultEffects:
    """Makes a node, its page of metrics and its socket follow the faults that are on."""

    def __init__(self, node: Node, faults: Faults, page: MetricsPage, listener: Listener) -> None:
        """Follow these faults; "refuse" closes `listener`."""
        self._node = node
        self._faults = faults
        self._page = page
        self._listener = listener

    async def follow(self, spared: asyncio.BaseTransport | None = None) -> None:
        """Begin and end effects; `spared` is a connection that "refuse" leaves open.

        Raises:
            OSError: the address cannot be used again.
        """
        self._follow_page()
        self._follow_engines()
        if "refuse" in self._faults.active:
            self._listener.close(spared=spared)
        else:
            await self._listener.open()

    def _follow_page(self) -> None:
        active, collector = self._faults.active, self._page.collector
        if active.pop("counter_reset", None):  # this fault and the next one happen once
            for lane in self._node.lanes:
                lane.metrics.reset()
        if active.pop("unset_gauges", None):
            collector.unset = True
            for lane in self._node.lanes:
                lane.metrics.reported = False
        collector.nan = "nan" in active
        collector.no_stats = "no_stats" in active
        self._page.openmetrics = "openmetrics" in active
        if "frozen" in active:
            self._page.freeze()
        else:
            self._page.thaw()

    def _follow_engines(self) -> None:
        active, node = self._faults.active, self._node
        if active.pop("abort_all", None):  # this fault happens once
            node.abort_all()
        if "engine_dead" in active:
            node.die()
        elif node.dead:
            node.restart()
        if not node.dead:
            node.hang(on="engine_hang" in active)
