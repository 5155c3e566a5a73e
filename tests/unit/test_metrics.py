"""Reading /metrics: the recordings of real vLLM, and answers that must be refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from vllm_lb.causes import ScrapeCause
from vllm_lb.observation import Reading
from vllm_lb.vllm_metrics import UnreadableError, parse_metrics

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOOD = """\
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
"""
LABELS = '{engine="0",model_name="m"}'


def read(body: bytes | str) -> Reading:
    """Return the reading of a page of which everything can be used."""
    found, left_out = parse_metrics(body.encode() if isinstance(body, str) else body)
    assert left_out is None
    return found


def recorded(*numbers: float, engines: int = 1) -> Reading:
    """Return a reading from numbers in the order of the recordings' table."""
    kv, waiting, running, preemptions, prompt, generated, finished, gaps, seconds = numbers
    return Reading(
        kv,
        int(waiting),
        int(running),
        int(preemptions),
        engines,
        awake=True,
        prompt_tokens=int(prompt),
        generation_tokens=int(generated),
        finished=int(finished),
        token_gaps=int(gaps),
        token_gap_seconds=seconds,
    )


IDLE = (0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.32.0-idle", recorded(*IDLE)),
        ("0.32.0-busy", recorded(0.019533634476864847, 24, 16, 0, 64, 18927, 0, 18910, 62.85826646899932)),
        ("0.32.0-preempting", recorded(0.9387755102040817, 26, 7, 18, 48, 19846, 7, 19830, 108.50838747399916)),
        ("0.32.0-dp2", recorded(1.0, 26, 14, 0, 96, 20555, 0, 20524, 145.96379485500074, engines=2)),
        # Two API servers, before the first request and later
        ("0.32.0-api2-idle", recorded(*IDLE)),
        ("0.32.0-api2-busy", recorded(0.02099865706262971, 7, 16, 0, 138, 22645, 2, 22627, 48.14651565699569)),
        ("0.33.0-idle", recorded(0, 0, 0, 0, 17, 8, 1, 7, 0.02142415899993466)),
        ("0.33.0-busy", recorded(0.009766817238432424, 8, 16, 0, 983, 130596, 52, 130512, 616.352988851002)),
        # Two engines and an API server for each
        ("0.33.0-dp2-idle", recorded(*IDLE, engines=2)),
        (
            "0.33.0-dp2-busy",
            recorded(0.0009766817238432424, 0, 4, 0, 320, 44173, 36, 44133, 172.79767204700238, engines=2),
        ),
    ],
)
def test_recordings(name: str, expected: Reading) -> None:
    found = read((FIXTURES / f"vllm-{name}.txt").read_bytes())
    assert dataclasses.replace(found, kv_cache_tokens=None) == expected


def test_plain() -> None:
    assert read(GOOD) == Reading(0.5, 2, 3, 4, 1, awake=True)


GAUGES = ("vllm:kv_cache_usage_perc", "vllm:num_requests_waiting", "vllm:num_requests_running")


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_"])
@pytest.mark.parametrize("gauge", GAUGES)
def test_a_gauge_that_is_declared_and_has_no_samples_is_zero_beside_counters(gauge: str, prefix: str) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith(gauge)]
    text = "\n".join([f"# HELP {gauge} Text.", f"# TYPE {gauge} gauge", *lines, ""]).replace("vllm:", prefix)
    values = [0.0 if each == gauge else value for each, value in zip(GAUGES, (0.5, 2, 3), strict=True)]
    assert read(text) == Reading(values[0], int(values[1]), int(values[2]), 4, 1, awake=True)


def test_a_declared_gauge_without_counters_is_not_zero() -> None:
    declared = "".join(f"# TYPE {gauge} gauge\n" for gauge in (*GAUGES, "vllm:num_preemptions"))
    with pytest.raises(UnreadableError, match="no vllm:kv_cache_usage_perc"):
        parse_metrics(declared.encode())


def test_samples_of_several_api_servers_are_those_of_one_engine() -> None:
    by_gauge = dict(zip(GAUGES, ((0.2, 0.4), (5, 2), (7, 9)), strict=True))
    gauges = "".join(
        f'{gauge}{{engine="{engine}",pid="{pid}"}} {value}\n'
        for gauge, values in by_gauge.items()
        for engine in (0, 1)
        for pid, value in enumerate(values)
    )
    counters = 'vllm:num_preemptions_total{engine="0"} 1\nvllm:num_preemptions_total{engine="1"} 2\n'
    assert read(gauges + counters) == Reading(0.4, 10, 18, 3, 2, awake=True)


