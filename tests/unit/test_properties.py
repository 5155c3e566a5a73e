"""Properties that must hold for any input: hypothesis searches for counterexamples."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import crossplane  # type: ignore[import-untyped]
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.samples import config, good, refused, unreadable
from vllm_lb import decide as decide_module
from vllm_lb.addresses import bracketed, canonical, is_host, is_ip
from vllm_lb.causes import ScrapeCause
from vllm_lb.config_file import problems_across_fields
from vllm_lb.decide import POLICIES, decide
from vllm_lb.drains import read_drains
from vllm_lb.errors import FailureError
from vllm_lb.judge import Judgement, judge
from vllm_lb.memory import NodeMemory
from vllm_lb.memory_file import read_memory
from vllm_lb.observation import Reading, Sample
from vllm_lb.plan import Plan, PoolPlan, check_plan
from vllm_lb.reload_limit import sort_workers
from vllm_lb.render import source_of
from vllm_lb.schema import build
from vllm_lb.settings import MAX_ENGINES, MAX_WEIGHT, NAME, POOL_NAME, Config, Node
from vllm_lb.state import State
from vllm_lb.text import seconds_of
from vllm_lb.view.fleet import rows_of
from vllm_lb.view.status import summary
from vllm_lb.view.table import table_of_nodes
from vllm_lb.vllm_metrics import UnreadableError, parse_metrics, wanted_lines

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("vllm-*.txt"))
NOW = "2026-01-01T00:00:00.000+00:00"


def json_of(record: Any) -> Any:
    """Return a record as a file hands it to the next process."""
    return json.loads(json.dumps(dataclasses.asdict(record)))


# --- Any text as /metrics ---------------------------------------------------------------------------------

REAL_LINES = sorted({line for path in FIXTURES for line in wanted_lines(path.read_bytes())})
PIECES = [b"NaN", b"+Inf", b"-1", b"1e400", b"1e-400", b"0x1", b"{", b"}", b'"', b"\\", b",", b"=", b" ", b"\r", b"#"]


@st.composite
def metric_lines(draw: st.DrawFn) -> bytes:
    """Draw a line of real metrics, as a rule with something in it replaced."""
    line = draw(st.sampled_from(REAL_LINES))
    for _ in range(draw(st.integers(0, 3))):
        start, end = sorted((draw(st.integers(0, len(line))), draw(st.integers(0, len(line)))))
        piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=5))
        line = line[:start] + draw(piece) + line[end:]
    return bytes(line)


@given(st.lists(st.one_of(metric_lines(), st.sampled_from(REAL_LINES), st.binary(max_size=80)), max_size=30))
def test_any_metrics_are_read_or_unreadable(lines: list[bytes]) -> None:
    try:
        found, left_out = parse_metrics(b"\n".join(lines))
    except UnreadableError:
        return
    assert 0 <= (found.kv_cache_usage or 0) <= 1
    gaps = (found.token_gaps, found.token_gap_seconds)
    counts = (found.waiting, found.running, found.preemptions, found.prompt_tokens, found.generation_tokens, *gaps)
    assert all(each is None or 0 <= each <= 2**53 for each in counts)
    assert found.engines > 0
    assert found.has_statistics or left_out


# --- Any configuration: nginx's grammar reads back what was decided -----------------------------------------

IPS = st.ip_addresses().map(str).filter(is_host)
LABELS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)
HOSTNAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(is_host)
NAMES = st.from_regex(NAME, fullmatch=True)
PORTS = st.integers(1, 65535)


def nodes() -> st.SearchStrategy[dict[str, Any]]:
    """Draw a node as config.yml has it."""
    return st.fixed_dictionaries(
        {"name": NAMES, "host": st.one_of(IPS, HOSTNAMES)},
        optional={
            "port": PORTS,
            "scheme": st.sampled_from(["http", "https"]),
            "capacity": st.floats(0.01, 100),
            "drain": st.booleans(),
        },
    )


def pools() -> st.SearchStrategy[dict[str, Any]]:
    """Draw a pool as config.yml has it."""
    return st.fixed_dictionaries(
        {"name": st.from_regex(POOL_NAME, fullmatch=True), "nodes": st.lists(nodes(), min_size=1, max_size=6)},
        optional={
            "method": st.sampled_from(["least_conn", "round_robin", "random_two_least_conn"]),
            "keepalive": st.integers(0, 65535),
            "keepalive_timeout_seconds": st.integers(1, 3600),
            "max_fails": st.integers(0, 10**6),
            "fail_timeout_seconds": st.integers(1, 86400),
            "policy": st.sampled_from(sorted(POLICIES)),
        },
    )


CAPACITY_RULES = st.fixed_dictionaries(
    {},
    optional={
        "lowest_weight": st.integers(1, MAX_WEIGHT),
        "speed_exponent": st.floats(0, 4),
        "max_kv_cache_usage": st.floats(0.01, 1),
        "sudden_change_ratio": st.floats(0.01, 10),
        "min_change_ratio": st.floats(0.01, 10),
        "max_learned_ratio": st.floats(1.5, 100),
    },
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Draw a configuration that the script accepts."""
    levels = sorted(draw(st.sets(st.integers(1, 100), min_size=1, max_size=6)), reverse=True)
    steps = st.fixed_dictionaries({"at_least": st.floats(0, 1), "weight": st.sampled_from(levels)})
    stepped = {"levels": levels, "kv_cache": draw(st.lists(steps, max_size=4))}
    policies = {"stepped": stepped, "capacity": draw(CAPACITY_RULES)}
    raw = {"pools": draw(st.lists(pools(), min_size=1, max_size=3)), "policies": policies}
    problems: list[str] = []
    built = build(Config, raw, "", problems)
    assert not problems
    assert isinstance(built, Config)
    assume(not list(problems_across_fields(built)))
    return built


