"""`explain` and `replay` on recorded ticks, and `status` on a terminal."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.samples import config, good, refused, unreadable
from tests.unit.test_history import Recorder, busy, row_of
from vllm_lb.decide import POLICIES
from vllm_lb.errors import FailureError
from vllm_lb.history import COLUMNS, MAX_SEGMENT_BYTES
from vllm_lb.state import State
from vllm_lb.view.explain import explain_command, start_of
from vllm_lb.view.history_reader import outcome_before
from vllm_lb.view.replay import replay_command

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_lb.settings import Config

NAMES = ("a", "b", "c")


def written(directory: Path, settings: Config) -> Path:
    """Write a configuration into a file; JSON is YAML."""
    path = directory / "config.yml"
    path.write_text(json.dumps(dataclasses.asdict(settings)))
    return path


def replayed(capsys: pytest.CaptureFixture[str], file: Path, state: State, **options: Any) -> str:
    """Run a replay and return what it prints."""
    replay_command(file, state, options.pop("files", []), **({"policy": None, "changes": []} | options))
    return capsys.readouterr().out


def differing(said: str) -> dict[str, int]:
    """Return in how many ticks each node's weight differs."""
    rows = said.partition("NODE ")[2].splitlines()[1:4]
    return {row.split()[0]: int(row.split()[-1]) for row in rows}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_replay_with_the_same_settings_decides_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    settings = config(
        *NAMES,
        pool={"policy": policy},
        state_directory=str(tmp_path),
        nginx={"balancer": "work", "confirm_url": "http://127.0.0.1:1/"},
    )
    recorder = Recorder(tmp_path, settings)
    drawn = random.Random(11)  # noqa: S311 - a test repeats
    tokens = dict.fromkeys(NAMES, 1000)
    for number in range(200):
        if number in (50, 51, 120):
            recorder.an_hour_passes()
        samples = {}
        for i, name in enumerate(NAMES, 1):
            tokens[name] += drawn.randrange(5000) * i
            load = {"kv_cache_usage": drawn.random(), "running": drawn.randrange(20), "waiting": drawn.randrange(2)}
            samples[name] = busy(f"127.0.0.{i}", generation_tokens=tokens[name], finished=number * 9, **load)
        if drawn.random() < 0.1:
            samples["b"] = drawn.choice([refused, unreadable])("127.0.0.2")
        recorder.tick(**samples)
    said = replayed(capsys, written(tmp_path, settings), State(tmp_path))
    assert differing(said) == {"a": 0, "b": 0, "c": 0}
    assert len({row_of(past, "a")["weight"] for past in recorder.ticks()}) > (policy != "static")

    # A later segment alone is enough too: its head has the memory.
    (last,) = recorder.history.segments()[-1:]
    said = replayed(capsys, tmp_path / "config.yml", State(tmp_path), files=[last, recorder.history.current])
    assert differing(said) == {"a": 0, "b": 0, "c": 0}


def test_a_replay_shows_what_other_thresholds_and_policies_would_have_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(*NAMES, state_directory=str(tmp_path))
    recorder = Recorder(tmp_path, settings)
    for kv in (0.1, 0.8, 0.8, 0.95, 0.1):
        recorder.tick(a=good("127.0.0.1", kv_cache_usage=kv))
    file, state = written(tmp_path, settings), State(tmp_path)
    said = replayed(capsys, file, state, changes=["policies.stepped.kv_cache=[{at_least: 0.9, weight: 30}]"])
    assert "a: weight 100 -> 30: kv 0.95 >= 0.9" in said
    assert differing(said) == {"a": 3, "b": 0, "c": 0}
    said = replayed(capsys, file, state, policy="static")
    assert " -> " not in said
    assert differing(said) == {"a": 3, "b": 0, "c": 0}
    assert re.search(r"\n5 ticks from \d\d-\d\d \S+ to \d\d-\d\d \S+\n", said)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("health.fall", "--set: 'health.fall': expected KEY=VALUE"),
        ("health.fall.x=1", "--set: 'health.fall.x=1': expected KEY=VALUE"),
        ("health.fall=no", "health.fall: False: expected a number from 1 to 1000"),
        ("health.fell=3", "health.'fell': unknown key"),
        ("health.fall={", "health.fall: '{': expected a number from 1 to 1000"),
        ("health.fall=2026-13-45", "health.fall: '2026-13-45': expected a number from 1 to 1000"),
        ("pools=3", "pools: 3: expected a list of at least one pool"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path: Path, change: str, line: str) -> None:
    settings = config(*NAMES, state_directory=str(tmp_path), health={"fall": 3})
    Recorder(tmp_path, settings).tick()
    with pytest.raises(FailureError, match=re.escape(line)) as refusal:
        replay_command(written(tmp_path, settings), State(tmp_path), [], policy=None, changes=[change])
    assert refusal.value.code == 2