@pytest.mark.parametrize(
    "exemplar", ["", ' # {trace_id="abc"} 1.0', ' # {trace_id="a",span="b"} 1.0 1795857172.1', " # {} 1"]
)
def test_openmetrics(exemplar: str) -> None:
    types = "# TYPE vllm:num_preemptions counter\n# TYPE vllm:num_requests_waiting gauge\n"
    assert read(types + GOOD.replace("4.0", f"4.0{exemplar}") + "# EOF\n") == Reading(0.5, 2, 3, 4, 1, awake=True)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["inter_token_latency_seconds"], (90, 4.5)),
        (["time_per_output_token_seconds"], (90, 4.5)),  # its former name
        (["inter_token_latency_seconds", "time_per_output_token_seconds"], (90, 4.5)),  # some versions have both
        (["request_time_per_output_token_seconds"], (None, None)),  # means of whole requests
    ],
)
def test_times_between_tokens(names: list[str], expected: tuple[int | None, float | None]) -> None:
    times = "".join(
        f'vllm:{name}_bucket{LABELS[:-1]},le="+Inf"}} 90\nvllm:{name}_count{LABELS} 90\nvllm:{name}_sum{LABELS} 4.5\n'
        for name in names
    )
    found = read(GOOD + times)
    assert (found.token_gaps, found.token_gap_seconds) == expected


PROCESS = "# TYPE python_info gauge\npython_info 1\nprocess_open_fds 25\nhttp_requests_total 5\n"


def test_a_page_without_statistics() -> None:
    found, left_out = parse_metrics(PROCESS.encode())
    assert not found.has_statistics
    assert found == Reading(None, None, None, None, 1, awake=True)
    assert left_out == (ScrapeCause.NO_STATISTICS, "no metrics of vllm (it runs with --disable-log-stats)")


@pytest.mark.parametrize("more", ["vllm:prompt_tokens_total 5\n", "# TYPE vllm:num_requests_running gauge\n"])
def test_a_page_that_has_any_metric_of_vllm_has_statistics(more: str) -> None:
    with pytest.raises(UnreadableError, match="no vllm:kv_cache_usage_perc"):
        parse_metrics((PROCESS + more).encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [("vllm:kv_cache", "vllm:gpu_cache"), ("vllm:", "vllm_"), ('{engine="0",model_name="m"}', ""), ("\n", "\r\n")],
)
def test_other_spellings(old: str, new: str) -> None:
    assert read(GOOD.replace(old, new)) == Reading(0.5, 2, 3, 4, 1, awake=True)


def test_similar_names_are_not_taken_for_the_wanted_ones() -> None:
    traps = (
        'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99\n'
        'vllm:num_preemptions_created{engine="0"} 1.7e9\n'
        'xvllm:num_requests_waiting{engine="0"} 99\n'
    )
    assert read(traps + GOOD + traps).waiting == 2


def test_several_engines_and_models() -> None:
    second = GOOD.replace('engine="0"', 'engine="1"').replace("} 0.5", "} 0.75")
    other = GOOD.replace('"m"', '"n"')
    assert read(GOOD + second + other) == Reading(0.75, 6, 9, 12, 2, awake=True)


@pytest.mark.parametrize(("awake", "expected"), [("0", False), ("1", True)])
def test_sleep(awake: str, expected: bool) -> None:  # noqa: FBT001 - a table's column
    states = f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}\n' + "".join(
        f'vllm:engine_sleep_state{{engine="0",sleep_state="{state}"}} {1 - int(awake)}\n'
        for state in ("weights_offloaded", "discard_all")
    )
    assert read(GOOD + states).awake is expected


WHOLE = Reading(0.5, 2, 3, 4, 1, awake=True)


def changed(found: Reading, field: str) -> Reading:
    """Return a reading without a field."""
    without: Any = {field: None}
    return dataclasses.replace(found, **without)


IMPOSSIBLE_COUNTS = ("NaN", "+Inf", "-Inf", "-1", "1e400", "1.5", "1e300")


@pytest.mark.parametrize(
    ("metric", "old", "field", "value"),
    [
        *(("kv_cache_usage_perc", "0.5", "kv_cache_usage", value) for value in ("NaN", "+Inf", "-0.1", "1.01", "85")),
        *(("num_requests_waiting", "2.0", "waiting", value) for value in IMPOSSIBLE_COUNTS),
        *(("num_requests_running", "3.0", "running", value) for value in IMPOSSIBLE_COUNTS),
        *(("num_preemptions_total", "4.0", "preemptions", value) for value in IMPOSSIBLE_COUNTS),
    ],
)
def test_an_impossible_value_costs_its_metric_alone(metric: str, old: str, field: str, value: str) -> None:
    found, left_out = parse_metrics(GOOD.replace(old, value).encode())
    assert found == changed(WHOLE, field)
    assert left_out == (ScrapeCause.METRIC_IMPLAUSIBLE, f"left out: vllm:{metric} is {float(value):g}")


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("prompt_tokens_total", "prompt_tokens"),
        ("generation_tokens_total", "generation_tokens"),
        ("request_success_total", "finished"),
        ("inter_token_latency_seconds_count", "token_gaps"),
        ("inter_token_latency_seconds_sum", "token_gap_seconds"),
    ],
)
def test_an_impossible_value_of_a_metric_that_is_not_needed(metric: str, field: str) -> None:
    found, left_out = parse_metrics(f"{GOOD}vllm:{metric}{LABELS} -1\n".encode())
    assert (found, getattr(found, field)) == (WHOLE, None)
    assert left_out == (ScrapeCause.METRIC_IMPLAUSIBLE, f"left out: vllm:{metric} is -1")


