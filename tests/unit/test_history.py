"""The history of recent ticks: its content, its size, and what it survives."""

from __future__ import annotations

import gzip
import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.samples import config, good, refused
from vllm_lb.decide import decide
from vllm_lb.errors import FailureError
from vllm_lb.history import History, Tick
from vllm_lb.outcome import Outcome
from vllm_lb.plan import Plan
from vllm_lb.view.history_reader import Past, read_history
from vllm_lb.view.replay import sample_of

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_lb.memory import NodeMemory
    from vllm_lb.observation import Sample
    from vllm_lb.settings import Config

HOUR = 3600


class Recorder:
    """Decides tick after tick on a test's samples, as `collect` does, and writes the history."""

    def __init__(self, directory: Path, settings: Config, max_bytes: int = 20 * 10**6) -> None:
        """Begin with nothing remembered."""
        self.config, self.history = settings, History(directory, max_bytes)
        self.memory: dict[str, NodeMemory] = {}
        self.number = 0
        self.last: Outcome | None = None
        self.applied = True

    def tick(self, **samples: Sample) -> Tick:
        """Decide once; nodes not named are idle."""
        nodes = [node for pool in self.config.pools for node in pool.nodes]
        found = {node.name: good(node.host) for node in nodes} | samples
        now, self.number = 1000.0 + 10 * self.number, self.number + 1
        before = self.memory
        pools, self.memory = decide(self.config, found, before, set(), now, applied=self.applied)
        at = f"2026-11-26T{self.number // 360:02d}:{self.number // 6 % 60:02d}:{self.number % 6}0.000+00:00"
        plan = Plan(version=1, decided_at=at, pools=pools)
        tick = Tick(now, found, before, set(), self.last, applied=self.applied, plan=plan, after=self.memory)
        self.history.add(tick)
        self.last = Outcome(decided_at=at, generation="abc", applied=True, outcome="unchanged", error=None)
        return tick

    def an_hour_passes(self) -> None:
        """Move the present segment to an earlier hour."""
        found = self.history.current.stat()
        os.utime(self.history.current, (found.st_atime, found.st_mtime - HOUR))

    def ticks(self) -> list[Past]:
        """Return all that can be read back."""
        return list(read_history([*self.history.segments(), self.history.current]))


def row_of(past: Past, name: str) -> dict[str, Any]:
    """Return a node's values of a tick, which must be whole."""
    row = past.node(name)
    assert row is not None
    return row


def busy(host: str, **changes: Any) -> Sample:
    """Return a scrape of a node that works, with counters as large as those of a real one."""
    counters = {"preemptions": 12, "prompt_tokens": 48_123_456, "generation_tokens": 9_876_543, "finished": 123_456}
    return good(host, **(counters | changes))