READINGS = st.builds(
    Reading,
    kv_cache_usage=st.none() | st.floats(0, 1),
    waiting=st.none() | st.integers(0, 2**53),
    running=st.none() | st.integers(0, 2**53),
    preemptions=st.none() | st.integers(0, 2**53),
    engines=st.integers(1, MAX_ENGINES),
    awake=st.booleans(),
    prompt_tokens=st.none() | st.integers(0, 2**53),
    generation_tokens=st.none() | st.integers(0, 2**53),
    finished=st.none() | st.integers(0, 2**53),
    token_gaps=st.none() | st.integers(0, 2**53),
    token_gap_seconds=st.none() | st.floats(0, 2**53),
)


@st.composite
def samples(draw: st.DrawFn, node: Node) -> Sample:
    """Draw what a scrape of a node may bring."""
    address = canonical(node.host) if is_ip(node.host) else draw(st.none() | IPS.map(canonical))
    found = draw(st.none() | READINGS) if address else None
    is_flawed = not found or draw(st.booleans())
    error = draw(st.from_regex(r"[ -~]{1,120}", fullmatch=True)) if is_flawed else None
    cause = draw(st.sampled_from(ScrapeCause)) if is_flawed else None
    return Sample(address, draw(st.floats(0, 60)), found, error, cause, found is not None or draw(st.booleans()))