def test_the_good_values_of_other_engines_do_not_hide_an_impossible_one() -> None:
    engines = ('{engine="0",pid="1"}', '{engine="0",pid="2"}', '{engine="1"}')
    for values in itertools.permutations(("NaN", "1", "2")):
        more = "".join(f"vllm:num_requests_running{at} {each}\n" for at, each in zip(engines, values, strict=True))
        found, _ = parse_metrics(
            ("\n".join(GOOD.splitlines()[:2]) + "\n" + GOOD.splitlines()[3] + "\n" + more).encode()
        )
        assert found.running is None


def test_a_sum_that_cannot_be_a_count() -> None:
    many = "".join(f'vllm:num_requests_waiting{{engine="{i}"}} 9007199254740992\n' for i in range(1, 130))
    found, left_out = parse_metrics((GOOD + many).encode())
    assert found.waiting is None
    assert left_out == (ScrapeCause.METRIC_IMPLAUSIBLE, "left out: the sum of waiting is 1.16193e+18")


def test_a_page_without_any_possible_value_is_no_reading() -> None:
    with pytest.raises(UnreadableError, match="kv_cache_usage_perc is nan"):
        parse_metrics("".join(f"{line.rpartition(' ')[0]} NaN\n" for line in GOOD.splitlines()).encode())


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


def cache_config(**labels: str) -> str:
    """Return a sample of vllm:cache_config_info with these labels."""
    pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"vllm:cache_config_info{{{pairs}}} 1.0\n"


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("0.32.0-busy", 1048576),
        ("0.32.0-preempting", 6400),
        ("0.32.0-dp2", 12800),  # two engines
        ("0.32.0-api2-busy", 1048576),  # two API servers of one engine
        ("0.33.0-busy", 1048576),
        ("0.33.0-dp2-busy", 2097152),
    ],
)
def test_the_size_of_the_kv_cache_of_real_nodes(name: str, tokens: int) -> None:
    assert read((FIXTURES / f"vllm-{name}.txt").read_bytes()).kv_cache_tokens == tokens


@pytest.mark.parametrize("name", ["0.32.0-busy", "0.32.0-preempting", "0.33.0-dp2-busy"])
def test_blocks_tell_the_same_size_where_vllm_does_not_name_tokens(name: str) -> None:
    body = (FIXTURES / f"vllm-{name}.txt").read_bytes()
    former = body.replace(b'kv_cache_size_tokens="', b'other="')
    assert former != body
    assert read(former).kv_cache_tokens == read(body).kv_cache_tokens


@pytest.mark.parametrize(
    ("lines", "tokens"),
    [
        ("", None),
        (cache_config(kv_cache_size_tokens="6400"), 6400),
        (cache_config(kv_cache_size_tokens="6400").replace("vllm:", "vllm_"), 6400),
        (cache_config(kv_cache_size_tokens="6400") * 2, 6400),
        (cache_config(engine="0", kv_cache_size_tokens="64") + cache_config(engine="1", kv_cache_size_tokens="6"), 70),
        (cache_config(num_gpu_blocks="50", block_size="128"), 6400),
        (cache_config(kv_cache_size_tokens="None", num_gpu_blocks="50", block_size="16"), 800),
        (cache_config(num_gpu_blocks="None", block_size="128"), None),
        (cache_config(num_gpu_blocks="50"), None),
        (cache_config(other='a,num_gpu_blocks=\\"7\\"', num_gpu_blocks="50", block_size="2"), 100),
        (cache_config(engine="0", num_gpu_blocks="9", block_size="2") + cache_config(engine="1"), None),
        *((cache_config(kv_cache_size_tokens=value), None) for value in ("0", "-1", "1e9", "1.5", "9" * 17, "NaN", "")),
        (cache_config(x="a" * 20000, kv_cache_size_tokens="6400"), None),
        ('vllm:cache_config_info{kv_cache_size_tokens="64\n', None),
        ("vllm:cache_config_info 1\n", None),
    ],
)
def test_the_size_of_the_kv_cache_is_known_or_not_and_never_zero(lines: str, tokens: int | None) -> None:
    assert read(lines + GOOD) == dataclasses.replace(WHOLE, kv_cache_tokens=tokens)