def test_a_tick_can_be_read_back(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    tick = recorder.tick(a=busy("127.0.0.1", kv_cache_usage=0.9), b=refused("127.0.0.2"))
    (past,) = recorder.ticks()
    assert (past.at, past.now) == (tick.plan.decided_at, 1000.0)
    assert row_of(past, "a")["reason"] == "kv 0.90 >= 0.85"
    assert row_of(past, "b")["state"] == "unknown"
    assert {name: sample_of(row_of(past, name)) for name in past.rows} == dict(tick.samples)


def test_a_reason_is_kept_when_a_weight_or_state_has_moved(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    for sample in (good(), good(), refused(), good(), good(kv_cache_usage=0.8)):
        recorder.tick(a=sample)
    reasons = [row_of(past, "a")["reason"] for past in recorder.ticks()]
    assert reasons == [
        "kv 0.10 < 0.75",
        None,
        "connection refused (1 of 3), last weight held",
        "kv 0.10 < 0.75",
        "kv 0.80 >= 0.75",
    ]


def test_each_hour_has_a_segment_and_the_earlier_ones_are_compressed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    for _ in range(3):
        recorder.tick()
        recorder.tick()
        recorder.an_hour_passes()
    recorder.tick()
    names = [path.name for path in recorder.history.segments()]
    assert names == [f"history-00000{number}.jsonl.gz" for number in (1, 2, 3)]
    assert len(gzip.decompress((tmp_path / names[1]).read_bytes()).splitlines()) == 3  # a head and two ticks
    head = json.loads(recorder.history.current.read_text().splitlines()[0])
    assert head["previous"] == names[-1]
    assert head["memory"]["a"]["successes"] == 6
    assert [past.now for past in recorder.ticks()] == [1000.0 + 10 * number for number in range(7)]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


def test_the_oldest_go_when_all_would_be_too_large(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"), max_bytes=20_000)
    drawn = random.Random(7)  # noqa: S311 - a test repeats
    for number in range(1000):
        recorder.tick(a=busy("127.0.0.1", kv_cache_usage=drawn.random()), b=busy("127.0.0.2", running=number))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000
    assert not (tmp_path / "history-000001.jsonl.gz").exists()
    times = [past.now for past in recorder.ticks()]
    assert times[-1] == 1000.0 + 10 * 999
    assert times == sorted(times)
    assert len(times) > 100


def test_a_day_of_sixty_nodes_fits(tmp_path: Path) -> None:
    names = [f"node-{number}" for number in range(60)]
    recorder = Recorder(tmp_path, config(*names))
    drawn = random.Random(7)  # noqa: S311 - a test repeats
    for number in range(360):
        recorder.tick(
            **{
                name: busy(
                    f"127.0.0.{i}",
                    kv_cache_usage=drawn.randrange(5000) / 5000,
                    running=drawn.randrange(60),
                    prompt_tokens=48_000_000 + number * drawn.randrange(50_000),
                    generation_tokens=9_000_000 + number * drawn.randrange(9_000),
                    finished=100_000 + number * drawn.randrange(50),
                )
                for i, name in enumerate(names, 1)
            }
        )
    present = recorder.history.current.stat().st_size
    recorder.an_hour_passes()
    recorder.tick()
    (hour,) = recorder.history.segments()
    assert present + 23 * hour.stat().st_size < 20 * 10**6
    assert 23 * hour.stat().st_size < 16 * 10**6  # what is kept of earlier segments


def test_a_line_that_a_full_disk_tore_off_costs_that_tick_alone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    recorder.tick()
    with recorder.history.current.open("r+b") as file:
        file.truncate(recorder.history.current.stat().st_size - 20)
    recorder.tick()
    assert [past.now for past in recorder.ticks()] == [1010.0]


def test_ticks_that_stand_in_two_segments_count_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    recorder.tick()
    # Killed after it had compressed the segment, and before it began another one.
    (tmp_path / "history-000001.jsonl.gz").write_bytes(gzip.compress(recorder.history.current.read_bytes()))
    recorder.tick()
    assert [past.now for past in recorder.ticks()] == [1000.0, 1010.0]


@pytest.mark.parametrize("kind", ["link", "hard link", "directory", "pipe"])
def test_what_somebody_else_put_there_is_not_written_to(tmp_path: Path, kind: str) -> None:
    (tmp_path / "state").mkdir()
    recorder = Recorder(tmp_path / "state", config("a", "b"))
    victim, there = tmp_path / "victim", recorder.history.current
    victim.write_text("precious")
    match kind:
        case "link":
            there.symlink_to(victim)
        case "hard link":
            there.hardlink_to(victim)
        case "directory":
            there.mkdir()
        case _:
            os.mkfifo(there)
    if kind == "directory":
        with pytest.raises(FailureError, match="cannot be written"):
            recorder.tick()
    else:
        recorder.tick()
        assert len(recorder.ticks()) == 1
    assert victim.read_text() == "precious"


def test_the_hour_before_is_kept_when_it_cannot_be_compressed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    recorder.tick()
    recorder.an_hour_passes()
    (tmp_path / ".history-000001.jsonl.gz.new").mkdir()  # blocks the segment, as a full disk would
    with pytest.raises(FailureError, match=r"history-000001.jsonl.gz cannot be written"):
        recorder.tick()
    assert [past.now for past in recorder.ticks()] == [1000.0]
    (tmp_path / ".history-000001.jsonl.gz.new").rmdir()
    recorder.tick()
    assert [past.now for past in recorder.ticks()] == [1000.0, 1020.0]


def test_numbers_go_on_beyond_a_million(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    recorder.tick()
    recorder.an_hour_passes()
    (tmp_path / "history-999999.jsonl.gz").write_bytes(b"")
    recorder.tick()
    assert [path.name for path in recorder.history.segments()][-1] == "history-1000000.jsonl.gz"


def test_no_history_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, config("a", "b"))
    recorder.tick()
    recorder.an_hour_passes()
    recorder.tick()
    Recorder(tmp_path, config("a", "b"), max_bytes=0).tick()
    assert list(tmp_path.iterdir()) == []
