"""The faults of the soak: every kind comes, and the nodes that are left can serve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.soak.disturbed_site import TICKS
from tests.soak.schedule import BALANCER, EVERYWHERE, HARMLESS, METRICS_ALONE, SERVICE, Schedule

MAKEFILE = Path(__file__).parents[2] / "Makefile"
NODES = ["node-a", "node-b", "node-c", "node-d"]


def test_the_seed_of_make_test_soak_has_every_kind_of_fault() -> None:
    [seed] = re.findall(r"^SOAK_SEED \?= (\d+)$", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
    events = Schedule(int(seed), NODES, TICKS).events()
    assert {event.what for event in events if event.out} >= {*SERVICE, *EVERYWHERE} - {*HARMLESS}
    assert {event.what for event in events if not event.out} >= {
        *METRICS_ALONE,
        *HARMLESS,
        *BALANCER.keys() - {"drain", "remove"},
    }
    assert {event.what for event in events} >= {*BALANCER, "speed"}


@pytest.mark.parametrize("seed", range(40))
def test_half_of_the_nodes_serve_or_all_have_the_same_fault(seed: int) -> None:
    events = Schedule(seed, NODES, TICKS).events()
    for tick in range(TICKS):
        active = [event for event in events if event.node and event.begins <= tick < event.ends]
        assert len({event.node for event in active}) == len(active), "one fault at a node at a time"
        out = [event.what for event in active if event.out]
        assert len(out) <= len(NODES) // 2 or set(out) < set(EVERYWHERE), out
