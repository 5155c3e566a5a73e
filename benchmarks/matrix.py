"""Which contestants run in which scenarios of the real-time benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.contestant import Contestant
    from benchmarks.scenario import Scenario

# The scenarios of some contestants; other contestants run in all. The list has variants of a product, contestants that
# differ from another one in few scenarios, and those that show the cost of something. Without it a full run takes more
# than three hours instead of two.
ONLY_IN = {
    "nginx-least-conn-no-zone": {"equal-75"},
    "nginx-random-two": {"equal-75"},
    "article": {"equal-75", "unequal", "slowed", "long-streams"},
    "ours-stepped": {"equal-75", "unequal", "slowed", "frozen", "long-streams"},
    "ours-static": {"unequal"},  # on nodes of equal capacity this is nginx-least-conn
    "ours-work-no-prefix": {"equal-75", "multi-turn", "tool-loops"},
    "haproxy-weights": {"unequal", "slowed"},
    "vllm-router-power-of-two": {"equal-75", "unequal"},
    "vllm-router-round-robin": {"equal-75"},
    "litellm": {"equal-75"},
    "litellm-least-busy": {"equal-75"},
}
# The contestants that read the nodes' metrics, and the one that they are compared with.
READS_METRICS = {"nginx-least-conn", "article", "ours-stepped", "ours-capacity", "ours-work"}
QUICK_CONTESTANTS = ("nginx-least-conn", "ours-work", "haproxy-leastconn")
QUICK_SCENARIOS = ("equal-75", "unequal")


def contestants_of(scenario: Scenario, contestants: Sequence[Contestant]) -> list[Contestant]:
    """Return those of the contestants that run in a scenario."""
    found = [each for each in contestants if scenario.name in ONLY_IN.get(each.name, {scenario.name})]
    return [each for each in found if each.name in READS_METRICS] if scenario.metrics_only else found
