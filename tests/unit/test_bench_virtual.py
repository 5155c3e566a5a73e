"""The benchmark in virtual time: a smoke run of every contestant, expected results, and its parts."""

from __future__ import annotations

import functools
import pickle
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import virtual, workload
from benchmarks.scenario import BY_NAME, SCENARIOS, Scenario
from benchmarks.summary import percentile
from benchmarks.virtual.nginx_model import Nginx, Peers
from benchmarks.virtual.run import play

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unmeasured
CONTESTANTS = {each.name: each for each in virtual.CONTESTANTS}


@functools.cache
def p99(contestant: str, scenario: str) -> float:
    """Return the mean over two seeds of the p99 time to first token."""
    return sum(play(CONTESTANTS[contestant], BY_NAME[scenario], seed).ttft_p99 for seed in range(2)) / 2


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_every_contestant_answers_every_request_and_repeats_exactly(contestant: str) -> None:
    scenario = BY_NAME["equal-75"].shortened(0.06)
    first, second = (play(CONTESTANTS[contestant], scenario, 7) for _ in range(2))
    assert first == second
    assert first.requests > 80
    assert (first.failed, first.cut) == (0, 0)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_runs_with_the_default_policy(scenario: Scenario) -> None:
    found = play(CONTESTANTS["ours-capacity"], scenario.shortened(min(0.15, 1.2 / len(scenario.speeds))), 1)
    assert found.requests > 20
    assert found.failed == 0
    assert (found.cut > 0) == (scenario.name == "restart")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_most"), [("equal-75", 1.05), ("equal-90", 1.05), ("unequal", 0.75), ("slowed", 0.75), ("hidden", 0.75)]
)
def test_the_default_policy_against_least_conn_alone(name: str, at_most: float) -> None:
    assert p99("ours-capacity", name) / p99("nginx-least-conn", name) <= at_most


@pytest.mark.slow
def test_weights_that_are_learned_are_as_good_as_known_ones() -> None:
    assert p99("ours-capacity", "unequal") <= 1.1 * p99("ours-static", "unequal")


@pytest.mark.slow
def test_steady_load_costs_few_reloads() -> None:
    steady = replace(BY_NAME["unequal"], seconds=1800.0)
    assert play(CONTESTANTS["ours-capacity"], steady, 3).reloads_per_hour <= 30


def test_the_smooth_round_robin_of_nginx() -> None:
    peers = Peers([5, 1, 1], max_fails=1, fail_timeout=10)
    chosen = [peers.round_robin(set(), 0.0) for _ in range(7)]
    assert chosen == [0, 0, 1, 0, 2, 0, 0]  # the example in nginx's own commit message


def test_least_conn_compares_connections_per_weight() -> None:
    peers = Peers([100, 50], max_fails=1, fail_timeout=10)
    assert sorted(peers.least_conn(set(), 0.0) or 0 for _ in range(6)) == [0, 0, 0, 0, 1, 1]


def test_a_server_is_left_out_after_its_failures_and_asked_again_later() -> None:
    peers = Peers([1, 1], max_fails=2, fail_timeout=10)
    for _ in range(2):
        peers.free(peers.connect(0, 5.0), 5.0, failed=True)
    assert {peers.round_robin(set(), 6.0) for _ in range(4)} == {1}
    assert {peers.round_robin(set(), 16.0) for _ in range(4)} == {0, 1}


def test_a_reload_forgets_counts_and_leaves_old_requests_to_the_old_workers() -> None:
    nginx = Nginx([1, 1], method="least_conn", chance=random.Random(1))  # noqa: S311 - to be repeated
    tickets = [nginx.choose(set(), 0.0) for _ in range(4)]
    nginx.reload([1, 2])
    assert nginx.draining == 1
    assert [peer.conns for peer in nginx.serving.counters[0].all] == [0, 0]
    for ticket in tickets:
        assert ticket
        nginx.free(ticket, 1.0, failed=False)
    assert nginx.draining == 0


def test_workloads_have_the_statistics_of_the_trace() -> None:
    calls = workload.azure(5.5, 4000, seed=1)
    prompts, outputs = ([getattr(c, name) for c in calls] for name in ("prompt_tokens", "output_tokens"))
    assert len(calls) / 4000 == pytest.approx(5.5, rel=0.05)
    assert sum(prompts) / len(prompts) == pytest.approx(1155, rel=0.05)
    assert percentile(prompts, 0.99) == pytest.approx(4142, rel=0.12)
    assert sum(outputs) / len(outputs) == pytest.approx(211, rel=0.05)
    assert percentile(outputs, 0.99) == pytest.approx(601, rel=0.12)


def test_conversations_share_the_beginnings_of_their_prompts() -> None:
    calls = workload.multi_turn(5.0, 600, seed=2)
    assert len(calls) / 600 == pytest.approx(5.0, rel=0.2)
    turns: dict[int, list[workload.Call]] = {}
    for call in calls:
        turns.setdefault(call.conversation, []).append(call)
    first, second = next(found for found in turns.values() if len(found) > 1)[:2]
    assert second.prompt().startswith(first.prompt())
    assert second.prefix(16)[: len(first.prefix(16))] == first.prefix(16)
    other = next(call for call in calls if call.conversation != first.conversation)
    assert other.prefix(16)[:13] == first.prefix(16)[:13]
    assert other.prefix(16)[13] != first.prefix(16)[13]
    assert len(first.prompt()) == 4 * first.prompt_tokens


def test_a_trace_is_replayed_at_the_wanted_rate(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{second:02}.6805900,{100 + second},{10 + second}" for second in range(11)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    calls = workload.read_trace(path, rate=2.0, seconds=3.0)
    assert [(round(call.at, 3), call.prompt_tokens) for call in calls] == [(at / 2, 100 + at) for at in range(6)]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected columns TIMESTAMP, ContextTokens, GeneratedTokens"):
        workload.read_trace(path, rate=2.0, seconds=3.0)


def test_contestants_can_be_handed_to_other_processes() -> None:
    assert [each.name for each in pickle.loads(pickle.dumps(virtual.CONTESTANTS))] == list(CONTESTANTS)  # noqa: S301 - ours
