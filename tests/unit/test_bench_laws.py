"""The laws of other routers in virtual time: small states, and the choice that each law must make."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import virtual
from benchmarks.command_line import parse_arguments
from benchmarks.scenario import BY_NAME, ENGINE
from benchmarks.virtual.limits import earliest, first_token_at
from benchmarks.virtual.node import VirtualNode
from benchmarks.virtual.peers.prefix_index import PrefixIndex
from benchmarks.virtual.peers.router import PrefixRouter
from benchmarks.workload import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator.engine_records import Request

pytestmark = pytest.mark.unmeasured
CONTESTANTS = {each.name: each for each in virtual.CONTESTANTS}


def begun(name: str, speeds: Sequence[float] = (1.0, 1.0)) -> Any:
    """Return a contestant that has begun with two idle nodes."""
    contestant = copy.copy(CONTESTANTS[name])
    nodes = [VirtualNode(index, ENGINE, speed) for index, speed in enumerate(speeds)]
    scenario = replace(BY_NAME["unequal"], speeds=tuple(speeds))
    contestant.begin(nodes, scenario, random.Random(1))  # noqa: S311 - to be repeated
    return contestant


def call(tokens: int, conversation: int = 1) -> Call:
    """Return a request with a prompt of so many tokens."""
    return Call(0.0, tokens, 10, conversation)


# Each case: the law, the state of two nodes, the prompt's tokens, the node to choose. `sent` are nodes and tokens of
# prompts of the same conversation that were sent before; 18 s of llm-d are 76,725 tokens of this engine.
CASES: tuple[tuple[str, dict[str, Any], int, int], ...] = (
    ("jsq", {"requests": [3, 2], "tokens": [0, 9000]}, 1000, 1),
    ("llm-d", {"requests": [0, 9], "tokens": [5000, 1000]}, 1000, 1),
    ("llm-d", {"tokens": [9000, 0], "sent": [(0, 6400)]}, 6400, 0),
    ("llm-d", {"tokens": [9000, 0], "sent": [(0, 5120)]}, 6400, 0),
    ("llm-d", {"tokens": [9000, 0], "sent": [(0, 5056)]}, 6400, 1),
    ("llm-d", {"tokens": [1000, 0], "sent": [(0, 5056)]}, 6400, 0),
    ("llm-d", {"tokens": [76700, 0], "sent": [(0, 6400)]}, 6400, 0),
    ("llm-d", {"tokens": [76800, 0], "sent": [(0, 6400)]}, 6400, 1),
    ("llm-d", {"tokens": [90000, 9000], "sent": [(0, 6400), (1, 6400)]}, 6400, 1),
    ("llm-d", {"tokens": [500, 0]}, 60, 1),
    ("lmetric", {"requests": [3, 1]}, 1024, 1),
    ("lmetric", {"requests": [3, 1], "tokens": [9000, 0], "sent": [(0, 960)]}, 1024, 0),
    ("lmetric", {"requests": [40, 1], "sent": [(0, 960)]}, 1024, 1),
    ("lmetric", {"requests": [1, 0], "sent": [(0, 1024), (1, 1024)]}, 1024, 1),
    ("lmetric-queued", {"requests": [3, 1], "sent": [(0, 960)]}, 1024, 0),
    ("lmetric-queued", {"requests": [3, 1], "tokens": [9000, 0], "sent": [(0, 960)]}, 1024, 1),
    ("smetric", {"rates": [1000.0, 4000.0], "tokens": [0, 2000]}, 1000, 1),
    ("smetric", {"rates": [1000.0, 4000.0], "tokens": [0, 4000]}, 1000, 0),
    ("smetric", {"rates": [4000.0, None], "tokens": [500, 0]}, 1000, 1),
    ("smetric", {"rates": [None, None], "tokens": [500, 0]}, 1000, 1),
    ("smetric", {"rates": [1000.0, 4000.0], "sent": [(0, 960)]}, 1024, 0),
    ("smg-cache-aware", {"requests": [5, 0], "sent": [(0, 400)]}, 1000, 0),
    ("smg-cache-aware", {"requests": [5, 0], "sent": [(0, 288)]}, 1000, 1),
    ("smg-cache-aware", {"requests": [8, 0], "sent": [(0, 1000)]}, 1000, 0),
    ("smg-cache-aware", {"requests": [11, 0], "sent": [(0, 1000)]}, 1000, 1),
    ("smg-cache-aware", {"requests": [120, 80], "sent": [(0, 1000)]}, 1000, 0),
    ("smg-cache-aware", {"requests": [160, 40], "sent": [(0, 1000)]}, 1000, 1),
    ("smg-cache-aware", {"waiting": [8, 0], "sent": [(0, 1000)]}, 1000, 1),
    ("smg-cache-aware", {"usage": [0.8, 0.1], "sent": [(0, 1000)]}, 1000, 1),
    ("smg-cache-aware", {"usage": [0.8, 0.9], "requests": [3, 2], "sent": [(0, 1000)]}, 1000, 1),
    ("smg-cache-aware", {"usage": [0.79, 0.1], "waiting": [7, 0], "sent": [(0, 1000)]}, 1000, 0),
    ("smg-cache-aware", {"requests": [0, 5], "sent": [(0, 1000), (1, 1000)]}, 1000, 1),
    ("smg-cache-aware", {"requests": [1, 1], "processed": [5, 3]}, 1000, 1),
    ("smg-least-load", {"usage": [0.79, 0.1]}, 1000, 1),
    ("smg-least-load", {"usage": [0.79, 0.1], "since": [0, 1]}, 1000, 1),
    ("smg-least-load", {"usage": [0.79, 0.1], "since": [0, 2]}, 1000, 0),
    ("smg-least-load", {"usage": [0.8, 0.1], "since": [0, 9]}, 1000, 1),
    ("smg-least-load", {"waiting": [0, 8], "since": [9, 0], "usage": [0.1, 0.1]}, 1000, 0),
    ("smg-least-load", {"usage": [0.5, 0.5], "since": [1, 0], "requests": [0, 50]}, 1000, 1),
    ("smg-least-load", {"usage": [None, 0.5], "requests": [2, 0]}, 1000, 1),
    ("smg-least-load", {"usage": [None, None], "requests": [3, 2]}, 1000, 1),
)


@pytest.mark.parametrize(("name", "state", "tokens", "expected"), CASES)
def test_a_law_chooses(name: str, state: dict[str, Any], tokens: int, expected: int) -> None:
    law = begun(name)
    for node, sent in state.get("sent", ()):
        law.note(call(sent), node)
    for field in state.keys() - {"sent"}:
        assert hasattr(law, field)
        setattr(law, field, list(state[field]))
    assert law.choose(call(tokens), set(), 0.0)[0] == expected


def test_a_request_counts_until_its_first_token_and_its_end() -> None:
    law = begun("llm-d")
    law.note(call(640), 0)
    node, ticket = law.choose(call(1000), {1}, 0.0)
    assert (node, law.requests, law.tokens) == (0, [1, 0], [360, 0])
    law.first_token(ticket, 1.0)
    assert (law.requests, law.tokens) == ([1, 0], [0, 0])
    law.ended(ticket, 2.0, failed=False)
    assert (law.requests, law.tokens) == ([0, 0], [0, 0])
    _, refused = law.choose(call(500, conversation=2), {0}, 3.0)
    law.ended(refused, 3.0, failed=True)
    assert (law.requests, law.tokens) == ([0, 0], [0, 0])
    assert law.choose(call(500), {0, 1}, 3.0) is None


def test_smetric_learns_the_rate_of_each_worker() -> None:
    law = begun("smetric")
    first = law.choose(call(1000, conversation=1), {1}, 0.0)[1]
    second = law.choose(call(1000, conversation=2), {1}, 0.0)[1]
    law.first_token(first, 0.5)
    assert law.rates == [2000.0, None]
    law.first_token(second, 0.5)  # 2000 tokens were ahead of it, its own included
    assert law.rates == [pytest.approx(2200), None]


def test_smg_polls_the_kv_usage_of_nodes_that_answer() -> None:
    law = begun("smg-least-load")
    law.since = [4, 4]
    for number in range(9):
        submit(law.nodes[0], call(4000, conversation=number), 0.0)
    law.nodes[0].engine.begin(0.0)
    law.nodes[1].up = False
    law.tick(0.0)
    assert (law.since, law.waiting, law.usage[1]) == ([0, 4], [8, 0], None)
    assert law.usage[0] == law.nodes[0].engine.kv_cache_usage > 0


def test_smg_forgets_a_prefix_after_three_minutes() -> None:
    for later, expected in ((179.0, 0), (181.0, 1)):
        law = begun("smg-cache-aware")
        law.choose(call(1000), {1}, 0.0)
        assert law.choose(call(1000), set(), later)[0] == expected


def test_a_prefix_index_forgets_the_oldest_blocks_of_a_node() -> None:
    index = PrefixIndex([3, 3])
    index.note((1, 2, 3), 0, 0.0)
    index.note((1, 2, 9), 1, 1.0)
    assert index.matched((1, 2, 3)) == {0: 3, 1: 2}
    assert index.deepest((1, 2, 3, 4), 0.0) == (3, 0)
    assert index.deepest((1, 2, 3, 4), 0.5) == (2, 1)
    assert index.deepest((1, 2), 1.5) == (0, None)
    index.note((7, 8), 0, 2.0)  # 1 and 2 are forgotten
    assert index.matched((1, 2, 3)) == {1: 2}
    assert index.matched((3,)) == {0: 1}
    assert index.deepest((5,), 0.0) == (0, None)


def test_a_memory_of_prefixes_is_as_large_as_the_nodes_cache() -> None:
    law = begun("llm-d")
    assert isinstance(law, PrefixRouter)
    config = law.nodes[0].engine.config
    assert law.capacity(law.nodes[0]) * 64 == config.num_blocks * config.block_size


def submit(node: VirtualNode, prompt: Call, now: float) -> Request:
    """Send a request to a node."""
    request = node.request(prompt)
    node.engine.submit(request, now)
    return request


def run(node: VirtualNode, now: float) -> None:
    """Let a node finish all that it has."""
    ends_at = node.engine.step_ends_at or node.engine.begin(now)
    while ends_at is not None:
        node.engine.finish()
        ends_at = node.engine.begin(ends_at)


@pytest.mark.parametrize(
    ("speeds", "under_way", "cached", "tokens", "expected"),
    [
        ((1.0, 1.0), {0: [3000]}, None, 1000, 1),
        ((1.0, 1.0), {0: [3000], 1: [4000, 4000]}, None, 1000, 0),
        ((1.0, 0.4), {0: [1000]}, None, 1000, 0),
        ((1.0, 0.4), {0: [4000, 4000]}, None, 1000, 1),
        ((1.0, 1.0), {0: [3000]}, 0, 6000, 0),
        ((1.0, 1.0), {0: [3000, 4000]}, 0, 6000, 1),
    ],
)
def test_the_exact_oracle_chooses(
    speeds: tuple[float, float], under_way: dict[int, list[int]], cached: int | None, tokens: int, expected: int
) -> None:
    oracle = begun("limit-exact", speeds)
    if cached is not None:
        submit(oracle.nodes[cached], call(tokens), 0.0)
        run(oracle.nodes[cached], 0.0)
    for node, prompts in under_way.items():
        for number, prompt in enumerate(prompts):
            submit(oracle.nodes[node], call(prompt, conversation=10 + number), 100.0)
        oracle.nodes[node].engine.begin(100.0)
    assert oracle.choose(call(tokens), set(), 100.0) == (expected, None)
    assert oracle.choose(call(tokens), {expected}, 100.0) == (1 - expected, None)
    oracle.nodes[expected].up = False
    assert oracle.choose(call(tokens), set(), 100.0) == (1 - expected, None)


def test_the_exact_oracle_foresees_what_happens_and_changes_nothing() -> None:
    node = VirtualNode(0, ENGINE, 0.7)
    submit(node, call(5000, conversation=3), 0.0)
    submit(node, call(3000, conversation=4), 0.0)
    node.engine.begin(0.0)
    foreseen = [first_token_at(node, call(2000), 0.1, float("inf")) for _ in range(2)]
    bound = earliest(node, call(2000), 0.1)
    request = submit(node, call(2000), 0.1)
    run(node, 0.1)
    assert foreseen == [request.first_token_at] * 2
    assert bound < foreseen[0]
    alone = call(9000, conversation=5)
    assert earliest(node, alone, 50.0) == pytest.approx(first_token_at(node, alone, 50.0, float("inf")))
    assert first_token_at(node, call(9000, conversation=5), 50.0, 50.5) == float("inf")


# Each case: prompt bytes and streams that are under way at two nodes, tokens of the prompt, the choices of contestants.
PARTS: tuple[tuple[list[tuple[int, int]], int, dict[str, int]], ...] = (
    ([(16000, 1), (0, 2)], 1000, {"ours-work": 1, "ours-work-no-streams": 1, "ours-work-no-pending": 0}),
    ([(0, 6), (400, 1)], 1000, {"ours-work": 1, "ours-work-no-streams": 0, "ours-work-no-pending": 1}),
    ([(6000, 0), (0, 0)], 1000, {"ours-work": 1, "ours-work-no-weights": 1, "ours-work-static": 0}),
    ([(0, 1), (0, 0)], 2100, {"ours-work": 0, "ours-work-no-prefix": 1}),
    ([(0, 9), (0, 0)], 2100, {"ours-work": 1, "ours-work-no-prefix": 1}),
)


@pytest.mark.parametrize(("under_way", "tokens", "choices"), PARTS)
def test_each_part_of_our_law_can_be_left_out(
    under_way: list[tuple[int, int]], tokens: int, choices: dict[str, int]
) -> None:
    found = {}
    for name in choices:
        contestant = begun(name, (1.0, 0.4))
        contestant.tick(0.0)
        _, ticket = contestant.choose(call(2000), {1}, 0.0)  # the turn before, at the first node
        contestant.ended(ticket, 1.0, failed=False)
        for node, (pending, streams) in enumerate(under_way):
            contestant.ingress.count(node, pending, streams)
        found[name] = contestant.choose(call(tokens), set(), 2.0)[0]
    assert found == choices


@pytest.mark.parametrize(
    ("name", "usage", "chosen"), [("ours-work", 0.87, 0), ("ours-work", 0.89, 1), ("ours-work-no-kv-gate", 0.89, 0)]
)
def test_a_node_without_room_in_its_kv_cache_is_passed_over(name: str, usage: float, chosen: int) -> None:
    contestant = begun(name)
    contestant.tick(0.0)
    contestant.ingress.read(0, ENGINE.num_blocks * ENGINE.block_size, usage)  # 1 % is 492 tokens
    contestant.ingress.count(1, 0, 3)
    assert contestant.choose(call(900), set(), 0.0)[0] == chosen


def test_a_prompt_whose_answer_is_not_streamed_is_pending_for_as_long_as_its_node_probably_needs() -> None:
    contestant = begun("ours-work-no-progress")
    contestant.tick(0.0)
    _, streamed = contestant.choose(call(1000, 1), {1}, 0.0)
    contestant.first_token(streamed, 5.0)  # the node is slow: 800 bytes in a second
    contestant.ended(streamed, 6.0, failed=False)
    _, whole = contestant.choose(replace(call(8000, 2), streamed=False), {1}, 10.0)
    ahead, seconds = contestant.ingress.ahead(0)
    assert ahead == whole[0].pending == 32000
    assert 5 < seconds < 60
    for at, pending in ((10 + 0.99 * seconds, 32000), (10 + 1.01 * seconds + 0.05, 0)):
        assert contestant.choose(call(4000, 3), set(), at)[0] == 1
        assert whole[0].pending == pending
    contestant.ended(whole, 99.0, failed=False)
    assert contestant.ingress.ahead(0)[0] == 0


def test_a_long_prompt_counts_less_as_its_node_computes_it() -> None:
    contestant = begun("ours-work")
    contestant.tick(0.0)
    _, long = contestant.choose(call(40_000, 1), {1}, 0.0)
    assert contestant.ingress.ahead(0)[0] == 160_000
    contestant.choose(call(10, 2), {0}, 0.1)
    contestant.choose(call(10, 3), {0}, 30.0)  # a choice looks at what is computed by now
    contestant.choose(call(10, 4), {0}, 60.0)
    assert contestant.ingress.ahead(0)[0] == long[0].pending == 20_000
    contestant.first_token(long, 61.0)
    assert contestant.ingress.ahead(0)[0] == 0


def test_a_run_may_name_laws(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_arguments(["virtual", "--only", "llm-d,smg-least-load"])
    assert [each.name for each in options.contestants] == ["llm-d", "smg-least-load"]
    assert len(parse_arguments(["virtual"]).contestants) == len(CONTESTANTS)
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["full", "--only", "llm-d"])
    assert ended.value.code == 2
    assert "unknown: llm-d" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert [name for name in CONTESTANTS if name not in shown] == []
