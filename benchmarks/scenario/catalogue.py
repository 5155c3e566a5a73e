"""The scenarios. The benchmarks in real and in virtual time run the same ones.

"Knee" is the load up to which most requests are served well, see kinds.py.
"""

from __future__ import annotations

from benchmarks.scenario.engines import FAST, FEW_SEQUENCES, LARGE_CHUNKS, SLOW, SMALL_KV
from benchmarks.scenario.situation import Event, Scenario

FAST_AND_SLOW = (1.0, 1.0, 0.4, 0.4)
FIRST = (
    Scenario(name="equal-60", title="four equal nodes at 60 % of the knee", load=0.60, seconds=300, warm_up=60),
    Scenario(name="equal-75", title="four equal nodes at 75 % of the knee", load=0.75, seconds=400, warm_up=80),
    Scenario(name="equal-90", title="four equal nodes at 90 % of the knee", load=0.90, seconds=450, warm_up=90),
    Scenario(name="unequal", title="two fast and two slow nodes (0.4x), 75 %", load=0.75, speeds=FAST_AND_SLOW),
    Scenario(
        name="slowed",
        title="one node three times slower for a while, 65 %",
        load=0.65,
        events=(Event(180, 1, "speed", 1 / 3), Event(420, 1, "speed", 1.0)),
    ),
    Scenario(
        name="hidden",
        title="traffic the proxy cannot see on one node, 60 % + 3/4 of a node",
        load=0.60,
        hidden=((2, 0.75),),
    ),
    Scenario(
        name="restart",
        title="one node restarted, 60 %",
        load=0.60,
        seconds=450,
        warm_up=90,
        events=(Event(180, 1, "down"), Event(240, 1, "up")),
    ),
    Scenario(name="bursty", title="arrivals with a CV of 13, 60 %", load=0.60, seconds=450, warm_up=90, kind="bursty"),
    Scenario(
        name="multi-turn",
        title="chats with a growing shared prefix, 90 %",
        load=0.90,
        seconds=300,
        warm_up=60,
        kind="multi-turn",
    ),
    Scenario(
        name="scrape-loss",
        title="one node's metrics fail for two minutes, unequal nodes, 75 %",
        load=0.75,
        speeds=FAST_AND_SLOW,
        events=(Event(200, 2, "blind", 1), Event(320, 2, "blind", 0)),
        metrics_only=True,
    ),
    Scenario(
        name="frozen",
        title="one node's metrics stand still, unequal nodes, 75 %",
        load=0.75,
        speeds=FAST_AND_SLOW,
        events=(Event(200, 0, "frozen", 1), Event(500, 0, "frozen", 0)),
        metrics_only=True,
    ),
    Scenario(
        name="long-streams",
        title="answers of a minute and more while a node slows down and recovers, 65 %",
        load=0.65,
        kind="long",
        events=(Event(180, 1, "speed", 1 / 3), Event(420, 1, "speed", 1.0)),
        metrics_only=True,
    ),
)
# What people run now: long prompts that share much, and long answers. Where much is shared, the load is a share of what
# perfect caches make possible. At the lower loads `least_conn` still keeps up.
WORKLOADS = (
    Scenario(
        name="agents",
        title="coding agents, prompts of 43,000 to 163,000 tokens, fast GPU, 30 %",
        load=0.30,
        warm_up=240,
        kind="agents",
        engine=FAST,
    ),
    Scenario(
        name="agents-75",
        title="as many coding agents as the caches hold, fast GPU, 75 %",
        load=0.75,
        warm_up=240,
        kind="agents",
        engine=FAST,
    ),
    Scenario(
        name="tool-loops",
        title="loops of tools with short answers, fast GPU, 40 %",
        load=0.40,
        seconds=400,
        warm_up=150,
        kind="tool-loops",
        engine=FAST,
    ),
    Scenario(
        name="tool-loops-75",
        title="loops of tools with short answers, fast GPU, 75 %",
        load=0.75,
        seconds=400,
        warm_up=150,
        kind="tool-loops",
        engine=FAST,
    ),
    Scenario(
        name="rag",
        title="questions about 64 long documents, fast GPU, 30 %",
        load=0.30,
        seconds=450,
        warm_up=200,
        kind="rag",
        engine=FAST,
    ),
    Scenario(
        name="long-context",
        title="independent prompts up to 128 K, fast GPU, 60 %",
        load=0.60,
        kind="long-context",
        engine=FAST,
    ),
    Scenario(
        name="reasoning", title="short prompts, answers of thousands of tokens, 75 %", load=0.75, kind="reasoning"
    ),
    Scenario(name="reasoning-mix", title="a fifth of reasoning among chats, 75 %", load=0.75, kind="reasoning-mix"),
    Scenario(
        name="not-streamed",
        title="half of the answers not streamed, 85 %",
        load=0.85,
        seconds=450,
        warm_up=90,
        kind="not-streamed",
    ),
)
# Other engines, with independent requests and with those that fill caches.
ENGINES = (
    Scenario(
        name="fast-gpu",
        title="fast GPU, 85 %",
        load=0.85,
        seconds=300,
        warm_up=60,
        engine=FAST,
        virtual_only=True,
    ),
    Scenario(name="slow-gpu", title="slow GPU, 85 %", load=0.85, engine=SLOW, virtual_only=True),
    Scenario(
        name="slow-gpu-reasoning-mix",
        title="slow GPU, a fifth of reasoning among chats, 85 %",
        load=0.85,
        kind="reasoning-mix",
        engine=SLOW,
        virtual_only=True,
    ),
    Scenario(
        name="small-kv",
        title="KV caches of 24,576 tokens, 85 %",
        load=0.85,
        engine=SMALL_KV,
        virtual_only=True,
    ),
    Scenario(
        name="small-kv-reasoning-mix",
        title="KV caches of 24,576 tokens, a fifth of reasoning among chats, 65 %",
        load=0.65,
        kind="reasoning-mix",
        engine=SMALL_KV,
        virtual_only=True,
    ),
    Scenario(
        name="few-sequences",
        title="at most 16 sequences at once, 85 %",
        load=0.85,
        engine=FEW_SEQUENCES,
        virtual_only=True,
    ),
    Scenario(
        name="large-chunks",
        title="steps of up to 8,192 tokens, 85 %",
        load=0.85,
        engine=LARGE_CHUNKS,
        virtual_only=True,
    ),
)


