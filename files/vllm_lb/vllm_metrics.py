# SPDX-License-Identifier: Apache-2.0
"""vLLM's metrics: the text of /metrics becomes a reading, or is refused. Pure."""

from __future__ import annotations

import re
from dataclasses import field

from vllm_lb.causes import ScrapeCause
from vllm_lb.data import data
from vllm_lb.kv_cache import tokens_of
from vllm_lb.observation import Reading
from vllm_lb.settings import MAX_ENGINES
from vllm_lb.text import printable

# vLLM's metric names without their prefix, which is "vllm:", or "vllm_" behind some scrapers. Names match exactly:
# num_requests_waiting_by_reason and num_preemptions_created are other metrics. kv_cache_usage_perc was
# gpu_cache_usage_perc before vLLM 0.9, and inter_token_latency_seconds was time_per_output_token_seconds; some versions
# have both names.
METRICS = {
    "kv_cache_usage_perc": "kv",
    "gpu_cache_usage_perc": "kv",
    "num_requests_waiting": "waiting",
    "num_requests_running": "running",
    "num_preemptions_total": "preemptions",
    "engine_sleep_state": "sleep",
    "prompt_tokens_total": "prompt_tokens",
    "generation_tokens_total": "generation_tokens",
    "request_success_total": "finished",
    "inter_token_latency_seconds_count": "token_gaps",
    "inter_token_latency_seconds_sum": "token_gap_seconds",
    "time_per_output_token_seconds_count": "former_token_gaps",
    "time_per_output_token_seconds_sum": "former_token_gap_seconds",
}
NEEDED = ("kv", "waiting", "running", "preemptions")
# The parser takes 10 ms for a whole scrape of 50 KB, this filter 0.03. With a newline in place of ^, re searches for a
# fixed text, which takes a fifth of the time.
WANTED_LINE = re.compile(rb"\n(vllm[:_](?:cache_config_info|%s)[ \t{].*)" % "|".join(METRICS).encode())
CACHE_CONFIG = (b"vllm:cache_config_info", b"vllm_cache_config_info")
DECLARED = re.compile(rb"^# TYPE vllm[:_](\w{1,64}) gauge\s*$", re.MULTILINE)
# OpenMetrics lets an example follow a value.
EXEMPLAR = re.compile(rb"(?<=\d) # \{[^{}]*\} \S+(?: \S+)?\s*$")
# With --disable-log-stats, the page of vLLM has only metrics of its process and of its HTTP server.
VLLM_LINE = re.compile(rb"^(?:# (?:HELP|TYPE) )?vllm[:_]", re.MULTILINE)
PYTHON_LINE = re.compile(rb"^(?:python_info|http_requests_total)[ {]", re.MULTILINE)
MAX_LINE_BYTES = 4096
MAX_COUNT = 2**53  # up to here a float holds every whole number
MAX_MESSAGE = 200  # characters


class UnreadableError(Exception):
    """A node answered, but its answer cannot be used. The text says why to people, `cause` to programs."""

    def __init__(self, cause: ScrapeCause, message: str) -> None:
        """Keep the cause and the message."""
        super().__init__(message)
        self.cause = cause


@data()
class Found:
    """What a page of metrics has of METRICS.

    Attributes:
        values: of each kind, by metric name and labels without `pid`.
        problems: of each kind with an impossible value, which one it is.
        engines: the names of the engines.
        kv_cache_tokens: see Reading.
    """

    values: dict[str, dict[tuple[str, ...], float]] = field(
        default_factory=lambda: {kind: {} for kind in METRICS.values()}
    )
    problems: dict[str, str] = field(default_factory=dict)
    engines: set[str] = field(default_factory=set)
    kv_cache_tokens: int | None = None

    def sum_of(self, kind: str) -> float | None:
        """Return the sum of a kind, or None if it has no values or an impossible one."""
        return sum(self.values[kind].values()) if self.values[kind] and kind not in self.problems else None

    def count_of(self, kind: str) -> int | None:
        """Return the sum of a kind that counts."""
        total = self.sum_of(kind)
        return None if total is None else int(total)


