"""The benchmark's workloads: their statistics, what their prompts share, and how traces are read."""

from __future__ import annotations

import itertools
import json
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from benchmarks import workload
from benchmarks.scenario import ENGINE, KINDS, KNEE, SCENARIOS
from benchmarks.scenario.engines import FAST
from benchmarks.summary import percentile
from benchmarks.workload import Call, Span
from benchmarks.workload.block_names import BlockNames
from benchmarks.workload.draws import LogNormal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.scenario import Scenario

pytestmark = pytest.mark.unmeasured

# What the source says: mean prompt and answer, and how far a drawn mean of some thousand requests may be from it.
MEANS = {
    "tool-loops": (8596, 182, 0.05),
    "long-context": (12_035, 343, 0.06),
    "reasoning": (None, 1527, 0.10),  # its prompts have a median
    "not-streamed": (1155, 211, 0.05),
    "agents": (None, 523, 0.10),
}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_requests_in_order_and_another_one_gives_others(kind: str) -> None:
    first, again, other = (KINDS[kind].draw(1.0, 300.0, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [call.at for call in first] == sorted(call.at for call in first)
    assert all(0 <= call.at < 300 for call in first)
    assert all(call.prompt_tokens >= 1 <= call.output_tokens for call in first)


@pytest.mark.parametrize("kind", MEANS)
def test_means_are_those_of_the_source(kind: str) -> None:
    prompt, output, near = MEANS[kind]
    calls = KINDS[kind].draw(5.0, 3000.0, 1)
    if prompt:
        assert mean([call.prompt_tokens for call in calls]) == pytest.approx(prompt, rel=near)
    assert mean([call.output_tokens for call in calls]) == pytest.approx(output, rel=near)


def test_percentiles_are_those_of_the_source() -> None:
    reasoning = workload.reasoning(5.0, 3000, 1)
    assert percentile([call.prompt_tokens for call in reasoning], 0.5) == pytest.approx(208, rel=0.1)
    assert percentile([call.prompt_tokens for call in reasoning], 0.9) == pytest.approx(2092, rel=0.1)
    assert percentile([call.output_tokens for call in reasoning], 0.99) == pytest.approx(12_607, rel=0.1)
    long = [call.prompt_tokens for call in workload.long_context(5.0, 3000, 1)]
    assert percentile(long, 0.5) == pytest.approx(6909, rel=0.1)
    assert percentile(long, 0.99) == pytest.approx(85_401, rel=0.1)
    assert max(long) == 126_195


def test_coding_agents_grow_by_two_thousand_tokens_a_turn_from_40_to_160_thousand() -> None:
    calls = workload.coding_agents(4.0, 1200, 3)
    assert {call.beginning for call in calls} == {(Span(1, 3000),)}
    assert min(call.prompt_tokens for call in calls) >= 43_000
    assert 150_000 <= max(call.prompt_tokens for call in calls) <= 163_000
    steady = [call for call in calls if call.at >= 240]
    assert len(steady) / 960 == pytest.approx(4.0, rel=0.1)
    growth = [
        later.prompt_tokens - call.prompt_tokens
        for turns in by_conversation(calls)
        for call, later in itertools.pairwise(turns)
    ]
    assert mean(growth) == pytest.approx(2000, rel=0.1)


def by_conversation(calls: Sequence[Call]) -> list[list[Call]]:
    found: dict[int, list[Call]] = {}
    for call in calls:
        found.setdefault(call.conversation, []).append(call)
    return list(found.values())


@pytest.mark.parametrize("kind", ["agents", "tool-loops", "multi-turn"])
def test_a_turn_begins_with_the_blocks_of_the_turn_before_and_of_its_answer(kind: str) -> None:
    longer = [turns for turns in by_conversation(KINDS[kind].draw(1.0, 400.0, 1)) if len(turns) > 1]
    assert longer
    for call, later in itertools.chain.from_iterable(map(itertools.pairwise, longer)):
        if later.prompt_tokens >= call.prompt_tokens + call.output_tokens:  # not cut at the longest prompt
            assert later.prefix(16).common(call.blocks(16)) == (call.prompt_tokens + call.output_tokens) // 16


def test_few_documents_are_shared_by_many_questions() -> None:
    calls = workload.rag(5.0, 600, 1)
    late = [call.beginning[0] for call in calls if call.at >= 200]
    assert len(set(late)) > 50
    assert mean([document.tokens for document in set(late)]) == pytest.approx(24_000, rel=0.15)
    assert late.count(max(late, key=late.count)) / len(late) == pytest.approx(1 / 4.74, rel=0.15)  # Zipf's law of 64
    assert all(call.prompt_tokens - call.beginning[0].tokens < 208 + 14_050 for call in calls)


def test_half_of_the_answers_are_not_streamed() -> None:
    streamed = [call.streamed for call in workload.not_streamed(5.0, 600, 1)]
    assert mean(streamed) == pytest.approx(0.5, abs=0.05)
    assert all(call.streamed for call in workload.azure(5.0, 60, 1))


DOCUMENT, LONGER, OTHER = Span(1, 40), Span(1, 70), Span(2, 40)


def call_of(tokens: int, conversation: int, *beginning: Span, system_prompt: bool = False) -> Call:
    return Call(0.0, tokens, 1, conversation, system_prompt, beginning)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (call_of(100, 1), call_of(200, 1), 100),
        (call_of(100, 1), call_of(100, 2), 0),
        (call_of(300, 1, system_prompt=True), call_of(300, 2, system_prompt=True), 208),
        (call_of(300, 1, system_prompt=True), call_of(300, 1), 0),
        (call_of(100, 1, DOCUMENT), call_of(100, 2, DOCUMENT), 40),
        (call_of(100, 1, DOCUMENT), call_of(90, 1, DOCUMENT), 90),
        (call_of(100, 1, DOCUMENT), call_of(100, 1, OTHER), 0),
        (call_of(100, 1, DOCUMENT), call_of(100, 1, LONGER), 40),  # one text, of which a prompt has less
        (call_of(100, 1, OTHER, DOCUMENT), call_of(100, 1, OTHER, LONGER), 80),
        (call_of(100, 1, OTHER, DOCUMENT), call_of(100, 1, DOCUMENT), 0),
        (call_of(30, 1, DOCUMENT), call_of(100, 2, DOCUMENT), 30),  # ends within the document
    ],
)
@pytest.mark.parametrize("block", [1, 16, 64])
def test_blocks_are_equal_exactly_as_far_as_prompts_are(one: Call, other: Call, shared: int, block: int) -> None:
    assert one.prefix(block).common(other.prefix(block)) == shared // block
    assert len(one.prefix(block)) == one.prompt_tokens // block
    assert len(set(one.prefix(block))) == one.prompt_tokens // block
    pairs = enumerate(zip(one.prompt(), other.prompt(), strict=False))
    equal = next((at for at, (a, b) in pairs if a != b), min(one.prompt_tokens, other.prompt_tokens) * 4)
    assert equal // 4 == shared
    assert len(one.prompt()) == 4 * one.prompt_tokens


