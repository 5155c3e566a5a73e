"""When a change of weights alone may go out, and which old workers drain."""

from __future__ import annotations

import pytest

from vllm_lb.causes import DeferredCause
from vllm_lb.published import Record
from vllm_lb.reload_limit import Deferral, Workers, reason_to_wait, sort_workers
from vllm_lb.settings import NginxSettings

SETTINGS = NginxSettings()  # 30 s, 10 %, old workers of 5 reloads
OLD_WORKERS = Deferral(DeferredCause.OLD_WORKERS, "old workers of 5 reloads still drain, the limit is 5")


def record(*weights: int) -> Record:
    """Return the record of a file with nodes of these weights."""
    nodes = {f"n{i}": weight for i, weight in enumerate(weights)}
    return Record(generation="a", sha256="0" * 64, membership="1" * 64, weights={"p": nodes})


@pytest.mark.parametrize(
    ("weights", "age", "draining", "wait"),
    [
        ((100, 60), 30.0, 0, None),
        ((100, 60), 29.9, 0, Deferral(DeferredCause.COOLDOWN, "the last reload was 29 s ago, the cooldown is 30 s")),
        ((100, 60), 30.0, 4, None),
        (
            (100, 60),
            30.0,
            5,
            OLD_WORKERS,
        ),
        ((100, 91), 30.0, 0, Deferral(DeferredCause.DEADBAND, "no weight changes by 10% or more")),
        ((100, 90), 30.0, 0, None),
        ((99, 110), 30.0, 0, None),
        ((99, 109), 0.0, 9, Deferral(DeferredCause.DEADBAND, "no weight changes by 10% or more")),
    ],
)
def test_a_change_of_weights_waits(weights: tuple[int, int], age: float, draining: int, wait: Deferral | None) -> None:
    assert reason_to_wait(SETTINGS, record(100, 100), record(*weights), age, draining) == wait


def test_without_a_deadband_every_change_counts() -> None:
    settings = NginxSettings(min_weight_change_ratio=0, min_reload_interval_seconds=0)
    assert reason_to_wait(settings, record(100, 100), record(100, 99), 0, 0) is None


def test_workers_are_sorted_by_the_reload_that_made_them() -> None:
    first = sort_workers(Workers(), 1, {2, 3}, 2)
    assert (first.generations, first.draining) == (((2, 3),), 0)
    second = sort_workers(first, 1, {2, 3, 12, 13}, 13)
    assert (second.generations, second.draining) == (((2, 3), (12, 13)), 1)
    replaced = sort_workers(second, 1, {3, 12, 14}, 12)  # 13 died, nginx made 14
    assert (replaced.generations, replaced.draining) == (((3,), (12, 14)), 1)
    third = sort_workers(replaced, 1, {3, 14, 22, 23}, 22)
    assert (third.generations, third.draining) == (((3,), (14,), (22, 23)), 2)
    done = sort_workers(third, 1, {22, 23}, 22)
    assert (done.generations, done.draining) == (((22, 23),), 0)


def test_another_nginx_has_no_old_workers() -> None:
    known = Workers(group=1, generations=((2,), (3,)))
    assert sort_workers(known, 9, {10}, 10) == Workers(group=9, generations=((10,),))
