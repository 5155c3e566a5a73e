"""The plan of rolling.yml: batches that leave a share to serve, and a run that goes on where it stopped."""

from __future__ import annotations

from typing import Any

import pytest

from roles.vllm_nginx_lb.filter_plugins.vllm_nginx_lb import (
    vllm_nginx_lb_rolling_obstacles,
    vllm_nginx_lb_rolling_plan,
    vllm_nginx_lb_rolling_variables,
    vllm_nginx_lb_unfinished,
)

NOW = "2026-11-28T10:00:00+00:00"
NONE: dict[str, Any] = {"nodes": {}, "undrained": {}}


def nodes(*names: str, **pools: str) -> list[dict[str, Any]]:
    """Return nodes of the default pool, and nodes of other pools by name."""
    return [{"name": name, "host": "192.0.2.1"} for name in names] + [
        {"name": name, "host": "192.0.2.1", "pool": pool} for name, pool in pools.items()
    ]


def settings(**changes: Any) -> dict[str, Any]:
    base = {"command": "x", "nodes": [], "batch": "1", "serving_ratio": "0.5", "resume": True, "force": False}
    return base | {"now": NOW} | changes


def plan(of: list[dict[str, Any]], drains: dict[str, Any] = NONE, **changes: Any) -> dict[str, Any]:
    return vllm_nginx_lb_rolling_plan(of, settings(**changes), drains)


def word(reason: str | None = None, since: str = "2026-11-28T09:00:00+00:00") -> dict[str, Any]:
    return {"since": since, "reason": reason, "by": None}


EIGHT = nodes(*"abcdefgh")


@pytest.mark.parametrize(
    ("of", "changes", "batches"),
    [
        (nodes(*"abc"), {}, ["a", "b", "c"]),
        (nodes(*"abc"), {"nodes": ["c", "a", "c"]}, ["c", "a"]),
        (EIGHT, {"batch": 3}, ["abc", "def", "gh"]),
        (EIGHT, {"batch": "25%"}, ["ab", "cd", "ef", "gh"]),
        (EIGHT, {"batch": "1%"}, list("abcdefgh")),
        (EIGHT, {"batch": "100%"}, ["abcd", "efgh"]),
        (EIGHT, {"batch": "100%", "serving_ratio": "0.75"}, ["ab", "cd", "ef", "gh"]),
        (EIGHT, {"batch": "100%", "serving_ratio": "0"}, ["abcdefgh"]),
        (nodes(*"abc"), {"batch": "3", "serving_ratio": "0.6"}, ["a", "b", "c"]),
        ([*nodes(*"abc"), *nodes(x="other", y="other")], {"batch": "2"}, ["a", "b", "c", "x", "y"]),
        ([*nodes(*"abcd"), *nodes(x="other", y="other")], {"batch": "50%"}, ["ab", "cd", "x", "y"]),
        (nodes("a", x="other", b="llm_cluster"), {"serving_ratio": "0"}, ["a", "x", "b"]),
        ([*nodes(*"abc"), {"name": "d", "host": "h", "drain": "true"}], {"batch": 2}, ["a", "b", "c"]),
    ],
)
def test_a_batch_leaves_the_share_of_its_pool(
    of: list[dict[str, Any]], changes: dict[str, Any], batches: list[str]
) -> None:
    found = plan(of, **changes)
    assert (["".join(each) for each in found["batches"]], found["problems"]) == (batches, [])


def test_what_is_smaller_or_left_out_is_told() -> None:
    of = [*EIGHT, {"name": "i", "host": "h", "drain": True}]
    lines = plan(of, {"nodes": {"c": word("a fan")}, "undrained": {}}, batch=8)["lines"]
    assert lines == [
        "In batches: a, b, d; e, f, g; h",
        "pool llm_cluster: batches of 3 instead of 8, so that 4 of 9 nodes serve",
        "Left out, because the inventory has vllm_drain: true: i",
        "Left out, because somebody has drained them (-e rolling_nodes=… takes them too): c",
    ]