def test_block_names_are_a_sequence() -> None:
    names = BlockNames([range(5, 8), range(0), range(20, 24)])
    plain = [5, 6, 7, 20, 21, 22, 23]
    assert list(names) == plain
    assert list(reversed(names)) == plain[::-1]
    assert [names[i] for i in range(-7, 7)] == plain * 2
    for first, end in itertools.product(range(-8, 9), repeat=2):
        assert list(names[first:end]) == plain[first:end]
    assert names[:4] == BlockNames([range(5, 8), range(20, 21)]) != names[:5]
    assert names.common(plain[:5]) == names[:5].common(BlockNames([range(5, 6), range(6, 8), range(20, 99)])) == 5
    assert names.common([5, 6, 8]) == 2
    assert hash(names[:4]) == hash(BlockNames([range(5, 8), range(20, 21)]))
    with pytest.raises(IndexError):
        names[7]
    with pytest.raises(ValueError, match="step 1"):
        names[::2]


def test_a_thousand_prompts_of_160_thousand_tokens_keep_no_names() -> None:
    tracemalloc.start()
    kept = [call_of(160_000, number, Span(1, 3000)).blocks(16) for number in range(1000)]
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert sum(map(len, kept)) == 10_000_000
    assert used < 2_000_000
    assert sys.getsizeof(kept[0]) < 200


