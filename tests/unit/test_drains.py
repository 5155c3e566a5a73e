"""drained.json: its formats, and which of several entries on a node counts."""

from __future__ import annotations

import itertools
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lb.drains import Drains, Entry, drains_of, newest, read_drains, tidied, write_drains
from vllm_lb.errors import FailureError
from vllm_lb.state import State
from vllm_lb.text import timestamp

if TYPE_CHECKING:
    from pathlib import Path

NOW = "2026-11-28T10:00:00.000+00:00"
LATER = "2026-11-28T10:00:00.001+00:00"


def drained(since: str = NOW, name: str = "a", **more: Any) -> Drains:
    return Drains(nodes={name: Entry(since=since, **more)})


def undrained(since: str = NOW, name: str = "a", **more: Any) -> Drains:
    return Drains(nodes={}, undrained={name: Entry(since=since, **more)})


@pytest.mark.parametrize(
    ("one", "other", "is_drained"),
    [
        (drained(NOW), undrained(LATER), False),
        (drained(LATER), undrained(NOW), True),
        (drained(NOW), undrained(NOW), True),
        (undrained(NOW), Drains(nodes={}), False),
        (drained("2026-11-28T11:00:00.000+02:00"), undrained("2026-11-28T09:30:00.000+00:00"), False),
    ],
    ids=["undrained since", "drained since", "at once", "one entry", "another zone"],
)
def test_the_newer_entry_counts(one: Drains, other: Drains, *, is_drained: bool) -> None:
    for known in itertools.permutations([one, other]):
        assert ("a" in newest(*known).nodes) == is_drained


ENTRIES = st.builds(
    lambda name, since, reason, is_drained: (drained if is_drained else undrained)(since, name, reason=reason),
    st.sampled_from("abc"),
    st.sampled_from([NOW, LATER]),
    st.sampled_from([None, "x", "y"]),
    st.booleans(),
)


@given(st.lists(ENTRIES, max_size=6))
def test_hosts_that_exchange_their_entries_in_any_order_agree(entries: list[Drains]) -> None:
    together = tidied(newest(*entries), "abc")
    assert tidied(newest(*reversed(entries)), "abc") == together
    assert tidied(newest(together, *entries), "abc") == together
    halves = newest(*entries[:3]), newest(*entries[3:])
    assert tidied(newest(*halves), "abc") == together


def test_a_host_that_was_away_does_not_drain_a_node_again_that_was_undrained_and_removed() -> None:
    drained_at, undrained_at = timestamp(time.time() - 86400), timestamp(time.time() - 3600)
    here = tidied(newest(drained(drained_at), undrained(undrained_at)), ["b"])
    assert tidied(newest(here, drained(drained_at)), ["b"]).nodes == {}
    assert tidied(undrained(timestamp(time.time() - 100 * 86400)), ["b"]).undrained == {}, "the file does not grow"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    known = newest(
        *(drained(reason="fan", by="alice@ops"), undrained(name="b"), drained(name="gone")),
        undrained("2020-01-01T00:00:00+00:00", "former"),
    )
    write_drains(State(tmp_path), tidied(known, ["a", "b"]))
    found = read_drains(State(tmp_path))
    assert found == tidied(known, ["a", "b"])
    assert (sorted(found.nodes), sorted(found.undrained or {})) == (["a", "gone"], ["b"])
    assert json.loads((tmp_path / "drained.json").read_text()) == {
        "version": 2,
        "nodes": {
            "a": {"since": NOW, "reason": "fan", "by": "alice@ops"},
            "gone": {"since": NOW, "reason": None, "by": None},
        },
        "undrained": {"b": {"since": NOW, "reason": None, "by": None}},
    }


def test_the_list_of_former_releases_is_as_old_as_its_file(tmp_path: Path) -> None:
    file = tmp_path / "drained.json"
    file.write_text('["b", "a"]')
    os.utime(file, (1_764_324_000, 1_764_324_000))
    found = read_drains(State(tmp_path))
    assert found.nodes == dict.fromkeys("ab", Entry(since="2025-11-28T10:00:00.000+00:00"))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"version": 3, "nodes": {}}, "version: 3: expected a number from 2 to 2"),
        ({"version": 2}, "nodes: missing"),
        ({"version": 2, "nodes": {"a": {}}}, "nodes.'a'.since: missing"),
        ({"version": 2, "nodes": {"a": {"since": "now"}}}, "'now': expected an RFC 3339 time"),
        ({"version": 2, "nodes": {"a": {"since": "9999-12-31T23:59:59.999+00:00"}}}, "expected an RFC 3339 time"),
        ({"version": 2, "nodes": {"a": {"since": NOW, "reason": "\x1b[2J"}}}, "expected printable text"),
        ({"version": 2, "nodes": {"\x1b[2J": {"since": NOW}}}, "?[2J: expected a node's name"),
        (["a", 7], "expected a mapping"),
    ],
    ids=str,
)
def test_anything_else_is_refused(raw: Any, words: str) -> None:
    with pytest.raises(FailureError) as failure:
        drains_of(raw, NOW, "drained.json")
    assert str(failure.value).startswith("drained.json is not a list of drains: ")
    assert words in str(failure.value)
    assert str(failure.value).isprintable()