def parse_metrics(body: bytes) -> tuple[Reading, tuple[ScrapeCause, str] | None]:
    """Read one node's load out of its /metrics.

    Return the reading, and what it lacks: a metric with an impossible value is left out, and nothing else.

    Raises:
        UnreadableError: there is no reading.
    """
    found = samples_of(body)
    if not any(found.values.values()) and PYTHON_LINE.search(body) and not VLLM_LINE.search(body):
        why = "no metrics of vllm (it runs with --disable-log-stats)"
        return Reading(None, None, None, None, engines=1, awake=True), (ScrapeCause.NO_STATISTICS, why)
    fill_in_zeros(found, body)
    for kind in found.values.keys() - {"kv"}:
        total = found.sum_of(kind)
        if total is not None and not is_plausible(kind, total):
            found.problems[kind] = f"the sum of {kind} is {total:g}"
    if found.problems.keys() >= set(NEEDED):
        raise UnreadableError(ScrapeCause.METRIC_IMPLAUSIBLE, found.problems["kv"])
    former = "" if found.values["token_gaps"] else "former_"
    awake = found.sum_of("sleep")
    reading = Reading(
        kv_cache_usage=None if "kv" in found.problems else max(found.values["kv"].values()),
        waiting=found.count_of("waiting"),
        running=found.count_of("running"),
        preemptions=found.count_of("preemptions"),
        engines=len(found.engines),
        awake=awake is None or awake > 0,
        prompt_tokens=found.count_of("prompt_tokens"),
        generation_tokens=found.count_of("generation_tokens"),
        finished=found.count_of("finished"),
        token_gaps=found.count_of(f"{former}token_gaps"),
        token_gap_seconds=found.sum_of(f"{former}token_gap_seconds"),
        kv_cache_tokens=found.kv_cache_tokens,
    )
    if not found.problems:
        return reading, None
    left_out = f"left out: {', '.join(sorted(found.problems.values()))}"
    return reading, (ScrapeCause.METRIC_IMPLAUSIBLE, printable(left_out, MAX_MESSAGE))


def wanted_lines(body: bytes) -> list[bytes]:
    """Return the lines of a page that have a sample of METRICS or the size of a KV cache."""
    return WANTED_LINE.findall(b"\n" + body)


def samples_of(body: bytes) -> Found:
    """Return what a page has of METRICS."""
    from prometheus_client.parser import text_string_to_metric_families

    wanted = wanted_lines(body)
    lines = [line for line in wanted if not line.startswith(CACHE_CONFIG)]
    if len(lines) > MAX_ENGINES or any(len(line) > MAX_LINE_BYTES for line in lines):
        raise UnreadableError(ScrapeCause.TOO_LARGE, "metrics far larger than vLLM's")
    if b"\n# EOF" in body:
        lines = [EXEMPLAR.sub(b"", line) for line in lines]
    found = Found(kv_cache_tokens=tokens_of(line for line in wanted if line.startswith(CACHE_CONFIG)))
    seen = set[tuple[str, ...]]()
    try:
        for family in text_string_to_metric_families(b"\n".join(lines).decode() + "\n"):
            for sample in family.samples:
                name, labels = sample.name, [f"{k}={v}" for k, v in sorted(sample.labels.items())]
                if (name, *labels) in seen:
                    raise UnreadableError(ScrapeCause.NOT_METRICS, f"{name} comes twice with the same labels")
                seen.add((name, *labels))
                found.engines.add(sample.labels.get("engine", ""))
                kind = METRICS[name[len("vllm:") :]]
                if kind == "sleep" and sample.labels.get("sleep_state") != "awake":
                    continue
                if not is_plausible(kind, sample.value):
                    found.problems.setdefault(kind, f"{name} is {sample.value:g}")
                # With several API servers a gauge may have a sample of each. Each tells of the whole engine, as that
                # server saw it last: their sum would count the engine's requests several times.
                key = (name, *(label for label in labels if not label.startswith("pid=")))
                found.values[kind][key] = max(found.values[kind].get(key, 0.0), sample.value)
    except UnreadableError:
        raise
    except Exception as error:  # the parser does not say what it may raise
        raise UnreadableError(ScrapeCause.NOT_METRICS, "not in the Prometheus text format") from error
    return found


def fill_in_zeros(found: Found, body: bytes) -> None:
    """Fill in the gauges that a node declares and has no samples of; refuse metrics without one that is needed.

    A vLLM with several API servers leaves out the samples of gauges until its first request, because Prometheus'
    multiprocess mode does so. It declares them, and it has its counters: then they are 0.
    """
    missing = [kind for kind in NEEDED if not found.values[kind]]
    declared = {METRICS.get(name.decode()) for name in DECLARED.findall(body)} if missing else set()
    for kind in missing:
        name = next(name for name, k in METRICS.items() if k == kind)
        if "preemptions" in missing or kind not in declared:
            raise UnreadableError(ScrapeCause.METRIC_MISSING, f"no vllm:{name}")
        found.values[kind] = {(name,): 0.0}


def is_plausible(kind: str, value: float) -> bool:
    """Tell whether vLLM could have meant a value: finite, not negative, a ratio up to 1, else a count or seconds."""
    if kind == "kv":
        return 0 <= value <= 1
    return 0 <= value <= MAX_COUNT and (kind.endswith("seconds") or value == int(value))
