"""The policies: the ladder on every combination of its inputs, and static weights.

The ladder's text: levels 100, 60, 30, 10. KV-cache usage of 0.92 and more gives 10, of 0.85 and more
30, of 0.75 and more 60, else 100. Then waiting requests, new preemptions, and more than 8 running
requests per engine each move the weight one place down; the last level is the end.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.unit.samples import config, reading
from vllm_lb import settings
from vllm_lb.causes import NodeCause
from vllm_lb.decide import POLICIES
from vllm_lb.memory import NodeMemory
from vllm_lb.policies import Moment, Observation, Verdict, static
from vllm_lb.policies.stepped import verdict
from vllm_lb.settings import Policies, Stepped

if TYPE_CHECKING:
    from vllm_lb.observation import Reading


def ladder(load: Reading, preemptions: int, rules: Stepped = Stepped()) -> Verdict:  # noqa: B008 - its defaults
    """Return what the ladder says of one node."""
    return verdict(Observation(load, preemptions, NodeMemory()), rules)


KV = {0.0: 100, 0.5: 100, 0.7499: 100, 0.75: 60, 0.8499: 60, 0.85: 30, 0.9199: 30, 0.92: 10, 1.0: 10}
WAITING = {0: False, 1: True, 40: True}
RUNNING_PER_ENGINE = {0: False, 7: False, 8: False, 9: True, 200: True}
PREEMPTIONS = {0: False, 1: True, 9: True}
AFTER_DOWNGRADES = {100: [100, 60, 30, 10], 60: [60, 30, 10, 10], 30: [30, 10, 10, 10], 10: [10, 10, 10, 10]}


@pytest.mark.parametrize("engines", [1, 2, 8])
def test_the_ladder_on_every_combination(engines: int) -> None:
    seen = 0
    for kv, waiting, running, preemptions in itertools.product(KV, WAITING, RUNNING_PER_ENGINE, PREEMPTIONS):
        signs = WAITING[waiting] + RUNNING_PER_ENGINE[running] + PREEMPTIONS[preemptions]
        load = reading(kv_cache_usage=kv, waiting=waiting, running=running * engines, engines=engines)
        found = ladder(load, preemptions)
        assert found.weight == AFTER_DOWNGRADES[KV[kv]][signs], (kv, waiting, running, preemptions, found)
        assert found.cause == (NodeCause.DOWNGRADED if signs else NodeCause.KV_LEVEL)
        seen += 1
    assert seen == 9 * 3 * 5 * 3


def test_the_reason_names_every_sign() -> None:
    load = reading(kv_cache_usage=0.41, waiting=3, running=20, engines=2)
    assert ladder(load, 2) == Verdict(
        10,
        NodeCause.DOWNGRADED,
        "kv 0.41 < 0.75, waiting 3 > 0, 2 new preemptions, running 10 > 8 per engine",
    )


def test_one_engine_too_many_is_per_engine() -> None:
    load = reading(running=17, engines=2)
    assert ladder(load, 0).weight == 60


def test_thresholds_come_from_the_configuration() -> None:
    rules = Stepped(levels=(90, 5), kv_cache=(), max_waiting=5, max_running=100, downgrade_on_preemption=False)
    calm = reading(kv_cache_usage=1.0, waiting=5, running=100)
    assert ladder(calm, 7, rules) == Verdict(90, NodeCause.KV_LEVEL, "kv 1.00")
    assert ladder(reading(waiting=6), 0, rules).weight == 5


def test_static_weights_follow_capacity() -> None:
    nodes = [{"name": f"n{c}", "host": f"127.0.0.{i}", "capacity": c} for i, c in enumerate([0.01, 1, 2, 4], 1)]
    pool = config(pool={"policy": "static", "nodes": nodes}).pools[0]
    seen = {node.name: Observation(reading(kv_cache_usage=1.0), 5, NodeMemory()) for node in pool.nodes}
    weights = {name: each.weight for name, each in static.weigh(pool, Policies(), seen, Moment(0.0)).items()}
    assert weights == {"n0.01": 1, "n1": 25, "n2": 50, "n4": 100}


def test_a_reason_is_not_rounded_up_to_the_limit() -> None:
    assert ladder(reading(kv_cache_usage=0.7499), 0).reason == "kv 0.74 < 0.75"


def test_every_policy_that_may_be_configured_exists() -> None:
    assert sorted(POLICIES) == sorted(settings.POLICIES)
