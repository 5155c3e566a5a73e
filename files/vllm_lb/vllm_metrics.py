# SPDX-License-Identifier: Apache-2.0
"""vLLM's metrics: the text of /metrics becomes a reading, or is refused. Pure."""

from __future__ import annotations

import re

from vllm_lb.causes import ScrapeCause
from vllm_lb.observation import Reading
from vllm_lb.settings import MAX_ENGINES

# vLLM's metric names without their prefix, which is "vllm:", or "vllm_" behind some scrapers. Names match exactly:
# num_requests_waiting_by_reason and num_preemptions_created are other metrics. kv_cache_usage_perc was
# gpu_cache_usage_perc before vLLM 0.9.
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
}
NEEDED = ("kv", "waiting", "running", "preemptions")
# The parser takes 10 ms for a whole scrape of 50 KB, this filter a fraction of one.
WANTED_LINE = re.compile(rb"^vllm[:_](?:%s)[ \t{].*$" % "|".join(METRICS).encode(), re.MULTILINE)
MAX_LINE_BYTES = 4096
MAX_COUNT = 2**53  # up to here a float holds every whole number


class UnreadableError(Exception):
    """A node answered, but its answer cannot be used. The text says why to people, `cause` to programs."""

    def __init__(self, cause: ScrapeCause, message: str) -> None:
        """Keep the cause and the message."""
        super().__init__(message)
        self.cause = cause


def parse_metrics(body: bytes) -> Reading:
    """Read one node's load out of its /metrics; raise UnreadableError for anything dubious."""
    found, engines = samples_of(body)
    for kind in NEEDED:
        if not found[kind]:
            name = next(name for name, k in METRICS.items() if k == kind)
            raise UnreadableError(ScrapeCause.METRIC_MISSING, f"no vllm:{name}")
    sums = {
        kind: plausible(f"the sum of {kind}", kind, sum(values.values()))
        for kind, values in found.items()
        if kind != "kv"
    }
    return Reading(
        kv_cache_usage=max(found["kv"].values()),
        waiting=int(sums["waiting"]),
        running=int(sums["running"]),
        preemptions=int(sums["preemptions"]),
        engines=len(engines),
        awake=not found["sleep"] or any(found["sleep"].values()),
        prompt_tokens=int(sums["prompt_tokens"]) if found["prompt_tokens"] else None,
        generation_tokens=int(sums["generation_tokens"]) if found["generation_tokens"] else None,
        finished=int(sums["finished"]) if found["finished"] else None,
    )


def samples_of(body: bytes) -> tuple[dict[str, dict[tuple[str, ...], float]], set[str]]:
    """Return the values of each kind of METRICS by name and labels, and the names of the engines."""
    from prometheus_client.parser import text_string_to_metric_families

    lines = WANTED_LINE.findall(body)
    if len(lines) > MAX_ENGINES or any(len(line) > MAX_LINE_BYTES for line in lines):
        raise UnreadableError(ScrapeCause.TOO_LARGE, "metrics far larger than vLLM's")
    found: dict[str, dict[tuple[str, ...], float]] = {kind: {} for kind in METRICS.values()}
    engines = set()
    try:
        for family in text_string_to_metric_families(b"\n".join(lines).decode() + "\n"):
            for sample in family.samples:
                kind = METRICS[sample.name[len("vllm:") :]]
                key = (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items())))
                if key in found[kind]:
                    raise UnreadableError(ScrapeCause.NOT_METRICS, f"{sample.name} comes twice with the same labels")
                found[kind][key] = plausible(sample.name, kind, sample.value)
                if kind == "sleep" and sample.labels.get("sleep_state") != "awake":
                    del found[kind][key]
                engines.add(sample.labels.get("engine", ""))
    except UnreadableError:
        raise
    except Exception as error:  # the parser does not say what it may raise
        raise UnreadableError(ScrapeCause.NOT_METRICS, "not in the Prometheus text format") from error
    return found, engines


def plausible(name: str, kind: str, value: float) -> float:
    """Return the value if vLLM could have meant it: finite, not negative, a ratio up to 1, else a count."""
    if kind == "kv" and 0 <= value <= 1:
        return value
    if kind != "kv" and 0 <= value <= MAX_COUNT and value == int(value):
        return value
    raise UnreadableError(ScrapeCause.METRIC_IMPLAUSIBLE, f"{name} is {value:g}")
