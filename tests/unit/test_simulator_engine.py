"""The simulated engine in virtual time: its limits, its order, preemption, abort and determinism."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine import Engine
from simulator.engine_config import EngineConfig
from simulator.engine_records import Request, StepReport

if TYPE_CHECKING:
    from collections.abc import Iterable

SMALL = EngineConfig(
    max_num_batched_tokens=8,
    max_num_seqs=3,
    num_blocks=8,
    block_size=4,
    step_seconds=1.0,
    prefill_token_seconds=0.125,
    decode_sequence_seconds=0.25,
)


def check_limits(engine: Engine, report: StepReport) -> None:
    config = engine.config
    assert 0 < report.prefill_tokens + report.decodes <= config.max_num_batched_tokens
    assert len(engine.running) <= config.max_num_seqs
    own = sum(request.blocks - request.cached_blocks for request in engine.running)
    shared = {each for request in engine.running for each in request.prefix[: request.cached_blocks]}
    assert engine.used_blocks == own + len(shared)
    assert 0 <= engine.used_blocks <= config.num_blocks
    assert all(request.computed <= request.blocks * config.block_size for request in engine.running)
    in_order = [request.arrived_at for request in (*engine.running, *engine.waiting)]
    assert in_order == sorted(in_order)


def run(engine: Engine, arrivals: Iterable[tuple[float, Request]]) -> list[StepReport]:
    """Submit requests at their times and step until all are done, checking the limits at every step."""
    pending = sorted(arrivals, key=lambda arrival: arrival[0])
    reports, now = [], 0.0
    while pending or engine.running or engine.waiting:
        while pending and pending[0][0] <= now:
            at, request = pending.pop(0)
            engine.submit(request, at)
        ends_at = engine.begin(now)
        if ends_at is None:
            now = pending[0][0]
            continue
        report = engine.finish()
        check_limits(engine, report)
        reports.append(report)
        now = ends_at
    return reports


def step(engine: Engine, now: float = 0.0) -> StepReport:
    assert engine.begin(now) is not None
    return engine.finish()


def test_a_step_costs_its_base_its_prompt_tokens_and_its_continuing_sequences() -> None:
    engine = Engine(SMALL)
    engine.submit(Request("first", prompt_tokens=4, max_tokens=3), 0.0)
    assert engine.begin(0.0) == 1.5  # base + 4 prompt tokens
    engine.finish()
    engine.submit(Request("second", prompt_tokens=2, max_tokens=1), 1.5)
    assert engine.begin(1.5) == 3.0  # base + one continuing sequence + 2 prompt tokens
    assert engine.finish().decodes == 1
    engine.speed = 0.5
    assert engine.begin(3.0) == 3.0 + 2 * 1.25


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = Engine(SMALL)
    request = Request("long", prompt_tokens=20, max_tokens=2)
    reports = run(engine, [(0.0, request)])
    assert [report.prefill_tokens for report in reports] == [8, 8, 4, 0]
    assert [len(report.advanced) for report in reports] == [0, 0, 1, 1]
    assert request.first_token_at == reports[2].ends_at
    assert request.token_gap == reports[3].ends_at - reports[2].ends_at


def test_running_requests_come_before_a_waiting_prompt() -> None:
    engine = Engine(SMALL)
    engine.submit(Request("running", prompt_tokens=1, max_tokens=5), 0.0)
    step(engine)
    engine.submit(Request("late", prompt_tokens=20, max_tokens=1), 1.0)
    report = step(engine, 2.0)
    assert (report.decodes, report.prefill_tokens) == (1, SMALL.max_num_batched_tokens - 1)


def test_first_come_first_served() -> None:
    engine = Engine(SMALL)
    requests = [Request(str(number), prompt_tokens=3, max_tokens=4) for number in range(8)]
    reports = run(engine, [(number / 100, request) for number, request in enumerate(requests)])
    finished = [request.request_id for report in reports for request in report.finished]
    assert finished == [str(number) for number in range(8)]


def test_a_request_is_not_served_before_it_arrives() -> None:
    engine = Engine(SMALL)
    engine.submit(Request("future", prompt_tokens=1, max_tokens=1), 5.0)
    assert engine.begin(4.0) is None
    assert engine.begin(5.0) is not None


def test_a_full_cache_preempts_the_youngest_which_starts_again_and_still_gets_every_token() -> None:
    engine = Engine(SMALL)
    old, young = (Request(name, prompt_tokens=8, max_tokens=20) for name in ("old", "young"))
    reports = run(engine, [(0.0, old), (0.1, young)])
    preempted = [request.request_id for report in reports for request in report.preempted]
    assert preempted
    assert set(preempted) == {"young"}
    assert (old.preemptions, young.preemptions, engine.counters.preemptions) == (0, *[len(preempted)] * 2)
    assert (old.generated, young.generated) == (20, 20)
    assert engine.counters.generation_tokens == 40
    assert engine.counters.prompt_tokens == 16  # recomputing does not count again
    assert sum(report.prefill_tokens for report in reports) > 16  # although these tokens were computed twice
    assert engine.free_blocks == SMALL.num_blocks


def test_a_preempted_request_waits_in_front_of_the_queue() -> None:
    engine = Engine(replace(SMALL, max_num_seqs=2))
    old, young, never_run = (Request(name, prompt_tokens=8, max_tokens=20) for name in ("old", "young", "new"))
    for number, request in enumerate((old, young, never_run)):
        engine.submit(request, float(number) / 10)
    now = 1.0
    while not young.preemptions:
        now = step(engine, now).ends_at
    assert list(engine.waiting) == [young, never_run]
    assert (young.blocks, young.computed) == (0, 0)


def test_abort_frees_the_blocks_and_leaves_the_others_alone() -> None:
    engine = Engine(SMALL)
    gone, stays, queued = (Request(name, prompt_tokens=4, max_tokens=6) for name in ("gone", "stays", "queued"))
    for request in (gone, stays):
        engine.submit(request, 0.0)
    engine.begin(0.0)
    engine.submit(queued, 0.5)
    engine.abort(gone)  # in the middle of a step
    engine.abort(queued)
    assert engine.running == [stays]
    assert not engine.waiting
    assert engine.used_blocks == stays.blocks
    assert engine.finish().advanced == [stays]
    engine.abort(gone)  # again: nothing happens
    run(engine, [])
    assert (gone.generated, queued.generated, stays.generated) == (0, 0, 6)
    assert engine.free_blocks == SMALL.num_blocks


def test_a_request_that_can_never_fit_is_refused() -> None:
    engine = Engine(SMALL)
    longest = SMALL.longest_request
    assert longest == 8 * 4 + 1  # the last output token needs no cache
    engine.submit(Request("fits", prompt_tokens=longest - 3, max_tokens=3), 0.0)
    with pytest.raises(ValueError, match=r"30 prompt tokens and 4 output tokens make 34, above .* of 33"):
        engine.submit(Request("too long", prompt_tokens=longest - 3, max_tokens=4), 0.0)
    with pytest.raises(ValueError, match="at least one prompt token and one output token"):
        engine.submit(Request("empty", prompt_tokens=0, max_tokens=4), 0.0)


def test_a_configuration_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="block_size: 0: must be at least 1"):
        EngineConfig(block_size=0)
    with pytest.raises(ValueError, match="step_seconds: 0: must be above 0"):
        EngineConfig(step_seconds=0)


def test_steps_alternate() -> None:
    engine = Engine(SMALL)
    with pytest.raises(RuntimeError, match="without begin"):
        engine.finish()
    engine.submit(Request("one", prompt_tokens=1, max_tokens=2), 0.0)
    engine.begin(0.0)
    with pytest.raises(RuntimeError, match="before finish"):
        engine.begin(1.0)


CACHING = replace(SMALL, prefix_caching=True)


def test_prompts_with_equal_prefixes_share_blocks_and_skip_what_is_computed() -> None:
    engine = Engine(CACHING)
    first = Request("first", prompt_tokens=8, max_tokens=3, prefix=(1, 2))
    step_one = run(engine, [(0.0, first)])
    assert (step_one[0].prefill_tokens, engine.counters.hit_tokens) == (8, 0)
    assert engine.used_blocks == 0  # cached, though no request holds them
    longer = Request("longer", prompt_tokens=12, max_tokens=3, prefix=(1, 2, 3))
    other = Request("other", prompt_tokens=4, max_tokens=1, prefix=(9,))
    reports = run(engine, [(9.0, longer), (9.0, other)])
    assert reports[0].prefill_tokens == 4 + 4
    assert (engine.counters.queried_tokens, engine.counters.hit_tokens) == (24, 8)


def test_the_last_token_of_a_known_prompt_is_computed() -> None:
    engine = Engine(CACHING)
    for _ in range(2):
        reports = run(engine, [(0.0, Request("same", prompt_tokens=8, max_tokens=1, prefix=(1, 2)))])
    assert reports[0].prefill_tokens == 4  # the whole last block
    assert engine.free_blocks == CACHING.num_blocks


def test_blocks_held_twice_count_once_and_come_free_with_the_last_holder() -> None:
    engine = Engine(replace(CACHING, max_num_batched_tokens=32))
    early = Request("early", prompt_tokens=12, max_tokens=9, prefix=(1, 2, 3))
    late = Request("late", prompt_tokens=13, max_tokens=2, prefix=(1, 2, 3))
    engine.submit(early, 0.0)
    step(engine)
    engine.submit(late, 1.0)
    assert step(engine, 1.0).prefill_tokens == 1
    assert (early.blocks, late.blocks, engine.used_blocks) == (4, 4, 5)
    engine.abort(early)
    assert engine.used_blocks == 4
    run(engine, [])
    assert engine.free_blocks == CACHING.num_blocks


def test_the_least_recently_used_blocks_make_room_the_end_of_a_prompt_first() -> None:
    engine = Engine(replace(CACHING, max_num_batched_tokens=32))
    run(engine, [(0.0, Request("old", prompt_tokens=12, max_tokens=1, prefix=(1, 2, 3)))])
    run(engine, [(10.0, Request("large", prompt_tokens=24, max_tokens=1, prefix=(4, 5, 6, 7, 8, 9)))])
    again = run(engine, [(20.0, Request("again", prompt_tokens=13, max_tokens=1, prefix=(1, 2, 3)))])
    assert again[0].prefill_tokens == 13 - 8


configs = st.builds(
    EngineConfig,
    max_num_batched_tokens=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    num_blocks=st.integers(4, 20),
    block_size=st.integers(1, 8),
    step_seconds=st.floats(0.01, 1),
    prefix_caching=st.booleans(),
)
sizes = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 60), st.integers(1, 40)), max_size=12)


@given(configs, sizes)
def test_every_request_that_fits_gets_exactly_its_tokens(
    config: EngineConfig, wanted: list[tuple[float, int, int]]
) -> None:
    def simulate() -> tuple[Engine, list[StepReport], list[Request]]:
        engine = Engine(config)
        arrivals = [
            (at, Request(str(number), prompt, output, tuple(range(prompt // config.block_size))))
            for number, (at, prompt, output) in enumerate(sorted(wanted))
            if prompt + output <= config.longest_request
        ]
        return engine, run(engine, arrivals), [request for _, request in arrivals]

    engine, reports, requests = simulate()
    assert [request.generated for request in requests] == [request.max_tokens for request in requests]
    assert engine.counters.generation_tokens == sum(request.max_tokens for request in requests)
    assert engine.counters.prompt_tokens == sum(request.prompt_tokens for request in requests)
    assert engine.counters.preemptions == sum(request.preemptions for request in requests)
    assert engine.free_blocks == config.num_blocks

    _, again, _ = simulate()
    assert [(r.started_at, r.ends_at, r.prefill_tokens, r.decodes) for r in again] == [
        (r.started_at, r.ends_at, r.prefill_tokens, r.decodes) for r in reports
    ]


def test_a_copy_goes_on_as_the_engine_would_and_leaves_it_alone() -> None:
    engine = Engine(replace(SMALL, prefix_caching=True))
    shared, other = (1, 2), (3, 4, 5)
    requests = [Request("a", 8, 3, shared), Request("b", 8, 2, shared), Request("c", 12, 2, other), Request("d", 4, 1)]
    for request in requests:
        engine.submit(request, 0.0)
    engine.begin(0.0)
    engine.abort(requests[1])
    twin = engine.copy()
    states = [(request.computed, request.generated) for request in requests]
    assert twin.step_ends_at == engine.step_ends_at is not None

    def ends(each: Engine) -> list[tuple[float, list[str]]]:
        found, at = [], each.step_ends_at
        while at is not None:
            found.append((at, [request.request_id for request in each.finish().finished]))
            at = each.begin(at)
        return found

    from_twin = ends(twin)
    assert [(request.computed, request.generated) for request in requests] == states
    assert ends(engine) == from_twin
    assert sorted(name for _, names in from_twin for name in names) == ["a", "c", "d"]
    assert engine.step_ends_at is None
    assert twin.free_blocks == engine.free_blocks == SMALL.num_blocks


def test_the_blocks_of_an_answer_can_be_shared_if_they_have_names() -> None:
    engine = Engine(CACHING)
    run(
        engine, [(0.0, Request("turn", prompt_tokens=8, max_tokens=9, prefix=(1, 2, 3, 4)))]
    )  # the last token is no input
    reports = run(engine, [(50.0, Request("next", prompt_tokens=20, max_tokens=1, prefix=(1, 2, 3, 4, 5)))])
    assert reports[0].prefill_tokens == 20 - 16


def test_blocks_without_a_name_are_reused_before_those_with_one() -> None:
    engine = Engine(replace(CACHING, max_num_batched_tokens=32))
    run(engine, [(0.0, Request("old", prompt_tokens=8, max_tokens=1, prefix=(1, 2)))])
    for at in (10.0, 20.0):
        run(engine, [(at, Request("nameless", prompt_tokens=24, max_tokens=1))])
    again = run(engine, [(30.0, Request("again", prompt_tokens=9, max_tokens=1, prefix=(1, 2)))])
    assert again[0].prefill_tokens == 9 - 8


@pytest.mark.parametrize(("reserve", "begins"), [(False, 2), (True, 1)])
def test_a_request_begins_when_its_first_chunk_or_its_whole_prompt_has_room(reserve: bool, begins: int) -> None:  # noqa: FBT001
    engine = Engine(replace(SMALL, max_num_batched_tokens=24, reserve_whole_prompt=reserve))
    for name in ("first", "second"):
        engine.submit(Request(name, prompt_tokens=20, max_tokens=1), 0.0)  # five of eight blocks
    step(engine)
    assert len(engine.running) + 1 == begins  # the first one is complete
    run(engine, [])
    assert engine.free_blocks == SMALL.num_blocks


operations = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 12)), max_size=60)


@given(operations, st.integers(3, 20))
def test_the_pool_finds_what_a_search_from_the_first_block_on_finds(
    wanted: list[tuple[int, int, int]], size: int
) -> None:
    engine = Engine(EngineConfig(num_blocks=size, block_size=1, max_num_batched_tokens=5, prefix_caching=True))
    for conversation, prompt, output in wanted:
        names = [1000 * conversation + number for number in range(prompt + output)]
        probe = Request("", prompt, output, names)
        pool = engine._pool  # noqa: SLF001 - what it holds is compared
        known = {*pool._holders, *pool._unheld}  # noqa: SLF001
        expected = next((at for at, name in enumerate(names) if name not in known), len(names))
        assert pool.count_cached(names) == expected
        assert pool.room_with(names[:expected]) == pool.free - sum(name in pool._unheld for name in names[:expected])  # noqa: SLF001
        assert engine.cached_tokens(probe) == min(expected, prompt - 1)
        if prompt + output <= engine.config.longest_request:
            engine.submit(probe, 0.0)
        if engine.begin(0.0) is not None:
            check_limits(engine, engine.finish())
    run(engine, [])
    assert engine.free_blocks == size