def test_a_node_to_whose_reason_somebody_has_added_words_is_left_out() -> None:
    drains = stopped("a", "b")
    drains["nodes"]["b"]["reason"] += ", and a fan is broken"
    found = plan(nodes(*"abcd"), drains)
    assert ["b"] not in found["batches"]
    assert found["lines"][-1].startswith("Left out, because somebody has drained them (")
    assert found["lines"][-1].endswith(": b")


@pytest.mark.parametrize("ratio", ["0.6", "1"])
def test_a_pool_that_can_spare_no_node_is_refused(ratio: str) -> None:
    found = plan(nodes(*"ab"), {"nodes": {}, "undrained": {}}, serving_ratio=ratio)
    (problem,) = found["problems"]
    assert problem.startswith(f"pool llm_cluster: 2 of 2 nodes must serve (rolling_serving_ratio {ratio}), and 0 are")


def run_of(found: dict[str, Any], done: int) -> str:
    """Return the reason that vars/main.yml makes of a plan."""
    return f"rolling.yml {found['key']}, {done} of {found['total']} nodes done, begun {found['begun']}"


def stopped(done: str, out: str, *, since: str = "2026-11-28T09:00:00+00:00", **changes: Any) -> dict[str, Any]:
    """Return what drained.json has after a run that has done some of a, b, c, d and left some drained."""
    first = plan(nodes(*"abcd"), now="2026-11-28T08:00:00+00:00", **changes)
    return {
        "nodes": {name: word(run_of(first, len(done)), since) for name in out},
        "undrained": {name: word(run_of(first, n + 1), since) for n, name in enumerate(done)},
    }


@pytest.mark.parametrize(
    ("drains", "changes", "batches", "done"),
    [
        (stopped("a", "b"), {}, "bcd", 1),
        (stopped("ab", ""), {}, "cd", 2),  # it stopped between two batches
        (stopped("", "c"), {}, "cabd", 0),
        (stopped("a", "b"), {"resume": False}, "bacd", 0),
        (stopped("a", "b"), {"command": "y"}, "bacd", 0),
        (stopped("a", "b", since="2026-11-27T09:00:00+00:00"), {}, "bacd", 0),  # more than a day ago
        (stopped("abcd", ""), {}, "abcd", 0),  # it was over
        (stopped("a", "b"), {"nodes": ["c", "d"]}, "cd", 0),
        (stopped("a", "b", nodes=["b", "a"]), {"nodes": ["b", "a"]}, "b", 1),
    ],
    ids=[
        *("drained", "between", "first", "anew", "another command", "long ago", "over", "other nodes"),
        "the same nodes",
    ],
)
def test_the_same_command_goes_on_where_it_stopped(
    drains: dict[str, Any], changes: dict[str, Any], batches: str, done: int
) -> None:
    found = plan(nodes(*"abcd"), drains, **changes)
    assert ("".join(name for (name,) in found["batches"]), found["done"]) == (batches, done)
    assert any(
        line.startswith("Done already by this run, which began at 2026-11-28T08") for line in found["lines"]
    ) == (done > 0)
    assert any("Still drained by another run" in line for line in found["lines"]) == (
        changes.get("nodes") == ["c", "d"]
    )


def test_a_run_is_over_when_somebody_has_drained_a_node_since() -> None:
    drains = stopped("abc", "")
    drains["undrained"]["d"] = word(None, "2026-11-28T09:30:00+00:00")
    assert plan(nodes(*"abcd"), drains)["batches"] == [["a"], ["b"], ["c"], ["d"]]


def test_a_run_that_went_on_is_the_same_run() -> None:
    drains = stopped("a", "b")
    found = plan(nodes(*"abcd"), drains)
    assert run_of(found, found["done"]) == drains["nodes"]["b"]["reason"]