def _fleet(nodes: int, seconds: float, ingresses: int = 1, kind: str = "azure", load: float = 0.85) -> Scenario:
    """Return a scenario of equal nodes."""
    name, title = f"fleet-{nodes}", f"{nodes} equal nodes"
    if ingresses > 1:
        name, title = f"{name}-by-{ingresses}", f"{title}, {ingresses} ingresses"
    if kind != "azure":
        name, title = f"{name}-{kind}", f"{title}, {kind}"
    return Scenario(
        name=name,
        title=f"{title}, {load:.0%}".replace("%", " %"),
        load=load,
        speeds=(1.0,) * nodes,
        seconds=seconds,
        warm_up=seconds / 4,
        kind=kind,
        ingresses=ingresses,
        virtual_only=nodes > MOST_REAL_NODES or ingresses > 1,
    )


MOST_REAL_NODES = 4  # simulated nodes on one machine
FLEETS = (
    _fleet(2, 600),
    _fleet(2, 600, kind="reasoning-mix", load=0.75),
    _fleet(4, 450, ingresses=2),
    _fleet(16, 240),
    _fleet(16, 240, ingresses=8),
    _fleet(16, 240, ingresses=8, kind="multi-turn"),
    _fleet(64, 120),
    _fleet(64, 120, ingresses=8),
    _fleet(1000, 60),
    _fleet(1000, 60, ingresses=10),
)
SCENARIOS = (*FIRST, *WORKLOADS, *ENGINES, *FLEETS)
# A name that stands for several scenarios on the command line.
GROUPS = {
    name: tuple(scenario.name for scenario in group)
    for name, group in {"first": FIRST, "workloads": WORKLOADS, "engines": ENGINES, "fleets": FLEETS}.items()
}
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
