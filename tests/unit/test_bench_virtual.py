"""The benchmark in virtual time: a smoke run of every contestant, expected results, and its parts."""

from __future__ import annotations

import functools
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import virtual, workload
from benchmarks.results import Results
from benchmarks.scenario import BY_NAME, SCENARIOS, Scenario
from benchmarks.summary import percentile
from benchmarks.virtual.limits import Limit, queue_length
from benchmarks.virtual.nginx_model import Nginx, Peers
from benchmarks.virtual.node import VirtualNode
from benchmarks.virtual.run import play

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.unmeasured
ROOT = Path(__file__).resolve().parents[2]
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


class Recorded(Limit):
    """Sends each request to the shortest queue, and notes what an ingress is told."""

    def __init__(self) -> None:
        """Note nothing yet."""
        super().__init__("recorded", queue_length)
        self.began: list[int] = []
        self.ticks: list[tuple[int, float]] = []
        self.sent: list[tuple[int, workload.Call]] = []
        self.first: list[object] = []

    def begin(self, nodes: Sequence[VirtualNode], scenario: Scenario, chance: random.Random) -> None:
        """Start."""
        super().begin(nodes, scenario, chance)
        self.began.append(self.ingress)

    def choose(self, call: workload.Call, tried: set[int], now: float) -> tuple[int, Any] | None:
        """Choose, and note it."""
        chosen = super().choose(call, tried, now)
        self.sent.append((self.ingress, call))
        return (chosen[0], call) if chosen else None

    def first_token(self, ticket: object, now: float) -> None:
        """Note it."""
        del now
        self.first.append(ticket)

    def tick(self, now: float) -> None:
        """Note it."""
        self.ticks.append((self.ingress, now))


def test_each_ingress_is_a_contestant_and_a_conversation_keeps_to_one() -> None:
    told = Recorded()
    scenario = replace(BY_NAME["multi-turn"].shortened(0.2), ingresses=3)
    summary = play(told, scenario, 1)
    assert told.began == [0, 1, 2]
    homes: dict[int, set[int]] = {}
    for ingress, call in told.sent:
        homes.setdefault(call.conversation, set()).add(ingress)
    assert {len(each) for each in homes.values()} == {1}
    shares = [sum(ingress == number for ingress, _ in told.sent) / len(told.sent) for number in range(3)]
    assert min(shares) > 0.2
    assert [tick for tick in told.ticks if tick[1] in (0.0, 10.0)] == [(0, 0.0), (1, 0.0), (2, 0.0), (0, 10.0)]
    assert min(at for ingress, at in told.ticks if ingress == 1 and at) == pytest.approx(10 / 3)
    assert summary.at_home is not None
    assert 0 < summary.at_home < 1


def test_no_first_token_is_told_of_an_answer_that_is_not_streamed() -> None:
    told = Recorded()
    scenario = BY_NAME["not-streamed"].shortened(0.2)
    summary = play(told, scenario, 1)
    streamed = [call for _, call in told.sent if call.streamed]
    assert 0 < len(streamed) < len(told.sent)
    assert sorted(told.first, key=id) == sorted(streamed, key=id)
    assert summary.goodput > 0.9
    assert summary.failed == 0


@pytest.mark.parametrize("name", ["agents", "multi-turn", "rag"])
def test_a_node_knows_how_much_of_a_prompt_it_has_cached(name: str) -> None:
    scenario = BY_NAME[name]
    node = VirtualNode(0, scenario.engine, 1.0)
    calls = scenario.shortened(0.1).calls(0)
    first = calls[0]
    again = next(call for call in calls[1:] if call.prefix(16).common(first.prefix(16)) > 10)
    assert node.cached_tokens(again) == 0
    request, now = node.request(first), 0.0
    node.engine.submit(request, now)
    while (ends_at := node.engine.begin(now)) is not None:
        node.engine.finish()
        now = ends_at
    computed = (first.prompt_tokens + first.output_tokens - 1) // 16  # the last token is no input
    shared = min(again.prefix(16).common(first.blocks(16)), computed, (again.prompt_tokens - 1) // 16)
    assert node.cached_tokens(again) == 16 * shared


def test_contestants_can_be_handed_to_other_processes() -> None:
    assert [each.name for each in pickle.loads(pickle.dumps(virtual.CONTESTANTS))] == list(CONTESTANTS)  # noqa: S301 - ours


def series(results: Path, *options: str) -> subprocess.Popen[str]:
    """Start a series of eight short runs in virtual time."""
    words = ["virtual", "--only", "nginx-least-conn,jsq", "--scenarios", "equal-60", "--seeds", "4", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words, "--results", str(results)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "files"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_series_that_is_ended_keeps_its_runs_and_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "virtual.json"
    with series(path) as ended:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < deadline
            assert ended.poll() is None
        ended.send_signal(signal.SIGTERM)
        ended.communicate(timeout=120)
    assert ended.returncode == 1
    kept = Results.load(path).rows
    assert 0 < len(kept) < 8
    with series(path, "--continue") as continued:
        output, _ = continued.communicate(timeout=120)
    assert continued.returncode == 0
    assert f"[1/{8 - len(kept)}]" in output
    rows = Results.load(path).rows
    assert [(row["contestant"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("nginx-least-conn", "jsq") for seed in range(4)
    ]
    assert [row for row in kept if row not in rows] == []
    assert path.with_suffix(".png").exists()