def test_a_log_normal_distribution_through_two_percentiles() -> None:
    found = LogNormal.through(208, 2092)
    assert found.mean == pytest.approx(1051, rel=0.01)
    assert found.p99 == pytest.approx(13_700, rel=0.01)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if name not in ("bursty", "long", "multi-turn")])
def test_a_demand_is_what_the_requests_take(kind: str) -> None:
    demand, calls = KINDS[kind].demand, KINDS[kind].draw(5.0, 600.0, 1)
    steady = 200.0
    seen: dict[int, int] = {}  # by span or conversation, the tokens that earlier requests have computed
    fresh = []
    for call in calls:
        tokens = call.prompt_tokens - sum(span.tokens for span in call.spans)
        new = max(0, tokens - seen.get(call.conversation, 0))
        seen[call.conversation] = tokens + call.output_tokens
        fresh.append(new)
    late = [new for new, call in zip(fresh, calls, strict=True) if call.at >= steady]
    assert mean(late) == pytest.approx(demand.fresh, rel=0.15)
    assert mean([call.output_tokens for call in calls]) == pytest.approx(demand.output, rel=0.1)
    documents = [sum(span.tokens for span in call.beginning) if kind == "rag" else 0 for call in calls]
    running = [
        (call.output_tokens, call.prompt_tokens - document + call.output_tokens / 2)
        for call, document in zip(calls, documents, strict=True)
        if call.at >= steady
    ]
    held = sum(output * tokens for output, tokens in running) / sum(output for output, _ in running)
    assert held == pytest.approx(demand.held, rel=0.1)


def test_the_knee_is_the_measured_one_for_the_engine_that_it_was_measured_with() -> None:
    assert KINDS["azure"].knee(ENGINE) == KNEE
    assert KINDS["azure"].knee(FAST) > 1.8 * KNEE
    assert KINDS["reasoning"].knee(ENGINE) < KNEE / 2


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_all_requests_of_a_scenario_fit_its_engine_or_few_are_left_out(scenario: Scenario) -> None:
    short = scenario.shortened(min(1.0, 8 / len(scenario.speeds)))
    calls, drawn = short.calls(0), short.workload.draw(short.rate, short.seconds, 0)
    assert max(call.prompt_tokens + call.output_tokens for call in calls) <= scenario.engine.longest_request
    assert len(calls) >= 0.995 * len(drawn)


ROWS = [
    {"timestamp": 27_000, "input_length": 1500, "output_length": 52, "hash_ids": [46, 47, 2353]},
    {"timestamp": 29_000, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 2366]},
    {"timestamp": 31_000, "input_length": 300, "output_length": 1, "hash_ids": [7]},
]


def test_a_trace_of_mooncake_is_replayed_with_what_its_prompts_share(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    calls = workload.read_trace(path, rate=2.0, seconds=0.9)
    assert [(call.at, call.prompt_tokens, call.output_tokens) for call in calls] == [(0.0, 1500, 52), (0.5, 1030, 26)]
    whole = workload.read_trace(path, rate=1.0, seconds=10.0)
    assert [call.at for call in whole] == [0.0, 1.0, 2.0]
    first, second, third = (call.prefix(16) for call in whole)
    assert [len(names) for names in (first, second, third)] == [1500 // 16, 1030 // 16, 300 // 16]
    assert first.common(second) == 2 * 512 // 16
    assert first.common(third) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"timestamp": 0}', "line 1: expected timestamp, input_length, output_length, hash_ids: 'input_length'"),
        (json.dumps(ROWS[0]) + "\nnothing", "line 2: expected timestamp"),
        (json.dumps(ROWS[0]), "expected at least two requests"),
        ("", "expected at least two requests"),
    ],
)
def test_a_file_that_is_no_trace_of_mooncake_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        workload.read_trace(path, rate=1.0, seconds=10.0)
