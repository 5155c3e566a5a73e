"""Reading /metrics: the recordings of real vLLM, and answers that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_lb.observation import Reading
from vllm_lb.vllm_metrics import UnreadableError, parse_metrics

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOOD = """\
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("idle", Reading(0.0, 0, 0, 0, 1, awake=True, prompt_tokens=0, generation_tokens=0, finished=0)),
        ("busy", None),
        ("preempting", None),
        ("dp2", Reading(1.0, 26, 14, 0, 2, awake=True, prompt_tokens=96, generation_tokens=20555, finished=0)),
    ],
)
def test_recordings(name: str, expected: Reading | None) -> None:
    found = parse_metrics((FIXTURES / f"vllm-0.32.0-{name}.txt").read_bytes())
    if expected:
        assert found == expected
    else:
        assert found.running > 0
        assert found.engines == 1
        assert (found.preemptions > 0) == (name == "preempting")
        assert found.finished == (7 if name == "preempting" else 0)


def test_plain() -> None:
    assert parse_metrics(GOOD.encode()) == Reading(0.5, 2, 3, 4, 1, awake=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [("vllm:kv_cache", "vllm:gpu_cache"), ("vllm:", "vllm_"), ('{engine="0",model_name="m"}', ""), ("\n", "\r\n")],
)
def test_other_spellings(old: str, new: str) -> None:
    assert parse_metrics(GOOD.replace(old, new).encode()) == Reading(0.5, 2, 3, 4, 1, awake=True)


def test_similar_names_are_not_taken_for_the_wanted_ones() -> None:
    traps = (
        'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99\n'
        'vllm:num_preemptions_created{engine="0"} 1.7e9\n'
        'xvllm:num_requests_waiting{engine="0"} 99\n'
    )
    assert parse_metrics((traps + GOOD + traps).encode()).waiting == 2


def test_several_engines_and_models() -> None:
    second = GOOD.replace('engine="0"', 'engine="1"').replace("} 0.5", "} 0.75")
    other = GOOD.replace('"m"', '"n"')
    assert parse_metrics((GOOD + second + other).encode()) == Reading(0.75, 6, 9, 12, 2, awake=True)


@pytest.mark.parametrize(("awake", "expected"), [("0", False), ("1", True)])
def test_sleep(awake: str, expected: bool) -> None:  # noqa: FBT001 - a table's column
    states = f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}\n' + "".join(
        f'vllm:engine_sleep_state{{engine="0",sleep_state="{state}"}} {1 - int(awake)}\n'
        for state in ("weights_offloaded", "discard_all")
    )
    assert parse_metrics((GOOD + states).encode()).awake is expected


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1e400", "1.5", "1e300"])
def test_a_count_that_cannot_be_one(value: str) -> None:
    with pytest.raises(UnreadableError, match="num_requests_waiting is"):
        parse_metrics(GOOD.replace("2.0", value).encode())


def test_a_sum_that_cannot_be_a_count() -> None:
    many = "".join(f'vllm:num_requests_waiting{{engine="{i}"}} 9007199254740992\n' for i in range(1, 130))
    with pytest.raises(UnreadableError, match="the sum of waiting is"):
        parse_metrics((GOOD + many).encode())


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-0.1", "1.01", "85"])
def test_a_ratio_that_cannot_be_one(value: str) -> None:
    with pytest.raises(UnreadableError, match="kv_cache_usage_perc is"):
        parse_metrics(GOOD.replace("0.5", value).encode())


@pytest.mark.parametrize("missing", range(4))
def test_absent_is_not_zero(missing: int) -> None:
    lines = GOOD.splitlines()
    name = lines.pop(missing).partition("{")[0]
    with pytest.raises(UnreadableError, match=f"no {name}"):
        parse_metrics("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no vllm:kv_cache_usage_perc"),
        (b"<html>It works!</html>", "no vllm:kv_cache_usage_perc"),
        (GOOD.encode() * 2, "twice with the same labels"),
        (GOOD.replace("2.0", "two").encode(), "not in the Prometheus text format"),
        (GOOD.replace('"0"', '"0').encode(), "not in the Prometheus text format"),
        (GOOD.encode().replace(b'"m"', b'"\xff"'), "not in the Prometheus text format"),
        (b'vllm:num_requests_waiting{x="' + b"a" * 10_000_000 + b'"} 1\n', "far larger"),
        (b"vllm:num_requests_waiting 1\n" * 5000, "far larger"),
    ],
)
def test_garbage(body: bytes, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        parse_metrics(body)