def test_a_node_that_is_new_since_a_run_stopped_belongs_to_the_run() -> None:
    five, drains = nodes(*"abcde"), stopped("abc", "d")
    found = plan(five, drains)
    assert (found["batches"], found["done"], found["total"]) == ([["d"], ["e"]], 3, 5)
    # It goes on until that node is done, too.
    drains["undrained"]["d"] = word(run_of(found, 4), "2026-11-28T09:30:00+00:00")
    drains["nodes"] = {"e": word(run_of(found, 4), "2026-11-28T09:31:00+00:00")}
    assert plan(five, drains)["batches"] == [["e"]]


def status(**states: Any) -> dict[str, Any]:
    """Return a status: of each node its state, or a dict with more."""
    base = {"weight": 100, "running": 0, "waiting": 0, "error": None, "error_cause": None}
    rows = [base | {"name": name} | (it if isinstance(it, dict) else {"state": it}) for name, it in states.items()]
    for row in rows:
        row["weight"] = 100 if row.get("state") == "up" else 0
    return {"pools": [{"nodes": rows}]}


@pytest.mark.parametrize(
    ("states", "changes", "words"),
    [
        ({"a": "up", "b": "up", "c": "up"}, {}, []),
        (
            {"a": "up", "b": "down", "c": "up"},
            {},
            ["not up: b", "pool llm_cluster: 1 nodes would serve, and 2 must"],
        ),
        (
            {"a": "up", "b": "down", "c": "up"},
            {"force": True},
            ["pool llm_cluster: 1 nodes would serve, and 2 must"],
        ),
        ({"a": "up", "b": "down", "c": "up"}, {"force": True, "serving_ratio": "0.3"}, []),
        ({"a": "up", "b": "drained", "c": "up"}, {"serving_ratio": "0.3"}, []),
        ({"a": "up", "b": "drained", "c": "up"}, {}, ["pool llm_cluster: 1 nodes would serve, and 2 must"]),
        ({"a": "drained", "b": "up", "c": "unknown"}, {"force": True}, []),  # nothing more is taken out
        ({"a": "up", "c": "up"}, {"serving_ratio": "0.3"}, ["not up: b"]),
    ],
    ids=str,
)
def test_a_batch_waits_for_the_others(states: dict[str, Any], changes: dict[str, Any], words: list[str]) -> None:
    found = vllm_nginx_lb_rolling_obstacles(status(**states), nodes(*"abc"), ["a"], settings(**changes))
    assert [each.partition(" (")[0] for each in found] == words


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"running": 0, "waiting": 0}, []),
        ({"running": 2, "waiting": 1}, ["a still has 3 request(s)"]),
        ({"running": None, "error": "HTTP 500"}, ["a cannot be read (HTTP 500), so what it runs is not known"]),
        ({"running": None, "error": "connection refused", "error_cause": "connection_refused"}, []),
    ],
)
def test_what_a_drained_node_still_does(seen: dict[str, Any], words: list[str]) -> None:
    assert vllm_nginx_lb_unfinished(status(a=seen), ["a"], []) == words
    assert vllm_nginx_lb_unfinished(status(a=seen), ["a"], ["a"]) == [each for each in words if "still" in each]
    assert vllm_nginx_lb_unfinished({}, ["a"], []) == ["a cannot be read (None), so what it runs is not known"]


def test_the_command_gets_the_address_of_its_node() -> None:
    of = [*nodes("a"), {"name": "b", "host": "2001:db8::1", "port": 8000, "scheme": "https"}]
    assert vllm_nginx_lb_rolling_variables(of, ["b"]) == {
        "b": {
            "VLLM_NODE_NAME": "b",
            "VLLM_NODE_HOST": "2001:db8::1",
            "VLLM_NODE_PORT": "8000",
            "VLLM_NODE_SCHEME": "https",
        }
    }
