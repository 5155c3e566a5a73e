"""The kinds of workload, and how many requests of a kind an engine can serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import workload
from benchmarks.scenario.engines import ENGINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workload import Call
    from simulator.engine_config import EngineConfig

# Requests per second and node with the engine ENGINE and independent requests, up to which 95 % of them are good
# (summary.py) with join-the-shortest-queue without delay. `python -m benchmarks knee` measures it.
KNEE = 1.83
LONGEST_STEP_SECONDS = 0.1  # with longer ones no request would be good


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request takes, in the mean.

    Attributes:
        fresh: prompt tokens that no earlier request has computed.
        output: tokens of its answer.
        held: tokens that a running one holds in the KV cache, half of its answer included, without those of documents
            that many requests share. A request counts for as long as it runs: as much as its answer has tokens.
        pause_seconds: from its end to the next turn, while its tokens should stay in the cache; 0 if no turn follows.
    """

    fresh: float
    output: float
    held: float
    pause_seconds: float = 0.0

    def most(self, engine: EngineConfig, step_seconds: float) -> float:
        """Return the requests per second that an engine can serve if its steps last so long in the mean.

        There are three limits: what steps of this length compute, the sequences at once, and the tokens of requests
        that run or pause, which the cache must hold.
        """
        runs = self.output * step_seconds
        work = self.fresh * engine.prefill_token_seconds + self.output * engine.decode_sequence_seconds
        return min(
            (1 - engine.step_seconds / step_seconds) / work,
            engine.max_num_seqs / runs,
            engine.num_blocks * engine.block_size / self.held / (runs + self.pause_seconds),
        )

    def capacity(self, engine: EngineConfig) -> float:
        """Return the most requests per second that an engine can serve with steps up to LONGEST_STEP_SECONDS."""
        lengths = range(round(engine.step_seconds * 1000), round(LONGEST_STEP_SECONDS * 1000) + 1)
        return max(self.most(engine, length / 1000) for length in lengths)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of workload.

    Attributes:
        draw: makes the requests of a rate, a duration and a seed.
        demand: of one request; tests compare it with what is drawn.
        traced: whether a trace can take the place of the drawn requests.
    """

    draw: Callable[[float, float, int], list[Call]]
    demand: Demand
    traced: bool = False

    def knee(self, engine: EngineConfig) -> float:
        """Return the requests per second up to which a node with this engine serves most requests well.

        It is KNEE for independent requests and today's engine. For others it is the same share of their capacity. That
        is an estimate: caches are perfect, and shared documents take no room.
        """
        return KNEE * self.demand.capacity(engine) / AZURE.capacity(ENGINE)


AZURE = Demand(fresh=1155, output=211, held=1290)
# Those with the demand AZURE make about as much work as independent requests, though their lengths differ.
KINDS = {
    "azure": Kind(workload.azure, AZURE, traced=True),
    "bursty": Kind(workload.bursty, AZURE),
    "multi-turn": Kind(workload.multi_turn, AZURE),
    "long": Kind(workload.long_streams, AZURE),
    "not-streamed": Kind(workload.not_streamed, AZURE),
    "agents": Kind(workload.coding_agents, Demand(fresh=1500, output=523, held=107_000, pause_seconds=8.0)),
    "tool-loops": Kind(workload.tool_loops, Demand(fresh=730, output=182, held=8800, pause_seconds=2.0)),
    "rag": Kind(workload.rag, Demand(fresh=130, output=211, held=460)),
    "long-context": Kind(workload.long_context, Demand(fresh=11_900, output=343, held=12_100), traced=True),
    "reasoning": Kind(workload.reasoning, Demand(fresh=900, output=1460, held=3300)),
    "reasoning-mix": Kind(workload.reasoning_mix, Demand(fresh=1105, output=461, held=2600)),
}
