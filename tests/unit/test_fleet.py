"""What `status` shows of many nodes: which, in which order, how many, and where decided and live weights differ."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vllm_lb.cli import STATES_SHOWN
from vllm_lb.errors import FailureError
from vllm_lb.outcome import Status
from vllm_lb.plan import STATES, NodePlan, PoolPlan
from vllm_lb.view import fleet
from vllm_lb.view.ejected import checked
from vllm_lb.view.fleet import Filter, rows_of
from vllm_lb.view.status import Seen, Wanted, lines_that_fit, summary
from vllm_lb.view.table import table_of_nodes

NOW = 1_795_860_000.0
AT = "2026-11-28T10:00:00.000+00:00"  # NOW
IDLE: dict[str, Any] = {
    "address": "192.0.2.1",
    "state": "up",
    "kv_cache_usage": 0.5,
    "waiting": 0,
    "running": 1,
    "preemptions_delta": 0,
    "engines": 1,
    "weight": 100,
    "previous_weight": 100,
    "cause": "learned",
    "reason": "800 tokens/s",
    "scrape_seconds": 0.01,
    "error_cause": None,
    "error": None,
}
OUT: dict[str, Any] = {"weight": 0, "kv_cache_usage": None, "waiting": None, "running": None}
DOWN = OUT | {"state": "down", "cause": "unreachable", "reason": "connection refused, 3 in a row"}
DRAINED = {"state": "drained", "weight": 0, "cause": "drained_by_operator", "reason": "drained by the operator"}
FOR_POWER = {"reason": "drained by the operator: new power supply", "drain_reason": "new power supply"}
UNKNOWN = OUT | {"state": "unknown", "weight": 60, "cause": "held", "reason": "HTTP 500, last weight held"}


def node(name: str, **changes: Any) -> NodePlan:
    """Return an idle node, with changes."""
    return NodePlan(name=name, **(IDLE | changes))


def pool_of(*nodes: NodePlan, name: str = "llm_cluster") -> PoolPlan:
    return PoolPlan(name=name, held_cause=None, held=None, nodes=nodes)


def status_of(*pools: PoolPlan, **changes: Any) -> Status:
    """Return the status of a tick of NOW, with changes."""
    usual: dict[str, Any] = {"generation": "9f3ac21b04de5566", "applied": True, "outcome": "published", "error": None}
    return Status(version=1, decided_at=AT, pools=pools, **({"live_weights": {}} | usual | changes))


def lines_of(found: Status, size: tuple[int, int] | None = None, **options: Any) -> list[str]:
    watch = options.pop("watch", False)
    seen = Seen(status=found, reloads=0, ejected=options.pop("ejected", {}))
    return lines_that_fit(seen, Wanted(**options), NOW + 9, size, watch=watch)


def shown(lines: list[str]) -> list[str]:
    """Return the names of the nodes in a table, in its order."""
    first = next(i for i, line in enumerate(lines) if "  STATE " in line)
    rows = [line.split() for line in lines[first + 1 : lines.index("", first)]]
    return [row[0 if lines[first].startswith("NODE") else 1] for row in rows if row[0] != "..."]


FLEET = (
    node("a"),
    node("b", **DRAINED, drained_since="2026-11-28T09:00:00+00:00"),
    node("c", weight=30),
    node("d", **DOWN),
    node("e", **(DRAINED | FOR_POWER), drained_since="2026-11-25T09:00:00+00:00"),
    node("f", error_cause="metric_implausible", error="x is -1"),
    node("g", **UNKNOWN),
    node("h", **DRAINED),
    node("i", kv_cache_usage=0.9),
)


def test_what_is_wrong_comes_first_and_the_worst_of_it_before_all() -> None:
    live = {"llm_cluster": {"h": 100, "a": 80, "i": 0, "away": 50}}
    ejected = {("llm_cluster", "c"): "errors", ("llm_cluster", "g"): "broken", ("other", "a"): "errors"}
    found = fleet.worst_first(rows_of([pool_of(*FLEET)], live, ejected))
    assert [row.name for row in found] == ["h", "away", "d", "g", "c", "i", "f", "e", "b", "a"]


def many(count: int, *first: NodePlan) -> Status:
    return status_of(pool_of(*first, *(node(f"gpu-{number}") for number in range(count - len(first)))))


WINDOW = (120, 24)
GPU_9 = Filter(names=["gpu-9*"])  # takes 111 of a thousand


@pytest.mark.parametrize(
    ("count", "size", "options", "expected", "left"),
    [
        (30, None, {}, 30, 0),
        (31, None, {}, 20, 11),
        (1000, None, {}, 20, 980),
        (1000, None, {"limit": 3}, 3, 997),
        (1000, None, {"all": True}, 1000, 0),
        (1000, None, {"filter": GPU_9}, 20, 91),
        (1000, None, {"filter": GPU_9, "limit": 200}, 111, 0),
        (1000, None, {"filter": Filter(names=["gpu-99?"])}, 10, 0),
        (1000, WINDOW, {}, 15, 985),
        (1000, WINDOW, {"watch": True}, 15, 985),
        (1000, WINDOW, {"watch": True, "all": True}, 1000, 0),
        (1000, WINDOW, {"limit": 18}, 18, 982),
        (1000, (120, 5), {}, 3, 997),
        (1000, (50, 24), {}, 5, 995),
        (30, WINDOW, {}, 30, 0),
        (30, WINDOW, {"watch": True}, 15, 15),
        (30, (120, 60), {"watch": True}, 30, 0),
    ],
)
def test_as_many_nodes_are_shown_as_are_wanted_and_fit(
    count: int, size: tuple[int, int] | None, options: dict[str, Any], expected: int, left: int
) -> None:
    found = status_of(pool_of(*(node(f"gpu-{number}") for number in range(count))))
    lines = lines_of(found, size, **options)
    assert len(shown(lines)) == expected
    more = [line for line in lines if line.startswith("... and ")]
    assert more == ([f"... and {left} more nodes (--all): {left} up"] if left else [])
    if size == WINDOW and expected == 15:
        assert len(lines) == WINDOW[1] - 1, "the last line is the shell's"


@pytest.mark.parametrize(
    ("ejected", "states", "line"),
    [
        ({}, "3 nodes: 2 up, 1 down;", None),
        (None, "3 nodes: 2 up, 1 down;", "it is not known which nodes nginx has ejected"),
        ({("llm_cluster", "a"): "errors"}, "3 nodes: 1 up, 1 down, 1 ejected;", None),
        ({("llm_cluster", "d"): "errors"}, "3 nodes: 2 up, 1 down;", None),
    ],
)
def test_an_ejected_node_is_not_shown_as_up(
    ejected: dict[tuple[str, str], str] | None, states: str, line: str | None
) -> None:
    lines = lines_of(status_of(pool_of(node("a"), node("b"), node("d", **DOWN))), ejected=ejected)
    assert lines[2].startswith(states)
    assert [each for each in lines if "ejected" in each and "it is not known" in each] == ([line] if line else [])
    rows = [each for each in lines if "ejected by nginx for a short time (errors); 800 tokens/s" in each]
    assert len(rows) == (1 if "ejected" in states else 0)


FILTERS: list[tuple[dict[str, list[str]], list[str]]] = [
    ({}, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "x"]),
    ({"states": ["down"]}, ["d"]),
    ({"states": ["down", "unknown"]}, ["d", "g"]),
    ({"pools": ["batch"]}, ["x"]),
    ({"pools": ["batch"], "states": ["drained"]}, []),
    ({"names": ["[a-c]", "x"]}, ["a", "b", "c", "x"]),
    ({"names": ["*"], "states": ["drained"]}, ["b", "e", "h"]),
]


@pytest.mark.parametrize(("chosen", "names"), FILTERS)
def test_only_the_nodes_that_are_asked_for_are_shown(chosen: dict[str, list[str]], names: list[str]) -> None:
    found = status_of(pool_of(*FLEET), pool_of(node("x"), name="batch"))
    lines = lines_of(found, filter=Filter(**chosen))
    assert (shown(lines) if names else lines[-3]) == (names or "no node matches")
    assert any(line.startswith("10 nodes: ") for line in lines), "the totals are of all nodes"


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"pools": ["bath"]}, "no pool 'bath': expected one of llm_cluster"),
        ({"names": ["a", "nod-a"]}, "no node 'nod-a' in the last decision"),
        ({"names": ["z*"]}, r"no node 'z\*' in the last decision"),
    ],
)
def test_what_is_misspelt_is_refused(chosen: dict[str, list[str]], words: str) -> None:
    with pytest.raises(FailureError, match=words) as refusal:
        Filter(**chosen).check(rows_of([pool_of(*FLEET)], {}))
    assert refusal.value.code == 2


FOUR_DIFFER = (
    "4 nodes differ; d still gets requests (live 90, decided 0), h still gets requests (live 60, decided 0), "
    "i (live 1, decided 100), and 1 more"
)
DIFFERENCES: list[tuple[dict[str, int] | None, str | None]] = [
    (None, "it is not known which weights nginx runs"),
    ({}, None),
    ({"a": 80}, "1 node differs; a (live 80, decided 100)"),
    ({"a": 80, "h": 60}, "2 nodes differ; h still gets requests (live 60, decided 0), a (live 80, decided 100)"),
    ({"away": 50}, "1 node differs; away still gets requests (live 50, no longer in the configuration)"),
    ({"d": 90, "h": 60, "a": 0, "i": 1}, FOUR_DIFFER),
]


@pytest.mark.parametrize(("live", "line"), DIFFERENCES)
def test_a_line_says_where_nginx_runs_other_weights(live: dict[str, int] | None, line: str | None) -> None:
    by_pool = None if live is None else {"llm_cluster": live}
    found = status_of(pool_of(*FLEET), live_weights=by_pool)
    lines = lines_of(found)
    if line and live:
        line = f"nginx runs the weights of generation 9f3ac21b04de: {line}"
    about_live = [each for each in lines if "nginx runs" in each]
    assert about_live == ([line] if line else [])
    assert ("  LIVE  REASON" in "\n".join(lines)) is bool(live)


@pytest.mark.parametrize(("name", "live"), [("h", 100), ("d", 100), ("away", 7)])
def test_a_node_that_still_gets_requests_never_looks_as_if_it_were_out(name: str, live: int) -> None:
    rows = rows_of([pool_of(*FLEET)], {"llm_cluster": {name: live}})
    for width in (None, 50):
        lines = table_of_nodes(rows, NOW, width)
        about = [line for line in lines if name in line.replace(":", " ").split()]
        row = re.split("  +", about[0])
        assert "still live" in row
        assert not {"drained", "down", "gone"} & set(row)
        assert str(live) in about[0].split()
        assert [line for line in about if "nginx still sends it requests" in line]
    assert "(1 still live)" in fleet.states(rows)


def test_a_drain_has_its_age_and_its_reason() -> None:
    rows = rows_of([pool_of(*FLEET)], {})
    assert list(summary(status_of(pool_of(*FLEET)), rows, NOW))[-1] == (
        "2 nodes drained by hand; the longest is e (3 d)"
    )
    said = {row.name: fleet.reason(row, NOW) for row in rows if row.state == "drained"}
    assert said == {
        "b": "drained by the operator (60 min ago)",
        "e": "drained by the operator: new power supply (3 d ago)",
        "h": "drained by the operator",
    }


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (2 * 86400, "2 d")],
)
def test_a_time_is_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert fleet.span(seconds) == words


def test_a_narrow_table_fits_into_50_columns() -> None:
    rows = rows_of([pool_of(*(node(f"node-{name}") for name in "abc"))], {"llm_cluster": {"node-a": 30}})
    lines = table_of_nodes(rows, NOW, 50)
    assert max(map(len, lines)) <= 50
    assert lines[0].split() == ["NODE", "STATE", "KV", "WAIT", "RUN", "WEIGHT", "LIVE"]


def test_each_of_several_pools_has_its_totals() -> None:
    found = status_of(
        pool_of(*FLEET), pool_of(node("x", waiting=7), name="batch"), package_version="9.9.9", host="in-1"
    )
    lines = lines_of(found)
    assert lines[0] == "in-1, vllm-nginx-lb 9.9.9"
    assert lines[2:5] == [
        "10 nodes: 5 up, 1 down, 1 unknown, 3 drained; 8 running, 7 waiting; highest KV 0.90 (i)",
        "  llm_cluster: 9 nodes: 4 up, 1 down, 1 unknown, 3 drained; 7 running, 0 waiting; highest KV 0.90 (i)",
        "  batch: 1 node: 1 up; 1 running, 7 waiting; highest KV 0.50 (x)",
    ]


NODES: list[tuple[Any, dict[tuple[str, str], str] | None]] = [
    ({"nodes": []}, {}),
    ({"nodes": [{"pool": "p", "node": "n", "cause": "errors", "seconds": 2.5}]}, {("p", "n"): "errors"}),
    ({"nodes": [{"pool": "p", "node": "n", "cause": "\x1b[2J", "seconds": 2.5}]}, None),
    ({"nodes": [{"pool": "p", "node": 7, "cause": "errors", "seconds": 2.5}]}, None),
    ({"nodes": [7]}, None),
    ({}, None),
    ([], None),
    ("nodes", None),
]


@pytest.mark.parametrize(("answer", "expected"), NODES)
def test_of_ejections_only_what_can_be_is_believed(answer: Any, expected: dict[tuple[str, str], str] | None) -> None:
    assert checked(answer) == expected


def test_the_states_of_the_command_line_are_those_that_are_shown() -> None:
    assert (*STATES, fleet.EJECTED, fleet.GONE) == STATES_SHOWN