def test_a_damaged_history_is_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path, config(*NAMES))
    recorder.tick()
    recorder.an_hour_passes()
    recorder.tick()
    (segment,) = recorder.history.segments()
    for damage in (segment.read_bytes()[:30], b"\x1f\x8bnonsense", b"", b"\x00" * 99):
        segment.write_bytes(damage)
        assert [past.now for past in recorder.ticks()] == [1010.0]
        assert str(segment) in capsys.readouterr().err
    file = written(tmp_path, config(*NAMES))
    with pytest.raises(FailureError, match="nothing to replay"):
        replay_command(file, State(tmp_path), [tmp_path / "none.jsonl"], policy=None, changes=[])
    assert "none.jsonl: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"[]", b"{}", b"nonsense", b'{"at":1,"now":"x"}', b'{"at":"x","now":1,"applied":1}'])
def test_a_line_that_is_no_tick_is_left_out(tmp_path: Path, line: bytes) -> None:
    recorder = Recorder(tmp_path, config(*NAMES))
    recorder.tick()
    with recorder.history.current.open("ab") as file:
        file.write(line + b"\n")
    recorder.tick()
    assert [past.now for past in recorder.ticks()] == [1000.0, 1010.0]


WEIGHTS: list[Any] = [None, "x", [], True, -1, 101, 10**400, 1.5, float("nan")]
HOSTILE: list[dict[str, Any]] = [{"weight": value} for value in WEIGHTS]
HOSTILE += [{"reason": value} for value in ("\x1b]52;c;eA==\x07", "two\nlines", "\ud800", 7, "x" * 301)]
HOSTILE += [{"error": "\x1b[2J"}, {"unresolved": "\x07"}, {"state": "well"}, {"address": "foo; evil"}, {"address": []}]
HOSTILE += [{"kv_cache_usage": value} for value in (float("nan"), "0.5", 2)]
HOSTILE += [
    {"engines": 0},
    {"engines": None},
    {"token_gaps": -1},
    {"token_gap_seconds": "3"},
    {"waiting": "3"},
    {"seconds": 10**400},
    {"awake": 1},
    {"generation_tokens": -1},
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_nothing_is_believed_of_a_row_that_no_tick_could_have_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    settings = config(*NAMES, state_directory=str(tmp_path))
    recorder = Recorder(tmp_path, settings)
    recorder.tick()
    recorder.tick(a=good("127.0.0.1", kv_cache_usage=0.8))
    recorder.tick()
    head, first, second, third = recorder.history.current.read_text().splitlines()
    line = json.loads(second)
    row = line["pools"]["llm_cluster"]["a"]
    row += [None] * (len(COLUMNS) - len(row))
    for name, value in change.items():
        row[COLUMNS.index(name)] = value
    recorder.history.current.write_text("\n".join([head, first, json.dumps(line), third, ""]))

    explain_command(settings, State(tmp_path), "a", "2020-01-01")
    said = capsys.readouterr().out
    assert "a: 2 ticks" in said
    assert said.isascii()
    assert said.replace("\n", "").isprintable()
    said = replayed(capsys, written(tmp_path, settings), State(tmp_path))
    assert differing(said) == {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"at": "9999-12-31T23:59:59.9-23:59"},
        {"at": "\x1b[2J2026-11-26T00:00:00"},
        {"at": 7},
        {"now": 10**400},
        {"now": -1},
        {"now": "x"},
        {"pools": []},
        {"pools": {"llm_cluster": {"a": 7}}},
        {"drained": 7},
    ],
    ids=str,
)
def test_a_tick_that_cannot_have_been_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    recorder = Recorder(tmp_path, config(*NAMES))
    recorder.tick()
    recorder.tick()
    head, first, second = recorder.history.current.read_text().splitlines()
    forged = json.dumps(json.loads(first) | change)
    recorder.history.current.write_text(f"{head}\n{forged}\n{second}\n")
    assert [past.now for past in recorder.ticks()] == [1010.0]