def parsed(upstream: str) -> list[dict[str, Any]]:
    """Return a file as nginx's own grammar has it, without comments."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(upstream)
        file.flush()
        found = crossplane.parse(file.name, single=True, check_ctx=False, check_args=False)
    assert found["errors"] == []
    return list(found["config"][0]["parsed"])


def directives(block: list[dict[str, Any]], name: str) -> list[list[str]]:
    """Return the arguments of each directive of this name."""
    return [each["args"] for each in block if each["directive"] == name]


@given(st.data())
def test_nginx_reads_back_what_was_decided(data: st.DataObject) -> None:
    configuration = data.draw(configs())
    seen = {node.name: data.draw(samples(node)) for pool in configuration.pools for node in pool.nodes}
    drained = data.draw(st.sets(st.sampled_from(sorted(seen))))
    decided, _ = decide(configuration, seen, {}, drained, 100.0)
    published = source_of(configuration, decided).render()
    assert published.record.is_of(published.content)
    generation, *blocks = parsed(published.content)
    assert (generation["directive"], generation["args"]) == ("map", ["", "$vllm_nginx_lb_generation"])
    assert directives(generation["block"], "default") == [[published.record.generation]]
    assert [(block["directive"], block["args"]) for block in blocks] == [
        ("upstream", [pool.name]) for pool in configuration.pools
    ]
    for pool, plan, block in zip(configuration.pools, decided, blocks, strict=True):
        suffix = [f"max_fails={pool.max_fails}", f"fail_timeout={pool.fail_timeout_seconds}s"]
        expected = [
            [f"{bracketed(at.address)}:{node.port}", f"weight={at.weight}" if at.weight else "down", *suffix]
            for node, at in zip(pool.nodes, plan.nodes, strict=True)
            if at.address
        ]
        backups = [
            [server, "backup", weight, "max_fails=0"]
            for server, weight, *_ in expected
            if weight != "down" and pool.max_fails and pool.method in ("least_conn", "round_robin")
        ]
        assert directives(block["block"], "server") == (expected or [["127.0.0.1:9", "down", *suffix]]) + backups
        assert directives(block["block"], "keepalive") == ([[str(pool.keepalive)]] if pool.keepalive else [])
        assert directives(block["block"], "zone") == [[pool.name, "1m"]]
        assert {each["directive"] for each in block["block"]} <= {
            *("server", "keepalive", "keepalive_timeout", "keepalive_requests", "zone", "least_conn", "random")
        }


# --- Any sequence of states: somebody serves --------------------------------------------------------------

COUNTS = st.integers(0, 2000) | st.integers(0, 2**53)
MAKERS = st.sampled_from(
    [
        good,
        lambda address: good(address, kv_cache_usage=0.95, waiting=9),
        lambda address: good(address, awake=False),
        lambda address: good(address, generation_tokens=7, running=3),  # frozen, if it comes twice
        refused,
        unreadable,
        lambda _address: refused(None),
    ]
) | st.builds(
    lambda running, tokens, engines, kv: (
        lambda address: good(address, running=running, generation_tokens=tokens, engines=engines, kv_cache_usage=kv)
    ),
    COUNTS,
    COUNTS,
    st.integers(1, MAX_ENGINES),
    st.floats(0, 1),
)
NAMED = "abcdef"
STEPS = st.tuples(
    st.tuples(*[MAKERS] * len(NAMED)),
    st.sets(st.sampled_from(NAMED)),
    st.floats(-1e5, 1e5) | st.just(10.0),
    st.booleans(),
)
THREE_POOLS = [
    {
        "name": "one",
        "policy": "stepped",
        "nodes": [{"name": "a", "host": "a.example"}, {"name": "b", "host": "b.example"}],
    },
    {"name": "two", "policy": "static", "nodes": [{"name": "c", "host": "c.example"}, {"name": "d", "host": "::4"}]},
    {
        "name": "three",
        "policy": "capacity",
        "nodes": [{"name": "e", "host": "127.0.0.5"}, {"name": "f", "host": "127.0.0.6", "capacity": 0.02}],
    },
]
ADDRESSES = dict(zip(NAMED, ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::4", "127.0.0.5", "127.0.0.6"], strict=True))
LOWEST = {"one": 10, "two": 100, "three": 7}  # of the ladder; of nodes with equal capacities; as set


@pytest.mark.slow
@given(st.lists(STEPS, min_size=1, max_size=15), st.booleans(), CAPACITY_RULES)
def test_no_sequence_of_states_empties_a_pool(
    steps: list[tuple[tuple[Any, ...], set[str], float, bool]],
    twins: bool,  # noqa: FBT001 - a drawn value
    rules: dict[str, Any],
) -> None:
    policies = {"capacity": rules | {"lowest_weight": LOWEST["three"]}}
    configuration = config(pools=THREE_POOLS, policies=policies)
    memory: dict[str, NodeMemory] = {}
    now = 2e6
    for makers, drained, seconds, applied in steps:
        now += seconds
        seen = {name: make(ADDRESSES[name]) for name, make in zip(NAMED, makers, strict=True)}
        for name in "def":  # addresses, which need not resolve
            seen[name] = dataclasses.replace(seen[name], address=ADDRESSES[name])
        if twins and seen["b"].address:
            seen["b"] = dataclasses.replace(seen["b"], address="127.0.0.1")
        before = {name: each.weight for name, each in memory.items()}
        decided, after = decide(configuration, seen, memory, drained, now, applied=applied)
        for pool in decided:
            check_pool(pool, seen, before)
        plan = Plan(version=1, decided_at=NOW, pools=decided)
        assert check_plan(json_of(plan), configuration) == plan
        problems: list[str] = []
        memory = {name: build(NodeMemory, json_of(each), name, problems) for name, each in after.items()}
        assert (memory, problems) == (after, [])


def check_pool(pool: PoolPlan, seen: dict[str, Sample], before: dict[str, int | None]) -> None:
    """Fail when a pool is empty, or all down, while one of its nodes could serve."""
    weights = {node.name: node.weight for node in pool.nodes}
    assert all(weight == 0 or LOWEST[pool.name] <= weight <= MAX_WEIGHT for weight in weights.values())
    assert all(node.weight for node in pool.nodes if node.state == "up")
    if any(node.address for node in pool.nodes):
        assert any(weights.values())
    # Nothing can be read, and all is as it was: the last good file stays.
    steady = [node.address and node.state != "drained" and before.get(node.name) for node in pool.nodes]
    if all(steady) and not any(seen[name].reading for name in weights):
        assert weights == {name: before[name] for name in weights}


# --- Any words: codes decide --------------------------------------------------------------------------------


@given(st.lists(STEPS, min_size=1, max_size=8))
def test_no_decision_looks_into_a_sentence(steps: list[tuple[tuple[Any, ...], set[str], float, bool]]) -> None:
    configuration = config(pools=THREE_POOLS)
    memories: list[dict[str, NodeMemory]] = [{}, {}]
    now = 2e6

    def reworded(*arguments: Any) -> Judgement:
        return dataclasses.replace(judge(*arguments), reason="in other words")

    for makers, drained, seconds, applied in steps:
        now += seconds
        seen = {name: make(ADDRESSES[name]) for name, make in zip(NAMED, makers, strict=True)}
        other = {
            name: each if each.reading else dataclasses.replace(each, error="words") for name, each in seen.items()
        }
        plain, memories[0] = decide(configuration, seen, memories[0], drained, now, applied=applied)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decide_module, "judge", reworded)
            again, memories[1] = decide(configuration, other, memories[1], drained, now, applied=applied)
        assert memories[0] == memories[1]
        assert without_sentences(plain) == without_sentences(again)


def without_sentences(pools: tuple[PoolPlan, ...]) -> list[Any]:
    """Return plans without their sentences."""
    return [
        (pool.held_cause, [dataclasses.replace(node, reason="", error=None) for node in pool.nodes]) for pool in pools
    ]


# --- Any file where a plan, a memory or a status was expected -----------------------------------------------

SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20)),
    st.sampled_from(["127.0.0.1", "::1", "up", "down", "a", "b", "llm_cluster", "\ud800", "\x1b[31m", "a;}"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
CONFIG = config("a", "b", pool={"policy": "capacity"})
SEEN = {"a": good("127.0.0.1", generation_tokens=900, running=9), "b": good("127.0.0.2", generation_tokens=7)}
HONEST, MEMORY = decide(CONFIG, SEEN, {}, set(), 90.0)
SEEN = {"a": good("127.0.0.1", generation_tokens=5000, running=8), "b": unreadable("127.0.0.2")}
HONEST, MEMORY = decide(CONFIG, SEEN, MEMORY, set(), 100.0)
PLAN = Plan(version=1, decided_at=NOW, pools=HONEST)


@st.composite
def changed(draw: st.DrawFn, original: Any) -> Any:
    """Draw an honest document with some of its values replaced, removed, added or copied."""
    if not isinstance(original, (dict, list)) or not original or draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    copy: Any = original.copy()
    for _ in range(draw(st.integers(1, 2))):
        keys = sorted(copy) if isinstance(copy, dict) else list(range(len(copy)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        change = draw(st.sampled_from(["inside", "inside", "inside", "remove", "add", "copy"]))
        if change == "inside":
            copy[key] = draw(changed(copy[key]))
        elif change == "remove":
            del copy[key]
        elif isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[draw(st.text(max_size=10))] = copy[key]
    return copy


@given(JSON | changed(json_of(PLAN)))
def test_any_plan_is_refused_or_harmless(raw: Any) -> None:
    try:
        plan = check_plan(raw, CONFIG)
    except FailureError:
        return
    servers = directives(parsed(source_of(CONFIG, plan.pools).render().content)[1]["block"], "server")
    assert {server[0] for server in servers} <= {"127.0.0.1:18090", "127.0.0.2:18090"}
    assert any(server[1].startswith("weight=") for server in servers)


@contextlib.contextmanager
def state_with(name: str, content: bytes) -> Any:
    """Make a state directory with this file in it."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / name).write_bytes(content)
        yield State(Path(directory))