def test_what_became_of_a_tick_is_believed_only_as_far_as_it_can_be(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config(*NAMES))
    recorder.tick()
    at = "2026-11-26T00:00:00.000+00:00"
    for before in ({"at": at, "outcome": "\x1b[2J"}, {"at": 7, "outcome": "failed"}, {"at": at}, 7, "x"):
        assert outcome_before(before) == {}
    found = outcome_before({"at": at, "outcome": "failed", "error": "a\x1bb"})
    assert found == {
        "at": at,
        "outcome": "failed",
        "error": "a?b",
        "error_cause": None,
        "deferred": None,
        "deferred_cause": None,
    }


def test_a_segment_that_unpacks_to_too_much_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(tmp_path, config(*NAMES))
    recorder.tick()
    (tmp_path / "history-000001.jsonl.gz").write_bytes(gzip.compress(b"0" * (2 * MAX_SEGMENT_BYTES + 1)))
    assert [past.now for past in recorder.ticks()] == [1000.0]
    assert "history-000001.jsonl.gz: left out: larger than" in capsys.readouterr().err


def test_a_history_of_the_former_release_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(*NAMES, state_directory=str(tmp_path))
    recorder = Recorder(tmp_path, settings)
    recorder.tick()
    recorder.tick(a=good("127.0.0.1", kv_cache_usage=0.8), b=refused("127.0.0.2"))
    lines = [json.loads(line) for line in recorder.history.current.read_text().splitlines()]
    lines[0]["columns"] = [name for name in COLUMNS if name not in ("cause", "error_cause")]
    for line in lines[1:]:
        line["settled"] = line.pop("applied")
        for nodes in line["pools"].values():
            for name, row in nodes.items():
                nodes[name] = row[: len(lines[0]["columns"])]
    recorder.history.current.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = replayed(capsys, written(tmp_path, settings), State(tmp_path))
    assert differing(said) == {"a": 0, "b": 0, "c": 0}
    explain_command(settings, State(tmp_path), "a", "2020-01-01")
    assert "weight 100 ->  60: kv 0.80 >= 0.75" in capsys.readouterr().out


def test_a_replay_follows_ticks_that_did_not_go_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(*NAMES, pool={"policy": "capacity"}, state_directory=str(tmp_path))
    recorder = Recorder(tmp_path, settings)
    drawn = random.Random(5)  # noqa: S311 - a test repeats
    for number in range(200):
        recorder.applied = drawn.random() > 0.3
        recorder.tick(
            a=busy("127.0.0.1", running=12, waiting=3, generation_tokens=1000 + number * 400, finished=number * 9),
            b=busy("127.0.0.2", running=12, generation_tokens=1000 + number * 4000, finished=number * 40),
            c=busy("127.0.0.3", running=12, generation_tokens=1000 + number * 2000, finished=number * 20),
        )
    assert differing(replayed(capsys, written(tmp_path, settings), State(tmp_path))) == {"a": 0, "b": 0, "c": 0}
    assert len({row_of(past, "a")["weight"] for past in recorder.ticks()}) > 1


@pytest.mark.parametrize("since", ["", "1", "h", "1w", "-1h", "yesterday", "2026-13-01"])
def test_a_time_that_cannot_be_is_refused(since: str) -> None:
    with pytest.raises(FailureError, match=r"--since: .*: expected a number with s, m, h or d") as refusal:
        start_of(since)
    assert refusal.value.code == 2