def files(honest: Any) -> st.SearchStrategy[bytes]:
    """Draw the bytes of a file: damaged JSON, any JSON, any bytes."""
    documents = (JSON | changed(honest)).map(lambda document: json.dumps(document).encode())
    cut = st.builds(lambda content, at: content[: at % (len(content) + 1)], documents, st.integers(0, 10**4))
    return documents | cut | st.binary()


@given(files({name: json_of(each) for name, each in MEMORY.items()}))
@example(b'{"b": {"read_at": -1e308}}')
@example(b'{"a": {"preemptions": -4611686018427387904}}')
@example(b'{"a": {"up": true, "weight": 9, "learned": {"at": 1, "generation_tokens": 0, "requests": 0, "steps": 3}}}')
def test_any_memory_is_dropped_or_used(content: bytes) -> None:
    with state_with("memory.json", content) as state:
        memory = read_memory(state.directory / "memory.json")
    decided, _ = decide(CONFIG, SEEN, memory, set(), 110.0)
    plan = Plan(version=1, decided_at=NOW, pools=decided)
    assert check_plan(json_of(plan), CONFIG) == plan


STATUS = json_of(PLAN) | {"generation": "0", "applied": True, "outcome": "unchanged", "error": None}


@given(files(STATUS))
def test_any_status_is_shown_or_refused(content: bytes) -> None:
    with state_with("status.json", content) as state, contextlib.suppress(FailureError):
        found = state.status()
        rows = rows_of(found.pools, found.live_weights)
        lines = [*table_of_nodes(rows, 0.0), *summary(found, rows, 0.0)]
        assert f"{' '.join(lines)} {found.error} {found.deferred}".replace("\n", "").isprintable()


WORD = {"since": NOW, "reason": "a fan", "by": None}


@given(files(["a", "b"]) | files({"version": 2, "nodes": {"a": WORD, "b": WORD}, "undrained": {"c": WORD}}))
def test_any_drained_nodes_are_used_or_those_of_the_last_tick(content: bytes) -> None:
    with state_with("drained.json", content) as state:
        drains = read_drains(state)
    for name, _, entry in drains.entries():
        assert f"{name} {entry.since} {entry.reason} {entry.by}".isprintable()
        assert 0 < seconds_of(entry.since) < 2**32


@given(files({"group": 1, "generations": [[1, 2], [3]]}))
def test_any_workers_are_used_or_forgotten(content: bytes) -> None:
    with state_with("workers.json", content) as state:
        known = state.workers()
    found = sort_workers(known, 1, {3, 4}, 4)
    assert {pid for generation in found.generations for pid in generation} == {3, 4}
