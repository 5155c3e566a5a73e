#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Keep the weights of an nginx upstream in step with the load of its vLLM nodes.

One run is one tick, and data flows one way:

    collect   scrape every node's /metrics              (network, no privileges)
    decide    samples + memory + config -> plan         (pure: no I/O, no clock)
    apply     plan -> upstream file, nginx -t, reload,  (root, trusts nothing it reads)
              proof that the new file is live, or rollback

`run` does all of it; under systemd `collect` runs as an unprivileged user and hands its plan to
`apply` through a file. Exit codes: 0 done or nothing to do, 1 failed with the live configuration
intact or restored, 2 usage or configuration error, 75 another run holds the lock.

What people look at besides (`status` on a terminal, `explain`, `replay`) is in vllm_nginx_lb_view.py,
which lies in the same directory; a tick does not need it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import http.client
import ipaddress
import itertools
import json
import math
import os
import queue
import re
import resource
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import MISSING, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from types import ModuleType

    import requests
    from prometheus_client.core import Metric

# requests, prometheus_client and jinja2 are imported where they are used: each half of a tick loads
# only what it needs, and `apply`, which runs as root, loads neither the HTTP client nor the parser.

__version__ = "0.1.0"

EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED = 1, 2, 75
NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
MODEL = re.compile(r"[^\x00-\x1f\x7f\"\\]{1,256}")  # as they stand in JSON and in nginx
HOSTNAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")
SEED = "seed"  # the generation of the file that the role of the ingress makes, which serves nobody
PRINTABLE = re.compile(r"[ -~]{0,300}")
MAX_WEIGHT = 100


class FailureError(Exception):
    """A foreseeable fault. Its text is the one line the operator reads."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        """Keep the line and the exit code it ends with."""
        super().__init__(message)
        self.code = code


# --- Settings: dataclasses that say what they allow ------------------------------------------


def setting(allowed: str, check: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """Declare a dataclass field with its check and the words that describe what it allows."""
    return field(default=default, metadata={"allowed": allowed, "check": check})


def number(low: float, high: float, default: Any = MISSING) -> Any:
    """Declare a number within [low, high]."""
    return setting(f"a number from {low:g} to {high:g}", lambda v: low <= v <= high, default)


def choice(*options: str, default: Any = MISSING) -> Any:
    """Declare one of several words."""
    return setting("one of " + ", ".join(options), lambda v: v in options, default)


def text(pattern: re.Pattern[str], allowed: str, default: Any = MISSING) -> Any:
    """Declare a text that a pattern matches from end to end."""
    return setting(allowed, lambda v: bool(pattern.fullmatch(v)), default)


def path_setting(default: Any = MISSING) -> Any:
    """Declare an absolute path."""
    return setting("an absolute path", lambda v: v.startswith("/") and v.isprintable(), default)


def at_least_one(what: str, default: Any = MISSING) -> Any:
    """Declare a list that is not empty."""
    return setting(f"a list of at least one {what}", bool, default)


def is_ip(value: str) -> bool:
    """Tell whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return "%" not in value  # a zone such as fe80::1%eth0 is not portable into nginx


def canonical(host: str) -> str:
    """Return the one spelling of an IP address or host name."""
    return str(ipaddress.ip_address(host)) if is_ip(host) else host.lower()


def bracketed(host: str) -> str:
    """Return a host as URLs and nginx write it before a port."""
    return f"[{host}]" if ":" in host else host


def is_host(value: str) -> bool:
    """Tell whether a text is an IP address or a host name."""
    return is_ip(value) or bool(HOSTNAME.fullmatch(value) and not re.fullmatch(r"[0-9.]+", value))


URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """How /metrics is read. timeout_seconds bounds one whole response, not one packet."""

    path: str = text(re.compile(r"/[!-~]*"), "a path that starts with /", "/metrics")
    timeout_seconds: float = number(0.1, 60, 5.0)
    max_bytes: int = number(1024, 2**28, 4 * 2**20)
    workers: int = number(1, 1024, 32)
    api_key_file: str | None = path_setting(None)
    ca_file: str | None = path_setting(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxSettings:
    """Where the upstream goes, and how nginx is tested, reloaded and asked what is live.

    The balancer "upstream" is nginx's own, which reads its upstream in a reload; "work" is our Lua, which notices a new
    file by itself: nothing is tested and reloaded then. The last three ration reloads that only move weights: each
    leaves workers behind that finish their streams.
    """

    balancer: str = choice("upstream", "work", default="upstream")
    upstream_file: str = text(
        re.compile(r"/([^/\0\n]+/)*[^/\0\n]+"), "an absolute path of a file", "/etc/nginx/vllm-nginx-lb/upstream.conf"
    )
    upstream_template: str | None = path_setting(None)
    test_command: tuple[str, ...] = at_least_one("word", ("nginx", "-t"))
    reload_command: tuple[str, ...] = at_least_one("word", ("nginx", "-s", "reload"))
    pid_file: str | None = path_setting(None)
    confirm_url: str | None = text(URL, "an http(s) URL, or null", None)
    confirm_timeout_seconds: float = number(0.1, 60, 5.0)
    min_reload_interval_seconds: float = number(0, 86400, 30.0)
    min_weight_change_ratio: float = number(0, 1, 0.1)
    max_draining_generations: int = number(1, 1000, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """When a node goes down (fall), comes back (rise), and when what it says is too old."""

    fall: int = number(1, 1000, 3)
    rise: int = number(1, 1000, 2)
    stale_after_seconds: float = number(1, 86400, 180.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One vLLM server. max_conns is how many requests nginx has there at once at most; 0 means any number."""

    name: str = text(NAME, "1 to 63 of A-Z a-z 0-9 . _ -")
    host: str = setting("an IP address or a host name", is_host)
    port: int = number(1, 65535, 18090)
    scheme: str = choice("http", "https", default="http")
    capacity: float = number(0.01, 100, 1.0)
    max_conns: int = number(0, 65535, 0)
    drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One upstream block: its nodes, its balancing method and the policy that weighs them.

    The method "consistent_hash" keeps requests with one value of hash_header together.
    """

    name: str = text(POOL_NAME, "a letter, then up to 62 of A-Z a-z 0-9 _")
    method: str = choice("least_conn", "round_robin", "random_two_least_conn", "consistent_hash", default="least_conn")
    hash_header: str = text(re.compile(r"[A-Za-z0-9-]{1,63}"), "a header's name, of A-Z a-z 0-9 -", "X-Session-Id")
    keepalive: int = number(0, 65535, 64)
    keepalive_timeout_seconds: int = number(1, 3600, 2)
    max_fails: int = number(0, 10**6, 10)
    fail_timeout_seconds: int = number(1, 86400, 60)
    policy: str = setting(
        "one of capacity, stepped, static",
        lambda v: v in POLICIES,
        "capacity",
    )
    models: tuple[str, ...] = setting(
        "names of models: 1 to 256 printable characters without quotes and backslashes",
        lambda v: all(MODEL.fullmatch(name) for name in v),
        (),
    )
    nodes: tuple[Node, ...] = at_least_one("node")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvStep:
    """One rung of the ladder: from this KV-cache usage (ratio) on, this weight."""

    at_least: float = number(0, 1)
    weight: int = number(1, MAX_WEIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """The ladder: KV usage picks a level, each further sign of load moves it one level down."""

    levels: tuple[int, ...] = setting(
        f"weights from {MAX_WEIGHT} to 1, falling",
        lambda v: len(v) > 0 and all(0 < w <= MAX_WEIGHT for w in v) and all(a > b for a, b in itertools.pairwise(v)),
        (100, 60, 30, 10),
    )
    kv_cache: tuple[KvStep, ...] = (
        KvStep(at_least=0.92, weight=10),
        KvStep(at_least=0.85, weight=30),
        KvStep(at_least=0.75, weight=60),
    )
    max_waiting: int = number(0, 10**6, 0)
    max_running: int = number(0, 10**6, 8)
    downgrade_on_preemption: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The policy that learns what each node can do; see weigh_capacity.

    A weight moves at once when the last readings ask for sudden_change_ratio or more, and down to min_change_ratio
    the longer they ask for it.
    """

    lowest_weight: int = number(1, MAX_WEIGHT, 10)
    speed_exponent: float = number(0, 4, 1.5)
    max_kv_cache_usage: float = number(0.01, 1, 0.7)
    sudden_change_ratio: float = number(0.01, 10, 0.5)
    min_change_ratio: float = number(0.01, 10, 0.15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The settings of each policy that has any."""

    stepped: Stepped = Stepped()
    capacity: Capacity = Capacity()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the operator decides."""

    state_directory: str = path_setting("/var/lib/vllm-nginx-lb")
    interval_seconds: float = number(1, 86400, 10.0)  # how often a tick comes: what is three of them old is too old
    history_max_bytes: int = number(0, 2**40, 20 * 10**6)  # of recent ticks; 0 keeps none
    scrape: Scrape = Scrape()
    nginx: NginxSettings = NginxSettings()
    health: Health = Health()
    pools: tuple[Pool, ...] = at_least_one("pool")
    policies: Policies = Policies()


MAX_PROBLEMS = 100


def build(kind: Any, value: Any, where: str, problems: list[str], allowed: str = "") -> Any:
    """Turn plain data into `kind`, a settings class or a type one of its fields has.

    What does not fit adds a line `where: value: expected ...` to `problems`, and MISSING comes back.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build_record(kind, value, where, problems)
    if get_origin(kind) is UnionType:
        kinds = [each for each in get_args(kind) if each is not type(None)]
        return None if value is None else build(kinds[0], value, where, problems, allowed)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            problems.append(f"{where}: {shown(value)}: expected {allowed or 'a list'}")
            return MISSING
        items = []
        for i, each in enumerate(value):
            too_many = len(problems) >= MAX_PROBLEMS  # of a file that somebody made to have millions
            items.append(MISSING if too_many else build(get_args(kind)[0], each, f"{where}[{i}]", problems))
            if too_many:
                break
        return MISSING if MISSING in items else tuple(items)
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool) or not is_finite(value):
        problems.append(f"{where}: {shown(value)}: expected {allowed or words}")
        return MISSING
    return float(value) if kind is float else value


def build_record(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Turn a mapping into the settings class `kind`; see `build`."""
    if not isinstance(value, dict):
        problems.append(f"{where}: {shown(value)}: expected a mapping")
        return MISSING
    prefix = f"{where}." if where else ""
    fields = {each.name: each for each in dataclasses.fields(kind)}
    problems += [
        f"{prefix}{shown(key)}: unknown key: expected one of {', '.join(fields)}" for key in value if key not in fields
    ]
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, each in fields.items():
        allowed = each.metadata.get("allowed", "")
        if name not in value:
            if each.default is MISSING:
                problems.append(f"{prefix}{name}: missing: expected {allowed or 'a value'}")
                found[name] = MISSING
            continue
        found[name] = built = build(hints[name], value[name], prefix + name, problems, allowed)
        check = each.metadata.get("check")
        if built is not MISSING and built is not None and check and not check(built):
            problems.append(f"{prefix}{name}: {shown(value[name])}: expected {allowed}")
            found[name] = MISSING
    return MISSING if MISSING in found.values() else kind(**found)


def is_finite(value: Any) -> bool:
    """Tell whether a scalar is fit for arithmetic: YAML and JSON can carry NaN, and numbers of any length."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return not isinstance(value, float) or math.isfinite(value)


def shown(value: Any) -> str:
    """Quote a value for a message, printable and short."""
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."  # noqa: PLR2004 - one line


def cross_check(config: Config) -> Iterator[str]:
    """Yield a line for each problem that no single field shows."""
    yield from check_nginx(config.nginx)
    first_seen: dict[str, str] = {}
    for p, pool in enumerate(config.pools):
        items = [(f"pools[{p}].name", pool.name, "a pool")]
        items += [(f"pools[{p}].models[{m}]", model, "a model") for m, model in enumerate(pool.models)]
        for n, node in enumerate(pool.nodes):
            where = f"pools[{p}].nodes[{n}]"
            address = f"{canonical(node.host)}:{node.port}"
            items += [(f"{where}.name", node.name, "a node"), (f"{where}.host", address, "an address")]
        for where, value, kind in items:
            earlier = first_seen.setdefault(f"{kind} {value}", where)
            if earlier != where:
                yield f"{where}: {value!r}: already used by {earlier}: expected {kind} of its own"
        if all(node.drain for node in pool.nodes):
            yield f"pools[{p}].nodes: every node has drain: true: expected at least one that serves"
    if config.nginx.min_weight_change_ratio > (least := config.policies.capacity.min_change_ratio) and any(
        pool.policy == "capacity" for pool in config.pools
    ):
        yield (
            f"nginx.min_weight_change_ratio: {config.nginx.min_weight_change_ratio:g}: expected at most "
            f"policies.capacity.min_change_ratio, {least:g}: else what is decided would not be published"
        )
    stepped = config.policies.stepped
    for k, step in enumerate(stepped.kv_cache):
        if step.weight not in stepped.levels:
            yield f"policies.stepped.kv_cache[{k}].weight: {step.weight}: expected one of levels {list(stepped.levels)}"


def check_nginx(settings: NginxSettings) -> Iterator[str]:
    """Yield a line for each setting that does not go with the balancer."""
    if settings.balancer == "work" and settings.upstream_template:
        yield "nginx.upstream_template: expected null with balancer: work, which reads JSON"
    if settings.balancer == "work" and not settings.confirm_url:
        yield "nginx.confirm_url: expected a URL with balancer: work: nothing else says whether a file was taken"


def load_config(path: Path) -> Config:
    """Read and check the configuration; every problem is one line of a FailureError with exit code 2."""
    return check_config(read_yaml(path), path)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; FailureError with exit code 2 if that is not possible."""
    # The C loader reads 1,000 nodes in a tenth of the time; some builds of PyYAML lack it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 - both loaders are safe ones
    except OSError as error:
        raise FailureError(f"{path}: {error.strerror}: expected a readable configuration", EXIT_USAGE) from error
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise FailureError(f"{path}: not YAML: {' '.join(str(error).split())}", EXIT_USAGE) from error


def check_config(raw: Any, path: Path) -> Config:
    """Check what was read from a file; every problem is one line of a FailureError with exit code 2."""
    problems: list[str] = []
    config = build(Config, raw, "", problems)
    if config is not MISSING and not problems:
        problems = list(cross_check(config))
    if problems:
        raise FailureError("\n".join(f"{path}: {problem.removeprefix(': ')}" for problem in problems), EXIT_USAGE)
    assert isinstance(config, Config)  # tells the type checker what build() returned
    return config


# --- Parse: the text of /metrics -> one reading -------------------------------------------------

# vLLM's metric names without their prefix, which is "vllm:", or "vllm_" behind some scrapers.
# Names match exactly: num_requests_waiting_by_reason and num_preemptions_created are not wanted.
# kv_cache_usage_perc was gpu_cache_usage_perc before vLLM 0.9.
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
# The parser takes 10 ms for a whole scrape of 50 KB, this filter a fraction of one.
WANTED_LINE = re.compile(rb"^vllm[:_](?:%s)[ \t{].*$" % "|".join(METRICS).encode(), re.MULTILINE)
MAX_LINE_BYTES, MAX_LINES = 4096, 4096


class UnreadableError(Exception):
    """A node answered, but its answer cannot be used. The text says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One good scrape of one node, over all its engines."""

    kv_cache_usage: float  # ratio 0..1, the fullest engine
    waiting: int  # requests queued, summed
    running: int  # requests in a batch, summed
    preemptions: int  # since the node started, summed
    engines: int  # at least 1
    awake: bool
    prompt_tokens: int | None = None  # computed since the node started, summed; None in old versions
    generation_tokens: int | None = None  # the same for generated ones
    finished: int | None = None  # the same for requests that have ended

    @property
    def requests(self) -> int:
        """All that the node has: in a batch or queued."""
        return self.running + self.waiting

    @property
    def figures(self) -> str:
        """All that moves while an engine works, in one line."""
        counted = f"{self.preemptions} {self.prompt_tokens} {self.generation_tokens}"
        return f"{self.kv_cache_usage} {self.waiting} {self.running} {counted}"


def parse_metrics(body: bytes) -> Reading:
    """Read one node's load out of its /metrics; raise UnreadableError for anything dubious."""
    from prometheus_client.parser import text_string_to_metric_families

    lines = WANTED_LINE.findall(body)
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE_BYTES for line in lines):
        raise UnreadableError("metrics far larger than vLLM's")
    found: dict[str, dict[tuple[str, ...], float]] = {kind: {} for kind in METRICS.values()}
    engines = set()
    try:
        for family in text_string_to_metric_families(b"\n".join(lines).decode() + "\n"):
            for sample in family.samples:
                kind = METRICS[sample.name[len("vllm:") :]]
                key = (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items())))
                if key in found[kind]:
                    raise UnreadableError(f"{sample.name} comes twice with the same labels")
                found[kind][key] = plausible(sample.name, kind, sample.value)
                if kind == "sleep" and sample.labels.get("sleep_state") != "awake":
                    del found[kind][key]
                engines.add(sample.labels.get("engine", ""))
    except UnreadableError:
        raise
    except Exception as error:  # the parser does not say what it may raise
        raise UnreadableError("not in the Prometheus text format") from error
    for kind in ("kv", "waiting", "running", "preemptions"):
        if not found[kind]:
            raise UnreadableError(f"no vllm:{next(name for name, k in METRICS.items() if k == kind)}")
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


def plausible(name: str, kind: str, value: float) -> float:
    """Return the value if vLLM could have meant it: finite, not negative, a ratio up to 1, else a count."""
    if kind == "kv" and 0 <= value <= 1:
        return value
    if kind != "kv" and 0 <= value <= 2**53 and value == int(value):
        return value
    raise UnreadableError(f"{name} is {value:g}")


# --- Collect: one scrape of every node ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """What one scrape of one node brought."""

    address: str | None  # the IP to write into the upstream; None if the name never resolved
    seconds: float  # how long the scrape took
    reading: Reading | None = None
    error: str | None = None  # why there is no reading
    answered: bool = True  # False: no HTTP answer at all, which counts towards health.fall
    unresolved: str | None = None  # why its name led nowhere, so that the last address was used


@dataclass(slots=True)
class Job:
    """A scrape under way. Its thread writes `address` and what follows `started`; the main thread reads it."""

    node: Node
    address: str | None
    started: float
    answered: bool = False
    unresolved: str | None = None


# A scrape without an answer after this many seconds waits for the network, not for a processor:
# it stops counting towards scrape.workers, so that dead nodes never hold up live ones.
BLOCKED_AFTER_SECONDS = 0.1
BROKEN_OFF = "the answer broke off"
# Faults of this host, which say nothing against the node.
OWN_LIMITS = [
    os.strerror(number).lower()
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
]


def scrape_all(
    nodes: Sequence[Node], settings: Scrape, api_key: str | None, known: Mapping[str, str | None]
) -> dict[str, Sample]:
    """Scrape every node in threads, each under its own deadline; always returns a sample per node.

    A thread whose node is still dripping bytes at the deadline is left behind; it is a daemon and
    ends with the process. `known` has the last addresses, for names that do not resolve now.
    """
    import requests  # noqa: F401 - once here, not in many threads at once

    results: queue.SimpleQueue[tuple[Job, Sample]] = queue.SimpleQueue()
    pending, active, samples = deque(nodes), dict[str, Job](), dict[str, Sample]()
    while pending or active:
        now = time.monotonic()
        for job in [job for job in active.values() if now - job.started > settings.timeout_seconds]:
            del active[job.node.name]
            error = timeout_reason(job, settings)
            samples[job.node.name] = Sample(job.address, now - job.started, None, error, job.answered, job.unresolved)
        busy = sum(job.answered or now - job.started < BLOCKED_AFTER_SECONDS for job in active.values())
        for _ in range(min(len(pending), settings.workers - busy)):
            node = pending.popleft()
            job = active[node.name] = Job(node, canonical(node.host) if is_ip(node.host) else known.get(node.name), now)
            try:
                threading.Thread(target=scrape_job, args=(job, settings, api_key, results), daemon=True).start()
            except RuntimeError:  # a limit of this host's, which says nothing against the node
                results.put((job, Sample(job.address, 0.0, None, "no thread can be started")))
        with contextlib.suppress(queue.Empty):
            while active:
                job, sample = results.get(timeout=BLOCKED_AFTER_SECONDS / 2)
                if active.pop(job.node.name, None):
                    samples[job.node.name] = sample
                if pending:
                    break
    return samples


def scrape_job(job: Job, settings: Scrape, api_key: str | None, results: queue.SimpleQueue[tuple[Job, Sample]]) -> None:
    """Resolve and scrape one node, and put its sample on the queue, whatever happens."""
    import requests
    import urllib3

    reading, error = None, None
    try:
        job.address, job.unresolved = resolve(job.node, job.address, settings.timeout_seconds / 3)
        reading = parse_metrics(fetch_metrics(job, settings, api_key))
    except UnreadableError as unreadable:
        error = str(unreadable)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        error = timeout_reason(job, settings)
    except (OSError, requests.RequestException) as fault:
        error = network_reason(fault)
        job.answered = job.answered or error in OWN_LIMITS
    except urllib3.exceptions.HTTPError:  # requests does not translate what happens while the body is read
        error = BROKEN_OFF
    except Exception as fault:  # noqa: BLE001 - a node must not be able to end the tick
        error = f"unexpected {type(fault).__name__}"
    seconds = time.monotonic() - job.started
    results.put((job, Sample(job.address, seconds, reading, error, job.answered, job.unresolved)))


def resolve(node: Node, last: str | None, patience_seconds: float) -> tuple[str, str | None]:
    """Return the IP to write for a node, keeping the last one as long as its name still leads there.

    A name that leads nowhere says nothing against the node: then the last address is used, and why is returned too.

    Raises:
        OSError: the name does not resolve, and there is no last address.
    """
    if is_ip(node.host):
        return canonical(node.host), None
    found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()
    try:
        threading.Thread(target=look_up, args=(node, found), daemon=True).start()  # libc's resolver waits for long
    except RuntimeError:
        found.put(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    try:
        answer = found.get(timeout=patience_seconds)
    except queue.Empty:
        answer = OSError(errno.ETIMEDOUT, "the resolver does not answer")
    if isinstance(answer, OSError):
        if not last:
            raise answer
        return last, network_reason(answer)
    return last if last in answer else answer[0], None


def look_up(node: Node, found: queue.SimpleQueue[list[str] | OSError]) -> None:
    """Put the addresses of a node's name on the queue, or why there is none."""
    try:
        infos = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
        usable = [address for info in infos if is_ip(address := str(info[4][0]))]
        found.put(usable or OSError(errno.EADDRNOTAVAIL, "no usable address"))
    except OSError as error:
        found.put(error)


def fetch_metrics(job: Job, settings: Scrape, api_key: str | None) -> bytes:
    """GET one node's metrics; raise UnreadableError for an answer that cannot be metrics."""
    target = job.address or job.node.host  # the very address that goes into the upstream
    headers = {
        "Accept": "text/plain;version=0.0.4",
        "Accept-Encoding": "identity",  # a compressed answer could unpack to anything
        "Connection": "close",
        "Host": f"{bracketed(job.node.host)}:{job.node.port}",
        "User-Agent": f"vllm-nginx-lb/{__version__}",
    }
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    with (
        http_session(job.node.host) as session,
        session.get(
            f"{job.node.scheme}://{bracketed(target)}:{job.node.port}{settings.path}",
            headers=headers,
            timeout=settings.timeout_seconds,
            allow_redirects=False,
            stream=True,
            verify=settings.ca_file or True,
        ) as response,
    ):
        job.answered = True
        hint = " (see scrape.api_key_file)" if response.status_code in (401, 403) else ""
        if response.status_code != 200:  # noqa: PLR2004 - HTTP's own number
            raise UnreadableError(f"HTTP {response.status_code}{hint}")
        content_type = response.headers.get("Content-Type", "none")
        if not content_type.lower().startswith("text/plain"):
            raise UnreadableError(f"content type {printable(content_type)} instead of text/plain")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UnreadableError("compressed although asked not to be")
        body = bytearray()
        # Not raw.stream(): in urllib3 1.26 (Debian 12) it reads a line of any length for the size of a chunk.
        for chunk in iter(lambda: response.raw.read(65536, decode_content=False), b""):
            body += chunk
            if len(body) > settings.max_bytes:
                raise UnreadableError(f"more than {settings.max_bytes} bytes")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and len(body) != int(length):
            raise UnreadableError(BROKEN_OFF)
    return bytes(body)


def http_session(host: str) -> requests.Session:
    """Make a session that ignores the environment's proxies and .netrc, and wants certificates to be this host's."""
    import requests

    session = requests.Session()
    session.trust_env = False
    if not is_ip(host):  # TLS goes to an address, and must be told the name
        adapter = requests.adapters.HTTPAdapter()
        adapter.init_poolmanager(1, 1, server_hostname=host.rstrip("."))
        session.mount("https://", adapter)
    return session


def timeout_reason(job: Job, settings: Scrape) -> str:
    """Say what did not come in time."""
    return f"no {'complete ' if job.answered else ''}answer within {settings.timeout_seconds:g} s"


def network_reason(error: BaseException) -> str:
    """Find the few words that matter, such as "connection refused", in an error from requests."""
    reasons = [printable(type(error).__name__)]
    todo: list[Any] = [error]
    while todo:
        each = todo.pop()
        if isinstance(each, ssl.SSLCertVerificationError):
            reasons.append(f"certificate refused: {each.verify_message}".rstrip("."))
        elif type(each).__name__ == "CertificateError":  # urllib3 1.26 (Debian 12) compares names itself
            reasons.append(f"certificate refused: {each}")
        elif isinstance(each, OSError) and each.strerror:
            reasons.append(each.strerror)
        elif isinstance(each, http.client.HTTPException):
            closed = isinstance(each, http.client.RemoteDisconnected)
            reasons.append("closed without an answer" if closed else "the answer is not HTTP")
        if isinstance(each, BaseException):
            todo += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    return printable(reasons[-1]).lower()


def printable(value: str, limit: int = 120) -> str:
    """Make any text fit for one line of a log, a status file or a terminal."""
    return re.sub(r"[^ -~]", "?", value)[:limit]


# --- Decide: samples -> plan ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a node did over some readings, in the mean; numbers of requests are per engine."""

    speed: float = number(0, 2**53, 0.0)  # generated tokens per second and running request
    running: float = number(0, 2**53, 0.0)
    waiting: float = number(0, 2**53, 0.0)
    finished: float = number(0, 2**53, 0.0)  # from one reading to the next
    kv_cache_usage: float = number(0, 1, 0.0)  # ratio
    engines: float = number(1, 2**53, 1.0)

    @property
    def requests(self) -> float:
        """All that it had: in a batch or queued."""
        return self.running + self.waiting

    def shifted(self, towards: Means, share: float) -> Means:
        """Return the means with a newer value weighing `share`."""
        moved = {
            each.name: (1 - share) * getattr(self, each.name) + share * getattr(towards, each.name)
            for each in dataclasses.fields(self)
        }
        return Means(**moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the policy `capacity` remembers of a node."""

    at: float = number(0, 2**53)  # the last reading, in seconds of the monotonic clock
    generation_tokens: int | None = number(0, 2**60, None)
    finished: int | None = number(0, 2**60, None)
    running: int = number(0, 2**60)
    readings: int = number(0, 2**53, 0)  # that went into the means, since a weight moved last
    recent: Means = Means()
    longer: Means = Means()
    earned_weight: int = number(1, MAX_WEIGHT, MAX_WEIGHT)  # what it has, or had before it was out of rotation
    steps: int = number(0, 2, 0)  # of SLOW_START: how many of its way back to that are left


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMemory:
    """What one tick leaves for the next about a node. Times are seconds of the monotonic clock."""

    up: bool | None = None  # None: neither read nor given up so far
    weight: int | None = number(0, MAX_WEIGHT, None)
    failures: int = number(0, 2**53, 0)  # scrapes without an answer, in a row
    successes: int = number(0, 2**53, 0)  # good scrapes, in a row
    read_at: float | None = number(0, 2**53, None)
    preemptions: int | None = number(0, 2**60, None)
    setbacks: int = number(0, 5, 0)  # how often it went down lately; see good_scrapes_needed
    figures: str | None = None  # what it said last, and since when it says so
    moved_at: float | None = number(0, 2**53, None)
    address: str | None = setting("an IP address", is_ip, None)
    host: str | None = setting("a host", is_host, None)  # to which that address belongs
    resolves: bool = True
    learned: Learned | None = None  # by the pool's policy


STATES = ("up", "down", "unknown", "drained")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What is decided for one node, and why. Weight 0 is written as nginx's `down`."""

    name: str = text(NAME, "a node's name")
    address: str | None = setting("an IP address", is_ip)
    state: str = choice(*STATES)
    kv_cache_usage: float | None = number(0, 1)
    waiting: int | None = number(0, 2**60)
    running: int | None = number(0, 2**60)
    preemptions_delta: int | None = number(0, 2**60)
    engines: int | None = number(1, MAX_LINES)
    weight: int = number(0, MAX_WEIGHT)
    previous_weight: int | None = number(0, MAX_WEIGHT)
    reason: str = text(PRINTABLE, "printable text")
    scrape_seconds: float = number(0, 86400)
    error: str | None = text(PRINTABLE, "printable text")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """One pool's nodes, and why its weights were held although they should have moved."""

    name: str = text(POOL_NAME, "a pool's name")
    held: str | None = text(PRINTABLE, "printable text")
    nodes: tuple[NodePlan, ...] = ()


TIME = re.compile(r"[0-9T:.Z+-]{20,40}")
OUTCOMES = ("reloaded", "published", "unchanged", "deferred", "rolled_back", "failed")
LIVE = ("reloaded", "published")  # of which what was decided went live
CHANGES = (*LIVE, "rolled_back", "failed")  # of which something was to go live


# These three without slots: a status is both of the former.
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `collect` hands to `apply`."""

    version: int = number(1, 1)
    decided_at: str = text(TIME, "an RFC 3339 time")
    pools: tuple[PoolPlan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How many ticks ended in which way."""

    reloaded: int = number(0, 2**53, 0)
    published: int = number(0, 2**53, 0)
    unchanged: int = number(0, 2**53, 0)
    deferred: int = number(0, 2**53, 0)
    rolled_back: int = number(0, 2**53, 0)
    failed: int = number(0, 2**53, 0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a tick, and how those before it went."""

    decided_at: str = text(TIME, "an RFC 3339 time")
    generation: str | None = text(re.compile(r"[0-9a-z]{1,64}"), "a generation")
    applied: bool
    outcome: str = choice(*OUTCOMES)
    deferred: str | None = text(PRINTABLE, "printable text", None)  # why a change of weights waits
    draining_generations: int = number(0, 2**22, 0)
    error: str | None = text(re.compile(r"[ -~]*"), "printable text")
    interval_seconds: float = number(1, 86400, 10.0)
    succeeded_at: str | None = text(TIME, "an RFC 3339 time", None)  # the last tick without a fault
    changed_at: str | None = text(TIME, "an RFC 3339 time", None)  # when something was last to go live
    changed_outcome: str | None = choice(*CHANGES, default=None)  # and what became of that
    totals: Totals = Totals()


@dataclass(frozen=True, kw_only=True)
class Status(Plan, Outcome):
    """A plan, and what became of it: status.json."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees of a node that could be read."""

    reading: Reading
    preemptions_delta: int  # since the previous reading
    was: NodeMemory = NodeMemory()
    settled: bool = True  # whether what was decided last is live


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a node, and what it wants to remember of it."""

    weight: int
    reason: str
    learned: Learned | None = None


def weigh_stepped(pool: Pool, policies: Policies, seen: Mapping[str, Observation], _now: float) -> dict[str, Verdict]:
    """Weigh each node by the published ladder, alone: KV usage, then waiting, preemptions, running."""
    return {
        node.name: Verdict(*stepped_weight(seen[node.name], policies.stepped))
        for node in pool.nodes
        if node.name in seen
    }


def stepped_weight(seen: Observation, rules: Stepped) -> tuple[int, str]:
    """Return the ladder's weight for one node, and the reasons for it."""
    reading = seen.reading
    steps = sorted(rules.kv_cache, key=lambda step: step.at_least, reverse=True)
    reached = next((step for step in steps if reading.kv_cache_usage >= step.at_least), None)
    limit = f" >= {reached.at_least:g}" if reached else f" < {steps[-1].at_least:g}" if steps else ""
    reasons = [f"kv {shown_ratio(reading.kv_cache_usage)}{limit}"]
    if reading.waiting > rules.max_waiting:
        reasons.append(f"waiting {reading.waiting} > {rules.max_waiting}")
    if rules.downgrade_on_preemption and seen.preemptions_delta > 0:
        reasons.append(f"{seen.preemptions_delta} new preemptions")
    if reading.running > rules.max_running * reading.engines:
        reasons.append(f"running {reading.running / reading.engines:g} > {rules.max_running} per engine")
    level = rules.levels.index(reached.weight if reached else rules.levels[0]) + len(reasons) - 1
    return rules.levels[min(level, len(rules.levels) - 1)], ", ".join(reasons)


def shown_ratio(value: float) -> str:
    """Return a ratio with two digits, never rounded up to a limit it has not reached."""
    return f"{math.floor(value * 100) / 100:.2f}"


def weigh_static(pool: Pool, _policies: Policies, seen: Mapping[str, Observation], _now: float) -> dict[str, Verdict]:
    """Weigh each node by its configured capacity; the largest of the pool gets 100."""
    return {
        node.name: Verdict(static_weight(pool, node), f"capacity {node.capacity:g}")
        for node in pool.nodes
        if node.name in seen
    }


def static_weight(pool: Pool, node: Node) -> int:
    """Return a node's share of the pool's largest capacity, from 1 to 100."""
    return max(1, round(MAX_WEIGHT * node.capacity / max(each.capacity for each in pool.nodes)))


# --- The policy `capacity`: weights from what the nodes turn out to do -----------------------------------

SLOW_START = (0.5, 1.0)  # shares of its weight that a node which starts at the lowest gets next
RECENT_READINGS, LONGER_READINGS = 2, 20
ENOUGH_READINGS = 4  # for the longer means to count
GAP_SECONDS = 60  # readings further apart say nothing of the time between
FEW_REQUESTS = 2.0  # per engine; with fewer, their number is mostly chance
CORRECTION, MOST_GROWTH = 0.7, 1.5  # a weight is corrected by most of what it is off, and upwards in steps
SURE_AT = 2.0  # standard deviations by which requests must be off for half of that to count


def weigh_capacity(pool: Pool, policies: Policies, seen: Mapping[str, Observation], now: float) -> dict[str, Verdict]:
    """Weigh nodes so that each has as many requests as its speed asks for, and no more than it has room for.

    `least_conn` knows at any moment how many requests it has at each node. What it cannot know is how fast the nodes
    are, and what else they do. So each node's requests, per engine, shall be in proportion to speed ^ speed_exponent,
    where speed is what a request meets there: generated tokens per second and running request. A weight is corrected
    by how far its node is from that, which makes up for traffic that nginx does not see, too:

        weight_i *= (due_i / requests_i) ^ CORRECTION

    with due_i and requests_i from `dues` and `credible_requests`. A move costs a reload, which zeroes nginx's counts.
    So it takes a large deviation in the last readings, or a smaller one the longer it lasts; what was measured before
    a move is forgotten. docs/decisions.md has the measurements.
    """
    rules = policies.capacity
    awake = {name: each for name, each in seen.items() if each.reading.awake}
    first = {node.name: max(rules.lowest_weight, static_weight(pool, node)) for node in pool.nodes}
    running = any(each.was.learned for each in awake.values())
    learned = {name: learn(each, first[name], now, running=running) for name, each in awake.items()}
    weights = {
        name: (awake[name].was.weight or rules.lowest_weight) if each.steps else each.earned_weight
        for name, each in learned.items()
    }
    moved: dict[str, int] = {}
    if running and all(each.settled for each in awake.values()):
        moved = next_steps(rules, learned, awake) or corrected(rules, learned, weights, whole=len(pool.nodes))
    verdicts = {}
    for name, each in learned.items():
        weight = moved.get(name, weights[name])
        on_its_way = each.steps - (each.steps > 0 and name in moved)
        after = dataclasses.replace(
            each,
            readings=0 if moved else each.readings,
            steps=on_its_way,
            earned_weight=each.earned_weight if each.steps else weight,
        )
        means = f"{each.recent.speed:.1f} tokens/s a request, {each.recent.requests:.1f} requests"
        way = f"step {len(SLOW_START) - on_its_way} of {len(SLOW_START)} back to {each.earned_weight}"
        verdicts[name] = Verdict(weight, way if each.steps else means, after)
    return verdicts


def learn(seen: Observation, first_weight: int, now: float, *, running: bool) -> Learned:
    """Return what is known of a node after one more reading. In a pool that is running, a new node starts low."""
    reading, was, before = seen.reading, seen.was, seen.was.learned
    returns = was.up is False or was.weight == 0
    tokens = reading.generation_tokens
    if before is None:
        steps = len(SLOW_START) if running or returns else 0
        return Learned(
            at=now,
            generation_tokens=tokens,
            finished=reading.finished,
            running=reading.running,
            earned_weight=first_weight,
            steps=steps,
        )
    after = dataclasses.replace(
        before,
        at=now,
        generation_tokens=tokens,
        finished=reading.finished,
        running=reading.running,
        readings=before.readings if seen.settled and not returns else 0,
        steps=len(SLOW_START) if returns else before.steps,
    )
    seconds, in_batch = now - before.at, (before.running + reading.running) / 2
    generated = -1 if None in (tokens, before.generation_tokens) else (tokens or 0) - (before.generation_tokens or 0)
    started_anew_or_untold, stands_still = generated < 0, reading.figures == was.figures
    if not 0 < seconds <= GAP_SECONDS or in_batch < 1 or started_anew_or_untold or stands_still:
        return after
    means = Means(
        speed=min(2.0**53, generated / seconds / in_batch),  # as much as a memory may hold
        running=in_batch / reading.engines,
        waiting=reading.waiting / reading.engines,
        finished=max(0, (reading.finished or 0) - (before.finished or 0)) / reading.engines,
        kv_cache_usage=reading.kv_cache_usage,
        engines=reading.engines,
    )
    readings = after.readings + 1
    return dataclasses.replace(
        after,
        readings=readings,
        recent=before.recent.shifted(means, 1 / min(readings, RECENT_READINGS)),
        longer=before.longer.shifted(means, 1 / min(readings, LONGER_READINGS)),
    )


def next_steps(rules: Capacity, learned: Mapping[str, Learned], seen: Mapping[str, Observation]) -> dict[str, int]:
    """Return the next weights of nodes on their way back, which have been in rotation at the lowest since a tick."""
    return {
        name: max(rules.lowest_weight, round(each.earned_weight * SLOW_START[-each.steps]))
        for name, each in learned.items()
        if each.steps and seen[name].was.up and seen[name].was.weight
    }


def corrected(
    rules: Capacity, learned: Mapping[str, Learned], weights: Mapping[str, int], whole: int
) -> dict[str, int]:
    """Return the weights that the requests of the nodes ask for, or none while that is not certain enough.

    `whole` is how many nodes the pool has: while some are not ready, the others keep their scale to them.
    """
    ready = {name: each for name, each in learned.items() if not each.steps and each.readings >= RECENT_READINGS}
    if len(ready) < 2:  # noqa: PLR2004 - one alone has nothing to be compared with
        return {}
    top = MAX_WEIGHT if len(ready) == whole else max(weights[name] for name in ready)
    now_at = scaled({name: weights[name] for name in ready}, top)
    readings = min(each.readings for each in ready.values())
    lasting = max(rules.min_change_ratio, 1 / math.sqrt(readings)) if readings >= ENOUGH_READINGS else math.inf
    for span, needed in (("recent", rules.sudden_change_ratio), ("longer", lasting)):
        means = {name: getattr(each, span) for name, each in ready.items()}
        if sum(each.requests for each in means.values()) < FEW_REQUESTS * len(ready):
            continue
        count = min(readings, RECENT_READINGS if span == "recent" else LONGER_READINGS)
        factors = corrections(rules, means, now_at, count)
        wanted = {
            name: max(rules.lowest_weight, each)
            for name, each in scaled({name: weights[name] * factors[name] for name in ready}, top).items()
        }
        if max(abs(wanted[name] / now_at[name] - 1) for name in ready) >= needed:
            return {name: round(each) for name, each in wanted.items()}
    return {}


def corrections(
    rules: Capacity, means: Mapping[str, Means], weights: Mapping[str, float], readings: int
) -> dict[str, float]:
    """Return by what each weight is to be multiplied, so that the requests of its node become what is due."""
    if not any(each.speed for each in means.values()):
        return dict.fromkeys(means, 1.0)
    due = dues(rules, means)
    per_weight = sum(each.requests * each.engines for each in means.values()) / sum(weights.values())
    factors = {}
    for name, each in means.items():
        has = credible_requests(each, per_weight * weights[name] / each.engines, readings)
        # FEW_REQUESTS on both sides: between 0 and 1 request there is no infinite difference.
        factors[name] = min(MOST_GROWTH, ((due[name] + FEW_REQUESTS) / (has + FEW_REQUESTS)) ** CORRECTION)
    return factors


def credible_requests(means: Means, by_weight: float, readings: int) -> float:
    """Return how many requests an engine has, as far as that is certain, else what its node's weight gives it.

    What it had at some moment is off by chance, by about its square root, and says nothing new until other requests
    have taken the place of those: long streams make few independent readings. Of what is left over, the part counts
    that is signal (as in a Wiener filter: off^2 of off^2 + noise^2).
    """
    off = means.requests - by_weight
    turnovers = means.finished * readings / max(1.0, means.requests)
    if not off or not turnovers:
        return by_weight
    noise = SURE_AT**2 * max(1.0, by_weight) / turnovers
    return by_weight + off * off**2 / (off**2 + noise)


def dues(rules: Capacity, means: Mapping[str, Means]) -> dict[str, float]:
    """Share all requests out by speed, to no node more than it has room for; if all are full, by room."""
    room = {name: room_for(each, rules.max_kv_cache_usage) for name, each in means.items()}
    total = left = sum(each.requests for each in means.values())
    if sum(room.values()) <= total:
        return {name: total * each / sum(room.values()) for name, each in room.items()}
    speeds = {name: each.speed**rules.speed_exponent for name, each in means.items()}
    due: dict[str, float] = {}
    while len(due) < len(means):
        whole = sum(speed for name, speed in speeds.items() if name not in due)
        share = {name: left * speed / whole if whole else 0.0 for name, speed in speeds.items() if name not in due}
        full = {name: room[name] for name, each in share.items() if each > room[name]}
        due |= full or share
        left = total - sum(due.values())
    return due


def room_for(means: Means, max_kv_cache_usage: float) -> float:
    """Return how many requests a node can run at once: up to some KV usage, or those it runs if others wait."""
    by_memory = max_kv_cache_usage * means.running / max(means.kv_cache_usage, 0.01)
    return min(by_memory, means.running) if means.waiting >= FEW_REQUESTS else by_memory


def scaled(weights: Mapping[str, float], largest: float) -> dict[str, float]:
    """Return weights of which the largest is `largest`."""
    return {name: largest * each / max(weights.values()) for name, each in weights.items()}


# Reasons that are more than words: of a node that answers and must not be asked, and of one drained by `drain`.
ASLEEP, DRAINED = "asleep", "drained by the operator"

# A policy weighs the nodes of a pool that could be read: name -> verdict, with a weight from 1 to 100.
POLICIES: dict[str, Callable[[Pool, Policies, Mapping[str, Observation], float], dict[str, Verdict]]] = {
    "stepped": weigh_stepped,
    "capacity": weigh_capacity,
    "static": weigh_static,
}


def lowest_weight(pool: Pool, node: Node, policies: Policies) -> int:
    """Return the trickle that lets a node prove itself: where it starts."""
    match pool.policy:
        case "static":
            return static_weight(pool, node)
        case "capacity":
            return policies.capacity.lowest_weight
        case _:
            return policies.stepped.levels[-1]


def stale_weight(pool: Pool, was: NodeMemory, lowest: int) -> int:
    """Return the weight of a node of which nothing has been known for long.

    What `capacity` learned stays half true: with the lowest weight the other nodes would have to do all its work.
    """
    if pool.policy == "capacity" and was.learned and was.weight:
        return max(lowest, min(was.weight, was.learned.earned_weight // 2))
    return lowest


def decide(
    config: Config,
    samples: Mapping[str, Sample],
    memory: Mapping[str, NodeMemory],
    drained: AbstractSet[str],
    now: float,
    *,
    settled: bool = True,
) -> tuple[tuple[PoolPlan, ...], dict[str, NodeMemory]]:
    """Decide every node's state and weight: a pure function, `now` in seconds of the monotonic clock.

    `settled` says whether what was decided last is live, so that what the nodes show can be the effect of it.
    """
    plans: list[PoolPlan] = []
    remembered: dict[str, NodeMemory] = {}
    for pool in config.pools:
        before = {node.name: memory.get(node.name, NodeMemory()) for node in pool.nodes}
        after = {node.name: observe(before[node.name], samples[node.name], config.health, now) for node in pool.nodes}
        seen = {
            name: Observation(reading, preemptions_delta(before[name], reading), before[name], settled)
            for name in before
            if (reading := samples[name].reading)
        }
        verdicts = POLICIES[pool.policy](pool, config.policies, seen, now)
        nodes: list[NodePlan] = []
        serving: dict[tuple[str | None, int], str] = {}  # two names of one server would double its share
        for node in pool.nodes:
            was, now_is, sample = before[node.name], after[node.name], samples[node.name]
            lowest = lowest_weight(pool, node, config.policies)
            levels = lowest, stale_weight(pool, was, lowest)
            if sample.reading and sample.reading.awake:
                state, weight, reason = judge_read(was, now_is, verdicts[node.name], levels, config.health)
            elif sample.reading:
                state, weight, reason = "down", 0, ASLEEP
            else:
                error = sample.error or "no reading"
                state, weight, reason = judge_unread(was, now_is, error, levels, config.health, now)
            if sample.unresolved:
                reason += f"; its name does not resolve ({sample.unresolved}), last address used"
            if node.drain or node.name in drained:
                state, weight, reason = "drained", 0, "drained in the inventory" if node.drain else DRAINED
            elif not sample.address:
                weight = 0
            elif twin := serving.get((sample.address, node.port)):
                state, weight, reason = "down", 0, f"same address as {twin}"
                sample = dataclasses.replace(sample, address=None)
            else:
                serving[sample.address, node.port] = node.name
            nodes.append(plan_node(node, was, sample, seen.get(node.name), (state, weight, reason)))
        plan = hold_if_needed(pool, config.policies, nodes, any_read=bool(seen))
        plans.append(plan)
        remembered |= {
            each.name: dataclasses.replace(
                after[each.name],
                weight=each.weight,
                learned=verdicts[each.name].learned if each.state == "up" else before[each.name].learned,
                host=node.host,
                resolves=samples[each.name].unresolved is None,
            )
            for each, node in zip(plan.nodes, pool.nodes, strict=True)
        }
    return tuple(plans), remembered


def observe(was: NodeMemory, sample: Sample, health: Health, now: float) -> NodeMemory:
    """Count a node's good and failed scrapes, and move it between up and down."""
    # A monotonic clock starts again at boot: a time from "the future" is from before it.
    read_at, moved_at = (None if at is None else min(at, now) for at in (was.read_at, was.moved_at))
    reading = sample.reading
    if reading and reading.awake:
        successes = was.successes + 1
        working = reading.requests > 0 and reading.generation_tokens is not None
        return NodeMemory(
            up=was.up is not False or successes >= good_scrapes_needed(was, health),
            successes=successes,
            read_at=now,
            preemptions=reading.preemptions,
            setbacks=max(0, was.setbacks - (successes % SCRAPES_TO_FORGET_A_SETBACK == 0)),
            figures=reading.figures,
            moved_at=moved_at if working and reading.figures == was.figures else now,
            address=sample.address,
        )
    failures = 0 if sample.answered else was.failures + 1
    up = False if reading or failures >= health.fall else was.up
    return NodeMemory(
        up=up,
        failures=failures,
        read_at=read_at,
        preemptions=reading.preemptions if reading else was.preemptions,
        setbacks=min(5, was.setbacks + (was.up is True and up is False)),
        figures=was.figures,
        moved_at=moved_at,
        address=sample.address,
    )


SCRAPES_TO_FORGET_A_SETBACK = 30


def good_scrapes_needed(was: NodeMemory, health: Health) -> int:
    """Return how many good scrapes in a row bring a node back: each setback beyond the first doubles them.

    As Envoy's outlier detection lengthens each ejection; a node that flaps would cost two reloads each time.
    """
    return int(health.rise * 2 ** max(0, was.setbacks - 1))


def preemptions_delta(was: NodeMemory, reading: Reading) -> int:
    """Return new preemptions; none on first sight, nor when the counter started again."""
    return 0 if was.preemptions is None else max(0, reading.preemptions - was.preemptions)


def judge_read(
    was: NodeMemory, now_is: NodeMemory, verdict: Verdict, levels: tuple[int, int], health: Health
) -> tuple[str, int, str]:
    """Return the state, weight and reason of a node that could be read and is awake; `levels`: to start, and stale."""
    lowest, stale = levels
    if not now_is.up:
        return "down", 0, f"{now_is.successes} of {good_scrapes_needed(was, health)} good scrapes"
    if was.up is False:
        return "up", lowest, f"back after {now_is.successes} good scrapes, starting low"
    still = (now_is.read_at or 0) - (now_is.moved_at or 0)
    if still > health.stale_after_seconds:
        return "unknown", stale, f"has requests, and no figure of it has moved for {still:.0f} s"
    return "up", verdict.weight, verdict.reason


def judge_unread(
    was: NodeMemory, now_is: NodeMemory, error: str, levels: tuple[int, int], health: Health, now: float
) -> tuple[str, int, str]:
    """Return the state, weight and reason of a node that could not be read; `levels`: to start, and stale."""
    lowest, stale = levels
    counted = f"{error} ({now_is.failures} of {health.fall})" if now_is.failures else error
    if now_is.up is False:
        return "down", 0, f"{error}, {now_is.failures} in a row" if now_is.failures else error
    if now_is.read_at is None:
        return "unknown", lowest, f"{counted}, never read"
    age = now - now_is.read_at
    if was.weight and age <= health.stale_after_seconds:
        return "unknown", was.weight, f"{counted}, last weight held"
    return "unknown", stale, f"{counted}, not read for {age:.0f} s"


def plan_node(
    node: Node, was: NodeMemory, sample: Sample, seen: Observation | None, verdict: tuple[str, int, str]
) -> NodePlan:
    """Put together what the plan and the status say of a node."""
    state, weight, reason = verdict
    reading = seen.reading if seen else None
    return NodePlan(
        name=node.name,
        address=sample.address,
        state=state,
        kv_cache_usage=reading.kv_cache_usage if reading else None,
        waiting=reading.waiting if reading else None,
        running=reading.running if reading else None,
        preemptions_delta=seen.preemptions_delta if seen else None,
        engines=reading.engines if reading else None,
        weight=weight,
        previous_weight=was.weight,
        reason=reason,
        scrape_seconds=round(sample.seconds, 4),
        error=sample.error,
    )


def hold_if_needed(pool: Pool, policies: Policies, nodes: Sequence[NodePlan], *, any_read: bool) -> PoolPlan:
    """Never let a pool go empty: keep its last weights when no node can be read, or none would serve."""
    if any_read and any(node.weight for node in nodes):
        return PoolPlan(name=pool.name, held=None, nodes=tuple(nodes))
    lowest = {node.name: lowest_weight(pool, node, policies) for node in pool.nodes}
    usable = [node for node in nodes if node.address]
    undrained = [node for node in usable if node.state != "drained"]
    # In this order: nodes on their way back, the weights of before, whatever may serve at all.
    returning = {
        node.name: lowest[node.name]
        for node in undrained
        if node.state == "down" and node.engines and not node.reason.startswith(ASLEEP)
    }
    last = {
        node.name: lowest[node.name] if node.previous_weight is None else node.previous_weight for node in undrained
    }
    weights = next((each for each in (returning, last) if any(each.values())), None)
    if weights is None:
        weights = {node.name: lowest[node.name] for node in undrained or usable}
    if not weights:
        return PoolPlan(name=pool.name, held="no address is known for any node", nodes=tuple(nodes))
    why = "no node would be left to serve" if any_read else "no node can be read"
    how = (
        "last weights kept" if weights is last and any(node.previous_weight for node in nodes) else "lowest weights set"
    )
    kept, serving = [], set[tuple[str | None, int]]()  # as in decide: two names of one server serve once
    for at, node in zip(nodes, pool.nodes, strict=True):
        twin = (at.address, node.port) in serving
        kept.append(dataclasses.replace(at, weight=0 if twin else weights.get(at.name, 0)))
        if kept[-1].weight:
            serving.add((at.address, node.port))
    return PoolPlan(name=pool.name, held=f"{why}, {how}", nodes=tuple(kept))


# --- Plan: what apply believes of it ----------------------------------------------------------------


def check_plan(raw: Any, config: Config) -> Plan:
    """Validate a plan as if an attacker had written it: it may move weights, and say where a name leads.

    Raises:
        FailureError: naming the first problem.
    """
    problems: list[str] = []
    plan = build(Plan, raw, "plan", problems)
    if plan is not MISSING and not problems:
        problems = list(plan_problems(plan, config))
    if problems:
        raise FailureError(f"plan refused: {printable(problems[0])}: the next collect writes a new one")
    assert isinstance(plan, Plan)  # tells the type checker what build() returned
    return plan


def plan_problems(plan: Plan, config: Config) -> Iterator[str]:
    """Yield what in a well-formed plan does not agree with the configuration."""
    if [pool.name for pool in plan.pools] != [pool.name for pool in config.pools]:
        yield "its pools are not the configured ones"
        return
    for planned, pool in zip(plan.pools, config.pools, strict=True):
        if [node.name for node in planned.nodes] != [node.name for node in pool.nodes]:
            yield f"pool {pool.name}: its nodes are not the configured ones"
            return
        addressed = [at.address or is_ip(node.host) for at, node in zip(planned.nodes, pool.nodes, strict=True)]
        if any(addressed) and not any(node.weight for node in planned.nodes):
            yield f"pool {pool.name}: no node would serve"
        serving: set[tuple[str | None, int]] = set()
        for at, node in zip(planned.nodes, pool.nodes, strict=True):
            if at.weight and (at.address, node.port) in serving:
                yield f"node {node.name}: address {at.address} twice in the pool"
            if at.weight:
                serving.add((at.address, node.port))
            if at.address is None and at.weight:
                yield f"node {node.name}: a weight without an address"
            if at.address and is_ip(node.host) and at.address != canonical(node.host):
                yield f"node {node.name}: address {at.address} instead of {node.host}"


# --- Render: plan -> the upstream file ----------------------------------------------------------------

UPSTREAM_TEMPLATE = """\
{% for pool in pools %}
{% set hashed = pool.method == "consistent_hash" %}

{% if hashed %}
{% set header = "$http_" + pool.hash_header.lower().replace("-", "_") %}
# A request without the header goes anywhere.
map {{ header }} $vllm_nginx_lb_session_{{ pool.name }} { "" $request_id; default {{ header }}; }
{% endif %}
upstream {{ pool.name }} {
    zone {{ pool.name }} 1m;
{% if pool.method == "least_conn" %}
    least_conn;
{% elif pool.method == "random_two_least_conn" %}
    random two least_conn;
{% elif hashed %}
    hash $vllm_nginx_lb_session_{{ pool.name }} consistent;
{% endif %}
{% for server in pool.servers %}
{# nginx puts a server 160 times per weight on its ring: a tenth of the weights is fine enough for it. #}
{% set weight = (server.weight / 10) | round(0, "ceil") if hashed else server.weight %}
    server {{ server.address }}:{{ server.port }} {{ "weight=%d" % weight if weight else "down" }}\
{{ " max_conns=%d" % server.max_conns if server.max_conns }}\
 max_fails={{ pool.max_fails }} fail_timeout={{ pool.fail_timeout_seconds }}s; # {{ server.name }}
{% endfor %}
{% if pool.keepalive %}
    keepalive {{ pool.keepalive }};
    keepalive_timeout {{ pool.keepalive_timeout_seconds }}s;
{% endif %}
}
{% endfor %}
"""
# One node a line, so that a difference shows what has moved.
WEIGHTS_TEMPLATE = """\
"pools": [{% for pool in pools %}{{ "," if not loop.first }}
{"name": "{{ pool.name }}", "models": {{ pool.models | tojson }},\
 "nodes": [{% for server in pool.servers %}{{ "," if not loop.first }}
{"name": "{{ server.name }}", "address": "{{ server.address.strip("[]") }}", "port": {{ server.port }},\
 "weight": {{ server.weight }}, "max_conns": {{ server.max_conns }}, "state": "{{ server.state }}"}{% endfor %}
]}{% endfor %}
]}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """What every file we publish begins with, and how that and its weights are found again.

    Attributes:
        head: with the checksum of all that follows.
        opening: of what follows, with the generation.
        checksum: finds the head, and the checksum in it.
        generation: finds the opening, and the generation in it.
        weight: finds a weight.
    """

    head: str
    opening: str
    checksum: re.Pattern[str]
    generation: re.Pattern[str]
    weight: re.Pattern[str]


UPSTREAM_CONF = Framing(
    head="# Written by vllm-nginx-lb; changes made here are lost. sha256 of the rest: %s\n",
    opening='map "" $vllm_nginx_lb_generation { default "%s"; }\n',
    checksum=re.compile(
        r"# Written by vllm-nginx-lb; changes made here are lost. sha256 of the rest: ([0-9a-f]{64})\n"
    ),
    generation=re.compile(r'map "" \$vllm_nginx_lb_generation \{\s*default "([0-9a-z]{1,64})";\s*\}'),
    weight=re.compile(r"\bweight=(\d+)"),
)
WEIGHTS_JSON = Framing(
    head='{"sha256": "%s",\n',
    opening='"version": 1, "generation": "%s",\n',
    checksum=re.compile(r'\{"sha256": "([0-9a-f]{64})",\n'),
    generation=re.compile(r'"version": 1, "generation": "([0-9a-z]{1,64})",\n'),
    weight=re.compile(r'"weight": (\d+)'),
)


def framing_of(published: str) -> Framing:
    """Return the framing of a published file."""
    return WEIGHTS_JSON if published.startswith("{") else UPSTREAM_CONF


NO_SERVER = {"name": "no address is known", "address": "127.0.0.1", "port": 9, "weight": 0, "max_conns": 0}


def template_context(config: Config, pools: Sequence[PoolPlan]) -> list[dict[str, Any]]:
    """Return what the upstream template sees as `pools`: each pool's settings and its `servers`.

    Nodes whose name never resolved are left out; nginx refuses an upstream without any server.
    """
    by_work = config.nginx.balancer == "work"
    context = []
    for planned, pool in zip(pools, config.pools, strict=True):
        servers = [
            {
                "name": node.name,
                "address": bracketed(at.address),
                "port": node.port,
                "weight": at.weight,
                "max_conns": node.max_conns,
            }
            | ({"state": at.state} if by_work else {})  # else each change of it would be a reload
            for at, node in zip(planned.nodes, pool.nodes, strict=True)
            if at.address
        ]
        plain = {each.name: getattr(pool, each.name) for each in dataclasses.fields(pool) if each.name != "nodes"}
        context.append(plain | {"servers": servers or ([] if by_work else [NO_SERVER])})
    return context


def digest(content: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(content.encode()).hexdigest()


def generation_for(context: list[dict[str, Any]], template: str) -> str:
    """Return the name of a wanted upstream file: a hash of all that goes into it, known before it is rendered."""
    return digest(json.dumps([context, template]))[:16]


def render(context: list[dict[str, Any]], template: str) -> str:
    """Return the upstream file: a checksum, the generation, and the template's output.

    Raises:
        FailureError: the template is faulty (exit code 2).
    """
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - nginx configuration, not HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        body = environment.from_string(template).render(pools=context)
        body.encode()
    except Exception as error:  # whatever the operator's template does
        line = f" line {error.lineno}:" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise FailureError(f"nginx.upstream_template:{line} {printable(str(error))}", EXIT_USAGE) from error
    framing = WEIGHTS_JSON if template == WEIGHTS_TEMPLATE else UPSTREAM_CONF
    rest = framing.opening % generation_for(context, template) + body
    return framing.head % digest(rest) + rest


def difference(before: str, after: str) -> list[str]:
    """Return what differs between two upstream files, as a unified diff."""
    import difflib

    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm=""))


def is_intact(upstream: str) -> bool:
    """Tell whether an upstream file is as it was written, by its checksum."""
    found = framing_of(upstream).checksum.match(upstream)
    return found is not None and found[1] == digest(upstream[found.end() :])


def generation_of(upstream: str) -> str | None:
    """Return the generation an upstream file declares."""
    found = framing_of(upstream).generation.search(upstream)
    return found[1] if found else None


def membership(upstream: str) -> str:
    """Return an upstream file with everything removed that a mere change of weights changes."""
    framing = framing_of(upstream)
    return framing.weight.sub("weight", framing.generation.sub("", framing.checksum.sub("", upstream)))


# --- Ration: when a change that only moves weights may go out ------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """nginx's workers, sorted into generations by the reload that made them; the last one serves."""

    group: int = 0  # nginx's process group: another one means that nginx was started anew
    generations: tuple[tuple[int, ...], ...] = ()

    @property
    def draining(self) -> int:
        """How many generations only finish what they have begun."""
        return max(0, len(self.generations) - 1)


def sort_workers(known: Workers, group: int, alive: set[int], serving: int) -> Workers:
    """Sort the processes of nginx that are alive into generations; `serving` is one that takes requests now."""
    before = [set(each) for each in known.generations] if known.group == group else []
    new = alive.difference(*before)
    died = len(before[-1] - alive) if before else 0
    if before and (serving not in new or len(new) <= died):  # nginx replaced workers that died
        before[-1] |= new
    else:
        before.append(set(new))
    generations = [tuple(sorted(each & alive)) for each in before]
    return Workers(group=group, generations=tuple(each for each in generations if each))


LONGEST_WAIT_SECONDS = 600  # for streams to end: some never do, and a weight must not wait for ever


def reason_to_wait(settings: NginxSettings, current: str, wanted: str, age_seconds: float, draining: int) -> str | None:
    """Return why a change that only moves weights shall wait, or None if it may go out."""
    weights = [[int(weight) for weight in framing_of(text).weight.findall(text)] for text in (current, wanted)]
    moves = max((abs(new - old) / max(1, old) for old, new in zip(*weights, strict=True)), default=math.inf)
    if moves < settings.min_weight_change_ratio:
        return f"no weight moves by {settings.min_weight_change_ratio:.0%} or more"
    if age_seconds < settings.min_reload_interval_seconds:
        return f"the last reload was {int(age_seconds)} s ago, the least is {settings.min_reload_interval_seconds:g} s"
    if draining >= settings.max_draining_generations and age_seconds < LONGEST_WAIT_SECONDS:
        return f"{draining} generations of workers are still draining, the limit is {settings.max_draining_generations}"
    return None


# --- Apply: publish safely ------------------------------------------------------------------------------

MAX_COPIES = 10
MAX_DIFF_LINES = 40
COMMAND_TIMEOUT_SECONDS = 30
LONGEST_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Live:
    """What nginx answers: the generation its workers serve, and which worker said so."""

    generation: str | None  # None: a configuration that is not ours
    worker: int | None = None  # its process, where confirm_url tells


@dataclass(frozen=True, slots=True)
class Nginx:
    """The running nginx, and the one file of its configuration that is ours."""

    settings: NginxSettings

    @property
    def file(self) -> Path:
        """The upstream file."""
        return Path(self.settings.upstream_file)

    @property
    def reloads(self) -> bool:
        """Whether nginx takes a new file in a reload, with new workers."""
        return self.settings.balancer == "upstream"

    @property
    def lock(self) -> Path:
        """The lock of who writes that file: in a directory where only root can hold it."""
        return self.file.with_name(".lock")

    def read(self) -> str:
        """Return the upstream file's text, or an empty one where there is none yet."""
        try:
            return decoded(self.file.read_bytes())
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise FailureError(f"{self.file} cannot be read: {error.strerror}") from error

    def command(self, words: Sequence[str]) -> str | None:
        """Run a command; return None if it succeeded, else the line of its output that says why not."""
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian keeps nginx, off a user's PATH
        try:
            done = subprocess.run(  # noqa: S603 - the words come from the root-owned configuration
                words,
                env={"PATH": path, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{words[0]} cannot be run: {printable(str(error))}"
        if done.returncode == 0:
            return None
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no output"]
        telling = next((line for line in lines if "[emerg]" in line), lines[-1])
        telling = re.sub(r"^.*?\[emerg\]( \d+#\d+:)?", "[emerg]", telling)  # without time and process
        return f"{' '.join(words)}: {re.sub(r'[^ -~]', '?', telling)}"

    def test(self) -> str | None:
        """Run nginx's own check of its whole configuration; return what it says against it."""
        return self.command(self.settings.test_command) if self.reloads else None

    def live(self) -> Live:
        """Ask nginx what it serves; without confirm_url, take what was last made live.

        Raises:
            FailureError: nginx does not answer.
        """
        if not self.settings.confirm_url:
            return Live(generation_of(self.newest_backup()))
        # Not requests: what runs as root loads as little as it can, and this is one GET to the host itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.settings.confirm_url, timeout=self.settings.confirm_timeout_seconds) as answer:
                said = answer.read(100).decode("ascii", errors="replace")
        except urllib.error.HTTPError:
            return Live(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            url, why = self.settings.confirm_url, network_reason(error)
            raise FailureError(f"nginx does not answer at {url} ({why}): is it running?") from error
        words = re.fullmatch(r"([0-9a-z]{1,64})(?: ([0-9]{1,9}))?\s*", said)
        return Live(words[1], int(words[2]) if words[2] else None) if words else Live(None)

    def live_or_restored(self, current: str) -> Live:
        """Ask nginx what it serves; while it is down, see to it that it can start, which is not done here.

        Raises:
            FailureError: nginx does not answer.
        """
        try:
            return self.live()
        except FailureError as failure:
            last_good = self.newest_backup()
            if not last_good or current == last_good:
                raise
            # Whole and yet refused: what a run wrote that was killed before its test.
            if is_intact(current) and str(self.file) not in (self.test() or ""):
                raise
            if not is_intact(current):
                self.keep_edited(current, last_good)
            write_atomically(self.file, last_good, 0o644)
            generation = generation_of(last_good)
            raise FailureError(
                f"{failure}; {self.file} could not start it and is generation {generation} again"
            ) from failure

    def await_generation(self, wanted: str | None, former: AbstractSet[int]) -> str | None:
        """Wait until a worker that is not a former one serves a generation; return None, or what is served."""
        deadline = time.monotonic() + self.settings.confirm_timeout_seconds
        while True:
            try:
                live = self.live()
                said = f"generation {live.generation} is still live"
            except FailureError as failure:  # between old and new workers a connection may be refused
                live, said = Live(None), str(failure)
            if live.generation is not None and live.generation == wanted and live.worker not in former:
                return None
            if time.monotonic() > deadline:
                return f"{'the reload' if self.reloads else 'the new file'} did not take: {printable(said)}"
            time.sleep(0.02)

    def reload(self, upstream: str, *, anew: bool) -> str | None:
        """Make nginx take the text that is in place; return None when its workers serve it, else what went wrong.

        `anew` asks for workers that were not there before: a file edited by hand may have the same generation.
        """
        wanted = generation_of(upstream)
        former: AbstractSet[int] = set()
        if anew and self.reloads:
            with contextlib.suppress(FailureError):
                former = processes_of_group(self.live().worker)[1]
        fault = self.command(self.settings.reload_command) if self.reloads else None
        return fault or (self.await_generation(wanted, former) if wanted and self.settings.confirm_url else None)

    def publish(self, upstream: str, current: str, live: Live) -> None:
        """Make a text the live upstream in place of `current`, or put the last good one back.

        Raises:
            RolledBackError: it could not be published; the last good text is back and live.
            FailureError: it could not be published, and going back failed too.
        """
        known = self.last_good(current, live)
        if (current or known) and not is_intact(current) and generation_of(current) != SEED:
            self.keep_edited(current, known)
        last_good = known or current  # before our first, somebody else's
        # What it takes to go back is on the disk before anything changes: later that may be full.
        copy, way_back = self.stage("copy", upstream), self.stage("back", last_good)
        write_atomically(self.file, upstream, 0o644)
        refused = self.test()
        fault = refused or self.reload(upstream, anew=True)
        if fault is None:
            self.keep_backup(copy, upstream)
            self.tidy(upstream)
            return
        if not last_good:
            self.file.unlink(missing_ok=True)
            raise FailureError(f"{fault}; there was no earlier file to go back to")
        if not refused:
            self.remember_failure(upstream, fault)
        put_in_place(way_back, self.file)
        if not refused or live.generation != generation_of(last_good):  # else nginx never saw another one
            again = self.test() or self.reload(last_good, anew=False)
            if again:
                raise FailureError(f"{fault}; going back failed too: {again}")
        raise RolledBackError(f"{fault}; rolled back to generation {generation_of(last_good)}")

    def last_good(self, current: str, live: Live) -> str:
        """Return the text to go back to: what nginx runs, as far as it is known, or an empty text."""
        if is_intact(current) and generation_of(current) == live.generation:
            return current
        running = (text for text in self.backups() if generation_of(text) == live.generation)
        return next(running, self.newest_backup())

    # Beside the upstream file, not in the state directory: what goes live must come from where only root
    # can write. Their names begin with a dot, so that no `include *` of nginx's takes them in, and have
    # numbers, because a clock may jump.

    def beside(self, name: str) -> Path:
        """Return the path of a hidden file beside the upstream file."""
        return self.file.with_name(f".{self.file.name}.{name}")

    def copies(self, kind: str) -> list[Path]:
        """Return the copies of a kind, "bak" (was live) or "edited" (by hand), newest first."""
        name = re.compile(rf"\.{re.escape(self.file.name)}\.(\d{{6,}})\.(?:[0-9a-z]{{1,64}}\.)?{kind}")
        try:
            there = list(self.file.parent.iterdir())
        except OSError as error:
            raise FailureError(f"{self.file.parent} cannot be read: {error.strerror}") from error
        found = [(int(match[1]), path) for path in there if (match := name.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def next_copy(self, name: str) -> Path:
        """Return the path of a copy that is to be the newest."""
        newest = [int(path.name[len(self.file.name) + 2 :].partition(".")[0]) for path in self.newest_copies()]
        return self.beside(f"{max(newest, default=0) + 1:06d}.{name}")

    def newest_copies(self) -> list[Path]:
        """Return the newest copy of each kind."""
        return [path for kind in ("bak", "edited") for path in self.copies(kind)[:1]]

    def stage(self, name: str, upstream: str) -> Path:
        """Write a text into a file beside the upstream file, from where it can be put in place."""
        return stage(self.file, upstream, 0o644, self.beside(f"{name}.new"))

    def keep_backup(self, staged: Path, upstream: str) -> None:
        """Keep a staged copy of what went live as the newest backup."""
        put_in_place(staged, self.next_copy(f"{generation_of(upstream)}.bak"))
        self.drop_old_copies("bak")

    def drop_old_copies(self, kind: str) -> None:
        """Keep at most MAX_COPIES of a kind."""
        for old in self.copies(kind)[MAX_COPIES:]:
            with contextlib.suppress(OSError):
                old.unlink()

    def tidy(self, upstream: str) -> None:
        """Finish what a run left undone although its text is live: a backup, and no temporary files."""
        if generation_of(self.newest_backup()) != generation_of(upstream):
            self.keep_backup(self.stage("copy", upstream), upstream)
        for left in ("new", "copy.new", "back.new", "failed"):
            with contextlib.suppress(OSError):
                self.beside(left).unlink(missing_ok=True)

    def backups(self) -> Iterator[str]:
        """Yield the texts that were live, newest first, without damaged ones."""
        for path in self.copies("bak"):
            with contextlib.suppress(OSError, FailureError):
                upstream = decoded(read_file(path))
                if is_intact(upstream):
                    yield upstream

    def newest_backup(self) -> str:
        """Return the text that was live last, or an empty one."""
        return next(self.backups(), "")

    def remember_failure(self, upstream: str, error: str) -> None:
        """Note that nginx did not take a reload, and why: one that it takes too late leaves workers behind."""
        with contextlib.suppress(FailureError):  # a full disk, say: then it is tried again at once
            write_atomically(self.beside("failed"), f"{digest(membership(upstream))}\n{error}", 0o644)

    def failed_lately(self, upstream: str) -> str | None:
        """Return why nginx did not take this text, or one with other weights, if that was a moment ago."""
        with contextlib.suppress(OSError, FailureError):
            patience = min(self.settings.min_reload_interval_seconds, LONGEST_RETRY_SECONDS)
            wait = patience - file_age_seconds(self.beside("failed"))
            failed, _, error = decoded(read_file(self.beside("failed"))).partition("\n")
            if failed == digest(membership(upstream)) and wait > 0:
                return f"{printable(error, 2000)}; tried again in {wait:.0f} s"
        return None

    def keep_edited(self, edited: str, pristine: str) -> None:
        """Keep a text that somebody wrote into the upstream file, and log what they changed."""
        if not edited:
            log(WARNING, f"{self.file} was empty or missing: written again")
            return
        newest = next(iter(self.copies("edited")), None)
        if newest is None or newest.is_symlink() or not newest.is_file() or decoded(newest.read_bytes()) != edited:
            newest = self.next_copy("edited")
            write_atomically(newest, edited, 0o644)
            self.drop_old_copies("edited")
        log(WARNING, f"{self.file} was changed by hand: kept as {newest}, to be replaced")
        changes = [line for line in difference(pristine, edited)[2:] if line.startswith(("+", "-"))]
        for line in changes[:MAX_DIFF_LINES]:
            log(WARNING, f"changed by hand: {printable(line.rstrip())}")
        if len(changes) > MAX_DIFF_LINES:
            log(WARNING, f"changed by hand: ... and {len(changes) - MAX_DIFF_LINES} lines more")

    def workers(self, known: Workers, live: Live) -> Workers:
        """Return nginx's workers in generations; none where confirm_url does not tell a process."""
        group, alive = processes_of_group(live.worker)
        return sort_workers(known, group, alive - {self.master()}, live.worker) if live.worker else Workers()

    def master(self) -> int | None:
        """Return nginx's master process, if pid_file tells: after an upgrade in place it does not lead its group."""
        with contextlib.suppress(OSError, ValueError):
            return int(Path(self.settings.pid_file).read_text("ascii")) if self.settings.pid_file else None
        return None


def processes_of_group(member: int | None) -> tuple[int, set[int]]:
    """Return the process group of a process, and the other processes in it without its leader.

    All of nginx's workers are in its master's group. Their names would say which of them drain, but the service
    runs with ProtectProc=noaccess: it sees that processes exist, and no more.
    """
    try:
        group = os.getpgid(member or 0) if member else 0
    except ProcessLookupError:  # gone meanwhile, or of another process namespace
        group = 0
    found = set()
    for pid in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()] if group else ():
        with contextlib.suppress(ProcessLookupError):
            if pid != group and os.getpgid(pid) == group:
                found.add(pid)
    return group, found


class RolledBackError(FailureError):
    """A change was not accepted, and the previous configuration is live again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a plan."""

    outcome: str
    generation: str | None  # the live one
    deferred: str | None = None  # why the change waits
    workers: Workers = Workers()


def apply(config: Config, plan: Plan, known: Workers) -> Result:
    """Make a plan live if that is due. `known` are the workers of the last tick.

    Raises:
        FailureError: nothing was changed, or what was changed is back (RolledBackError).
    """
    nginx = Nginx(config.nginx)
    context, template = template_context(config, plan.pools), load_template(config)
    generation = generation_for(context, template)
    current = nginx.read()
    live = nginx.live_or_restored(current)
    workers = nginx.workers(known, live)
    current_is_live = is_intact(current) and generation_of(current) == live.generation
    if current_is_live and generation == live.generation:
        nginx.tidy(current)
        return Result(outcome="unchanged", generation=generation, workers=workers)
    wanted = render(context, template)
    if nginx.reloads and current_is_live and membership(current) == membership(wanted):
        age = file_age_seconds(nginx.file)
        if wait := reason_to_wait(config.nginx, current, wanted, age, workers.draining):
            return Result(outcome="deferred", generation=live.generation, deferred=wait, workers=workers)
    if is_intact(current) and (failure := nginx.failed_lately(wanted)):
        raise FailureError(failure)
    complaint = nginx.test()
    # A file that was damaged, or lacks a new pool, may be what the complaint is about without being named in it.
    ours = not is_intact(current) or not all(f"\nupstream {pool.name} " in current for pool in config.pools)
    if complaint and not ours and str(nginx.file) not in complaint:
        raise FailureError(f"nothing changed, the configuration test fails already: {complaint}")
    try:
        nginx.publish(wanted, current, live)
    except FailureError as failed:
        if complaint and complaint in str(failed):
            raise FailureError(f"nothing published, the configuration test failed already: {complaint}") from failed
        raise
    return Result(outcome="reloaded" if nginx.reloads else "published", generation=generation, workers=workers)


def load_template(config: Config) -> str:
    """Return the upstream template: the operator's, or the one built in."""
    if not config.nginx.upstream_template:
        return WEIGHTS_TEMPLATE if config.nginx.balancer == "work" else UPSTREAM_TEMPLATE
    try:
        return Path(config.nginx.upstream_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FailureError(f"nginx.upstream_template: {error}: expected a readable file", EXIT_USAGE) from error


def file_age_seconds(path: Path) -> float:
    """Return how long ago a file was written; infinite when the clock has since gone back."""
    age = time.time() - path.stat().st_mtime
    return age if age >= 0 else math.inf


# --- Files: state, plan, status -------------------------------------------------------------------------


def write_atomically(path: Path, content: str | bytes, mode: int, *, sync: bool = True) -> None:
    """Replace a file in one step: readers see the old text or the new one; with `sync` a power cut keeps either, too.

    What the next tick writes anew goes without: a busy disk can take a second for each, and a tick has to end in nine.
    """
    put_in_place(stage(path, content, mode, sync=sync), path, sync=sync)


def stage(path: Path, content: str | bytes, mode: int, temporary: Path | None = None, *, sync: bool = True) -> Path:
    """Write what is to be put in place of a file into a hidden one beside it, and return that.

    Safe in a directory somebody else can write to: it neither follows links nor reuses a file it finds.
    """
    temporary = temporary or path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FailureError(f"{path} cannot be written: {error.strerror}") from error
    return temporary


def put_in_place(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Give a staged file its name, with `sync` for good."""
    try:
        temporary.replace(path)
        if sync:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FailureError(f"{path} cannot be written: {error.strerror}") from error


def decoded(content: bytes) -> str:
    """Return bytes as text, line ends as they are; what is not UTF-8 shows as such."""
    return content.decode(errors="replace")


def read_json(path: Path, max_bytes: int = 2**24) -> Any:
    """Read a JSON file that somebody else may have put there.

    Raises:
        FileNotFoundError: there is none.
        FailureError: it is not a regular file, too large, or not JSON.
    """
    try:
        return json.loads(read_file(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise FailureError(f"{path} is not JSON") from error


def read_file(path: Path, max_bytes: int = 2**24) -> bytes:
    """Read a file that somebody else may have put there.

    Raises:
        FileNotFoundError: there is none.
        FailureError: it is not a regular file, or too large.
    """
    try:
        # Neither follow a link nor wait for the far end of a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FailureError(f"{path} is not a regular file: remove it")
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise FailureError(f"{path} is larger than {max_bytes} bytes: remove it")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FailureError(f"{path} cannot be read: {error.strerror}") from error
    return content


@contextlib.contextmanager
def locked(path: Path, mode: int, wait_seconds: float = 0) -> Iterator[None]:
    """Hold a lock file; exit code 75 if another run keeps it. Who may open the file may hold it: `mode`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        raise FailureError(f"{path.parent}: {error.strerror}: expected a writable directory") from error
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise FailureError("another run holds the lock", EXIT_LOCKED) from error
                time.sleep(0.05)
        found = os.fstat(handle)
        # Root and the service's user share the one of the state directory; another file's other name stays as it is.
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            with contextlib.suppress(OSError):
                os.fchmod(handle, mode)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class State:
    """The state directory."""

    directory: Path

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the lock that every command takes which changes what is remembered."""
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise FailureError(f"{self.directory}: {error.strerror}: expected a writable directory") from error
        with locked(self.directory / "lock", 0o644, wait_seconds):
            yield

    def write(self, name: str, data: Any, *, sync: bool = False) -> None:
        """Write one JSON file."""
        write_atomically(self.directory / name, json.dumps(data, indent=1) + "\n", 0o644, sync=sync)

    def memory(self) -> dict[str, NodeMemory]:
        """Return what the last tick remembered, or nothing if there is no such file or it is damaged."""
        problems: list[str] = []
        try:
            raw = read_json(self.directory / "memory.json")
            if not isinstance(raw, dict):
                raise FailureError("memory.json is not a mapping")
            memory = {name: build(NodeMemory, value, name, problems) for name, value in raw.items()}
        except FileNotFoundError:
            return {}
        except FailureError as failure:
            problems, memory = [str(failure)], {}
        if problems:
            log(WARNING, f"memory of earlier ticks dropped, starting afresh: {printable(problems[0])}")
            return {}
        return memory

    def drained(self) -> set[str]:
        """Return the names drained by `drain`; if their file is damaged, those of the last tick."""
        path = self.directory / "drained.json"
        try:
            raw = read_json(path)
            if isinstance(raw, list) and all(isinstance(name, str) for name in raw):
                return set(raw)
            damage = f"{path} is not a list of node names"
        except FileNotFoundError:
            return set()
        except FailureError as failure:
            damage = str(failure)
        kept: set[str] = set()
        with contextlib.suppress(FileNotFoundError, FailureError):
            nodes = (node for pool in self.status().pools for node in pool.nodes)
            kept = {node.name for node in nodes if node.reason == DRAINED}
        log(WARNING, f"{damage}: what the last tick knew as drained stays so: {', '.join(sorted(kept)) or 'nothing'}")
        return kept

    def plan(self, config: Config) -> Plan:
        """Return the plan that `collect` left, validated."""
        try:
            return check_plan(read_json(self.directory / "plan.json"), config)
        except FileNotFoundError as error:
            raise FailureError(f"{self.directory / 'plan.json'} is missing: run collect first") from error

    def status(self) -> Status:
        """Return what the last tick recorded.

        Raises:
            FileNotFoundError: there was none yet.
            FailureError: it is damaged, or of another version.
        """
        path, problems = self.directory / "status.json", list[str]()
        status = build(Status, read_json(path), "status", problems)
        if problems:
            raise FailureError(f"{path} is not one of this version's: {printable(problems[0])}")
        assert isinstance(status, Status)  # tells the type checker what build() returned
        return status

    def last(self) -> Outcome | None:
        """Return what became of the last tick, without its nodes, or None where that is not known."""
        with contextlib.suppress(FileNotFoundError, FailureError):
            raw = read_json(self.directory / "status.json")
            names = [each.name for each in dataclasses.fields(Outcome)]
            known = {name: raw[name] for name in names if name in raw} if isinstance(raw, dict) else None
            outcome = build(Outcome, known, "status", [])
            return outcome if isinstance(outcome, Outcome) else None
        return None

    def workers(self) -> Workers:
        """Return nginx's workers as the last tick saw them, or none."""
        with contextlib.suppress(FileNotFoundError, FailureError):
            found = build(Workers, read_json(self.directory / "workers.json", max_bytes=2**18), "workers", [])
            return found if isinstance(found, Workers) else Workers()
        return Workers()

    def record(self, plan: Plan, result: Result, error: str | None, interval_seconds: float) -> None:
        """Write status.json: the plan, what became of it, and how the ticks went so far."""
        before, changed = self.last(), result.outcome in CHANGES
        totals = before.totals if before else Totals()
        well = error is None and result.outcome != "failed"
        self.write(
            "status.json",
            dataclasses.asdict(plan)
            | {
                "generation": result.generation,
                "applied": result.outcome in (*LIVE, "unchanged"),
                "outcome": result.outcome,
                "deferred": result.deferred,
                "draining_generations": result.workers.draining,
                "error": error and printable(error, 2000),
                "interval_seconds": interval_seconds,
                "succeeded_at": plan.decided_at if well else before and before.succeeded_at,
                "changed_at": timestamp() if changed else before and before.changed_at,
                "changed_outcome": result.outcome if changed else before and before.changed_outcome,
                "totals": dataclasses.asdict(totals) | {result.outcome: getattr(totals, result.outcome) + 1},
            },
        )
        if result.workers != self.workers():
            self.write("workers.json", dataclasses.asdict(result.workers))


# --- Record: the history of recent ticks, and the metrics -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """All that one `collect` saw and decided."""

    now: float  # seconds of the monotonic clock
    samples: Mapping[str, Sample]
    memory: Mapping[str, NodeMemory]  # what it began with
    drained: AbstractSet[str]
    last: Outcome | None  # what became of the tick before
    settled: bool  # whether what was decided then is live; so it is said to be where no tick has ended yet
    plan: Plan
    after: Mapping[str, NodeMemory]  # what the next tick begins with


# What the history has of a node, in this order; what it said of itself is between.
READING = tuple(each.name for each in dataclasses.fields(Reading))
HISTORY_HEAD = b'{"version":1,'
MAX_SEGMENT_BYTES = 2**25
COLUMNS = ("state", "weight", *READING, "seconds", "address", "answered", "error", "unresolved", "reason")


@dataclass(frozen=True, slots=True)
class History:
    """Recent ticks, one a line, for `explain`, `replay` and the status page.

    They are in segments of an hour at most: the present one is plain text, the earlier ones are compressed and
    numbered, and the oldest go as soon as all together would be larger than `max_bytes`.
    """

    directory: Path
    max_bytes: int

    @property
    def current(self) -> Path:
        """The segment that the next tick is added to."""
        return self.directory / "history.jsonl"

    def segments(self) -> list[Path]:
        """Return the earlier segments, oldest first."""
        name = re.compile(r"history-(\d{6,18})\.jsonl\.gz")
        found = [(int(match[1]), path) for path in self.directory.iterdir() if (match := name.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def add(self, tick: Tick) -> None:
        """Write down a tick."""
        try:
            if self.max_bytes and not self.has_room(time.time()):
                self.begin_segment(tick.memory)
            if self.max_bytes:
                self.append(json.dumps(history_line(tick), separators=(",", ":")))
            else:
                self.tidy(keep_bytes=0)
        except OSError as error:
            raise FailureError(f"{self.current} cannot be written: {error.strerror}") from error

    def has_room(self, now: float) -> bool:
        """Tell whether the present segment is ours, of this hour, and not too large: a fifth of all."""
        with contextlib.suppress(FileNotFoundError):
            found = self.current.lstat()
            ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
            limit = min(self.max_bytes // 5, MAX_SEGMENT_BYTES)
            return ours and found.st_mtime // 3600 == now // 3600 and found.st_size < limit
        return False

    def begin_segment(self, memory: Mapping[str, NodeMemory]) -> None:
        """Compress the present segment, and begin one from whose head on the ticks can be replayed."""
        import gzip

        content, previous = b"", None
        with contextlib.suppress(FileNotFoundError, FailureError):  # what cannot be read is given up
            content = read_file(self.current, max_bytes=2 * MAX_SEGMENT_BYTES)
        if content.startswith(HISTORY_HEAD):
            newest = [int(path.name.split("-")[1].split(".")[0]) for path in self.segments()[-1:]]
            previous = f"history-{max(newest, default=0) + 1:06d}.jsonl.gz"
            write_atomically(self.directory / previous, gzip.compress(content, 6), 0o644, sync=False)
        self.tidy(keep_bytes=self.max_bytes * 4 // 5)
        known = {name: dataclasses.asdict(each) for name, each in memory.items()}
        head = {"version": 1, "previous": previous, "columns": COLUMNS, "memory": known}
        write_atomically(self.current, json.dumps(head, separators=(",", ":")) + "\n", 0o644, sync=False)

    def tidy(self, keep_bytes: int) -> None:
        """Remove the oldest segments until the others are small enough; with 0, all of them."""
        left = keep_bytes
        for path in reversed(self.segments()):
            left -= path.lstat().st_size
            if left < 0:
                path.unlink()
        if not keep_bytes:
            self.current.unlink(missing_ok=True)

    def append(self, line: str) -> None:
        """Add a line; one that a full disk tore off before stays a line of its own."""
        handle = os.open(self.current, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            file.write(("\n" * torn + line + "\n").encode())


def history_line(tick: Tick) -> dict[str, Any]:
    """Return what the history keeps of a tick: all that went into it, what was decided, and what became of the last."""
    line: dict[str, Any] = {"at": tick.plan.decided_at, "now": round(tick.now, 3), "settled": tick.settled}
    if tick.drained:
        line["drained"] = sorted(tick.drained)
    if tick.last and (tick.last.outcome != "unchanged" or tick.last.error):
        names = ("outcome", "generation", "error", "deferred")
        line["before"] = {"at": tick.last.decided_at} | {name: getattr(tick.last, name) for name in names}
    line["pools"] = {
        pool.name: {
            node.name: history_row(node, tick.samples[node.name], tick.memory.get(node.name, NodeMemory()))
            for node in pool.nodes
        }
        for pool in tick.plan.pools
    }
    return line


def history_row(node: NodePlan, sample: Sample, was: NodeMemory) -> list[Any]:
    """Return what the history keeps of a node: the COLUMNS, without those at the end that say nothing."""
    moved = node.weight != node.previous_weight or node.state != "up" or not was.successes
    row = [node.state, node.weight]
    row += [getattr(sample.reading, name) if sample.reading else None for name in READING]
    row += [round(sample.seconds, 4), sample.address, None if sample.answered else False]
    row += [sample.error, sample.unresolved, node.reason if moved else None]
    while row[-1] is None:
        row.pop()
    return row


def metrics(config: Config, config_sha256: str, tick: Tick) -> str:
    """Return a tick in Prometheus' text format, for node_exporter's textfile collector.

    What became of a tick is known when the next one is read, so outcomes are those up to the tick before. Names as in
    https://prometheus.io/docs/practices/naming/.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    class Collected:
        def collect(self) -> Iterator[Metric]:
            yield family("build_info", "Version of vllm-nginx-lb.", {(__version__,): 1}, ["version"])
            yield family("config_info", "What config.yml has.", {(config_sha256,): 1}, ["sha256"])
            yield family("interval_seconds", "How often a tick shall come.", {(): config.interval_seconds})
            yield family(
                "last_tick_timestamp_seconds", "When the nodes were read.", {(): seconds_of(tick.plan.decided_at)}
            )
            yield from outcome_metrics(tick.last) if tick.last else ()
            yield from pool_metrics(config, tick.plan)
            yield from node_metrics(tick)

    registry = CollectorRegistry()
    registry.register(Collected())
    return generate_latest(registry).decode()


def family(
    name: str, about: str, values: Mapping[Any, float], labels: Sequence[str] = (), *, counter: bool = False
) -> Metric:
    """Return a metric with its values by their labels."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    found = (CounterMetricFamily if counter else GaugeMetricFamily)(f"vllm_nginx_lb_{name}", about, labels=labels)
    for each, value in values.items():
        found.add_metric(each, value)
    return found


def outcome_metrics(last: Outcome) -> Iterator[Metric]:
    """Yield what became of the last tick, and how those before it went. A time that is not known is left out."""
    succeeded = {(): seconds_of(last.succeeded_at)} if last.succeeded_at else {}
    changed = {(): seconds_of(last.changed_at)} if last.changed_at else {}
    live = dict.fromkeys(changed, last.changed_outcome in LIVE)
    totals = {(outcome,): getattr(last.totals, outcome) for outcome in OUTCOMES}
    changes = {(outcome,): getattr(last.totals, outcome) for outcome in CHANGES}
    yield family("last_tick_success", "Whether the last tick ended without a fault.", {(): last.error is None})
    yield family("last_success_timestamp_seconds", "When nodes were read for the last tick without a fault.", succeeded)
    yield family("last_reload_timestamp_seconds", "When what nginx serves changed, or a tick failed.", changed)
    yield family("last_reload_success", "Whether it changed.", live)
    yield family("ticks", "Ticks, by how they ended.", totals, ["outcome"], counter=True)
    yield family("reloads", "Ticks that changed what nginx serves, or failed.", changes, ["outcome"], counter=True)
    yield family("change_deferred", "Whether a change of weights waits.", {(): last.outcome == "deferred"})
    yield family(
        "draining_generations", "Generations of former nginx workers still alive.", {(): last.draining_generations}
    )


def pool_metrics(config: Config, plan: Plan) -> Iterator[Metric]:
    """Yield what is said of whole pools."""
    held = {(pool.name,): pool.held is not None for pool in plan.pools}
    lowest = {
        (pool.name, pool.policy): lowest_weight(pool, pool.nodes[0], config.policies)
        for pool in config.pools
        if pool.policy != "static"
    }
    yield family("pool_held", "Whether weights are held because no node would serve.", held, ["pool"])
    yield family("pool_lowest_weight", "The least weight of a node that serves.", lowest, ["pool", "policy"])


def node_metrics(tick: Tick) -> Iterator[Metric]:
    """Yield what is said of single nodes; what could not be read is left out."""
    labels = ["pool", "node"]
    nodes = {(pool.name, node.name): node for pool in tick.plan.pools for node in pool.nodes}
    readings = {key: reading for key in nodes if (reading := tick.samples[key[1]].reading)}

    def of_nodes(name: str, about: str, key: str) -> Metric:
        return family(f"node_{name}", about, {each: getattr(node, key) for each, node in nodes.items()}, labels)

    def of_readings(name: str, about: str, key: str, *, counter: bool = False) -> Metric:
        values = {each: getattr(reading, key) for each, reading in readings.items()}
        return family(f"node_{name}", about, values, labels, counter=counter)

    up = {each: node.state == "up" for each, node in nodes.items()}
    states = {(*each, state): node.state == state for each, node in nodes.items() for state in STATES}
    yield family("node_up", "Whether the node is up.", up, labels)
    yield family("node_state", "The node's state: one of them is 1.", states, [*labels, "state"])
    yield of_nodes("weight", "Decided weight; 0 is out of rotation.", "weight")
    yield of_nodes("scrape_duration_seconds", "How long it took to read the node.", "scrape_seconds")
    yield of_readings("kv_cache_usage_ratio", "Usage of the fullest engine's KV cache.", "kv_cache_usage")
    yield of_readings("requests_waiting", "Requests queued.", "waiting")
    yield of_readings("requests_running", "Requests in a batch.", "running")
    yield of_readings("preemptions", "Preemptions since the node started.", "preemptions", counter=True)


def seconds_of(at: str) -> float:
    """Return an RFC 3339 time as seconds since 1970; 0 if it is none."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# --- Log and tables -------------------------------------------------------------------------------------

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7


JOURNAL = "/run/systemd/journal/socket"


def log(priority: int, message: str, **fields: Any) -> None:
    """Write a line to stderr: for the journal with its priority, on a terminal without debug lines.

    In the journal `fields` can be searched for, as VLLM_NGINX_LB_NODE=node-a and the like.
    """
    journal = "JOURNAL_STREAM" in os.environ
    if fields and is_stderr_the_journal() and tell_journal(priority, message, fields):
        return
    with contextlib.suppress(OSError):  # a log that cannot be written must not stop what it would tell
        for line in message.splitlines():
            if journal:
                print(f"<{priority}>{line}", file=sys.stderr)
            elif priority <= INFO:
                print(line, file=sys.stderr)


def is_stderr_the_journal() -> bool:
    """Tell whether systemd has connected stderr to the journal, and nobody has redirected it since: systemd.exec(5)."""
    with contextlib.suppress(OSError):
        found = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


def tell_journal(priority: int, message: str, fields: Mapping[str, Any]) -> bool:
    """Send a line with fields to the journal; tell whether it was taken.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: a datagram of NAME=value lines, as no value of ours has a line break.
    """
    lines = {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "vllm-nginx-lb"}
    lines |= {f"VLLM_NGINX_LB_{name.upper()}": value for name, value in fields.items() if value is not None}
    entry = "".join(f"{name}={printable(str(value), 2000)}\n" for name, value in lines.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
            journal.settimeout(1)
            journal.sendto(entry.encode(), JOURNAL)
    except OSError:  # no systemd here, or not its socket
        return False
    return True


def log_changes(pools: Sequence[PoolPlan], memory: Mapping[str, NodeMemory], after: Mapping[str, NodeMemory]) -> None:
    """Log what this tick changed: a node's health as a warning, a weight as a notice."""
    for pool in pools:
        for node in pool.nodes:
            was, now_is = memory.get(node.name, NodeMemory()), after[node.name]
            fields = {"pool": pool.name, "node": node.name, "state": node.state, "weight": node.weight}
            lost = was.resolves and not now_is.resolves
            if lost or (node.error and (was.successes > 0 or was == NodeMemory() or was.up != now_is.up)):
                log(WARNING, f"{pool.name}/{node.name}: {node.state}: {node.reason}", **fields)
            if node.weight != node.previous_weight:
                before = "new" if node.previous_weight is None else node.previous_weight
                line = f"{pool.name}/{node.name}: weight {before} -> {node.weight}: {node.reason}"
                log(NOTICE, line, previous_weight=node.previous_weight, **fields)


def table(pools: Sequence[PoolPlan]) -> str:
    """Return the plan as a table for people."""
    rows: list[tuple[str, ...]] = [("POOL", "NODE", "STATE", "KV", "WAITING", "RUNNING", "WEIGHT", "REASON")]
    for pool in pools:
        for node in pool.nodes:
            kv = "-" if node.kv_cache_usage is None else shown_ratio(node.kv_cache_usage)
            counts = ["-" if value is None else str(value) for value in (node.waiting, node.running)]
            rows.append((pool.name, node.name, node.state, kv, *counts, str(node.weight), node.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


# --- Commands --------------------------------------------------------------------------------------------


def read_api_key(settings: Scrape) -> str | None:
    """Return the bearer token for /metrics, which no message ever shows."""
    if not settings.api_key_file:
        return None
    try:
        key = Path(settings.api_key_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise FailureError(f"scrape.api_key_file: {settings.api_key_file}: {why}", EXIT_USAGE) from error
    if not re.fullmatch(r"[!-~]+", key):
        raise FailureError(f"scrape.api_key_file: {settings.api_key_file}: expected one line with the key", EXIT_USAGE)
    return key


def check_ca_file(settings: Scrape) -> None:
    """Refuse a CA file that cannot be used: else every node with TLS would seem to be down."""
    try:
        if settings.ca_file:
            ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        problem = f"scrape.ca_file: {settings.ca_file}: {error.strerror}: expected certificates in PEM"
        raise FailureError(problem, EXIT_USAGE) from error


def look(config: Config, state: State) -> Tick:
    """Scrape and decide. Writes nothing."""
    check_ca_file(config.scrape)
    memory, last, drained = state.memory(), state.last(), state.drained()
    nodes = [node for pool in config.pools for node in pool.nodes]
    known = {node.name: memory.get(node.name, NodeMemory()) for node in nodes}
    addresses = {node.name: known[node.name].address for node in nodes if known[node.name].host == node.host}
    samples = scrape_all(nodes, config.scrape, read_api_key(config.scrape), addresses)
    now, settled = time.monotonic(), last is None or last.applied
    pools, after = decide(config, samples, memory, drained, now, settled=settled)
    plan = Plan(version=1, decided_at=timestamp(), pools=pools)
    return Tick(now, samples, memory, drained, last, settled, plan, after)


def timestamp() -> str:
    """Return the present time as RFC 3339 has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def collect_command(config: Config, state: State, config_file: Path) -> None:
    """Scrape, decide, leave the plan for apply, and write down what was seen."""
    # systemd's soft limit of 1,024 is for programs that use select().
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # fs.nr_open may have been lowered since
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tick = look(config, state)
    log_changes(tick.plan.pools, tick.memory, tick.after)
    state.write("plan.json", dataclasses.asdict(tick.plan))
    state.write("memory.json", {name: dataclasses.asdict(each) for name, each in tick.after.items()})
    config_sha256 = hashlib.sha256(config_file.read_bytes()).hexdigest()
    told = metrics(config, config_sha256, tick)
    writers: list[Callable[[], None]] = [
        lambda: write_atomically(state.directory / "metrics.prom", told, 0o644, sync=False),
        lambda: History(state.directory, config.history_max_bytes).add(tick),
    ]
    for write_down in writers:
        try:
            write_down()
        except FailureError as failure:  # the weights matter more, and either of these more than that both are there
            log(WARNING, str(failure))


def apply_command(config: Config, state: State) -> None:
    """Make the plan live and record how that went."""
    nginx, plan, known = Nginx(config.nginx), Plan(version=1, decided_at=timestamp()), state.workers()
    try:
        with locked(nginx.lock, 0o600):
            plan = state.plan(config)
            result = apply(config, plan, known)
    except FailureError as failure:
        if failure.code != EXIT_LOCKED:
            outcome = "rolled_back" if isinstance(failure, RolledBackError) else "failed"
            live = Live(None)
            with contextlib.suppress(FailureError):
                live = nginx.live()
            result = Result(outcome=outcome, generation=live.generation, workers=nginx.workers(known, live))
            try:
                state.record(plan, result, str(failure), config.interval_seconds)
            except FailureError as second:  # a full disk, say: it must not hide what came first
                log(ERROR, str(second))
        raise
    log_result(result, state)
    held = "; ".join(f"pool {pool.name}: {pool.held}" for pool in plan.pools if pool.held) or None
    state.record(plan, result, held, config.interval_seconds)
    if held:
        raise FailureError(held)


def log_result(result: Result, state: State) -> None:
    """Say what became of a plan; that it waits is said once, not in each tick."""
    if result.deferred:
        before = state.last()
        if before and re.sub(r"\d", "", before.deferred or "") == re.sub(r"\d", "", result.deferred):
            return
        log(NOTICE, f"deferred: {result.deferred}", outcome=result.outcome, generation=result.generation)
    else:
        priority = DEBUG if result.outcome == "unchanged" else NOTICE
        line = f"{result.outcome}: generation {result.generation}"
        log(priority, line, outcome=result.outcome, generation=result.generation)


def dry_run(config: Config, state: State) -> None:
    """Print what a tick would decide, and the difference it would make to the upstream file."""
    plan = look(config, state).plan
    print(table(plan.pools))
    wanted = render(template_context(config, plan.pools), load_template(config))
    current = Nginx(config.nginx).read()
    print("\n" + ("\n".join(difference(current, wanted)) or "The upstream file would not change."))


def view() -> ModuleType:
    """Return what people look at besides, from the file beside this one."""
    sys.modules.setdefault("vllm_nginx_lb", sys.modules[__name__])  # what it imports is this, not another copy
    sys.dont_write_bytecode = True  # nothing of ours appears beside programs
    try:
        import vllm_nginx_lb_view
    except ImportError as error:
        beside = Path(__file__).resolve().with_name("vllm_nginx_lb_view.py")
        problem = "is missing" if isinstance(error, ModuleNotFoundError) else "is of another version"
        raise FailureError(f"{beside} {problem}: copy it there, or use status --json") from error
    return vllm_nginx_lb_view


def status_command(state: State, *, as_json: bool, watch: bool) -> None:
    """Print the last decision. FailureError when the last tick without a fault is too old."""
    path = state.directory / "status.json"
    try:
        if not as_json:
            view().show_status(state, watch=watch)
            found: Outcome | None = state.status()
        else:
            print(json.dumps(read_json(path), indent=1))
            found = state.last()
    except FileNotFoundError as error:
        raise FailureError(f"{path} is missing: no tick has ended yet (systemctl start vllm-nginx-lb)") from error
    if found is None:
        raise FailureError(f"{path} is not one of this version's: the next tick writes it anew")
    if complaint := too_old(found, time.time()):
        raise FailureError(complaint)


def too_old(last: Outcome, now: float) -> str | None:
    """Return what is to be said if the last tick without a fault is older than three intervals, or yet to come."""
    age = now - seconds_of(last.succeeded_at or "")
    if -last.interval_seconds <= age <= 3 * last.interval_seconds:
        return None
    if age < 0:
        return (
            f"the last tick without a fault was at {last.succeeded_at}, which is yet to come: was the clock set back?"
        )
    when = (
        f"the last tick without a fault was {age:.0f} s ago" if last.succeeded_at else "no tick was without a fault yet"
    )
    due = f"one is due every {last.interval_seconds:g} s"
    return f"{when}, {due}: see journalctl -u vllm-nginx-lb, and whether vllm-nginx-lb.timer is active"


def check_config_command(config: Config) -> None:
    """Print the effective configuration. Keys are in files of their own, of which it shows the path."""
    nodes_up = {node.name: Sample("192.0.2.1", 0.0, error="-") for pool in config.pools for node in pool.nodes}
    pools, _ = decide(config, nodes_up, {}, set(), 0.0)
    render(template_context(config, pools), load_template(config))  # a faulty template shows here, not in the next tick
    print(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False), end="")


def drain_command(config: Config, state: State, name: str, *, drain: bool) -> None:
    """Take a node out of rotation until `undrain`, or end that; the next tick makes it so."""
    pool = next((pool for pool in config.pools if name in [node.name for node in pool.nodes]), None)
    if pool is None and not drain and name in state.drained():
        pool = Pool(name="gone", nodes=())  # removed while it was drained
    if pool is None:
        known = ", ".join(node.name for each in config.pools for node in each.nodes)
        raise FailureError(f"no node {shown(name)}: expected one of {known}", EXIT_USAGE)
    drained = state.drained()
    out = {node.name for node in pool.nodes if node.drain} | drained
    with contextlib.suppress(FileNotFoundError, FailureError):
        out |= {node.name for each in state.status().pools for node in each.nodes if node.state == "down"}
    if drain and not {node.name for node in pool.nodes} - out - {name}:
        raise FailureError(
            f"{name} is the last node of pool {pool.name} that serves: undrain or mend another one first"
        )
    if drain == (name in drained):
        print(f"{name} is {'already' if drain else 'not'} drained")
        return
    state.write("drained.json", sorted(drained ^ {name}), sync=True)
    print(f"{name} {'drained' if drain else 'undrained'}; the next tick makes it live, requests under way finish")


def rollback_command(config: Config, state: State) -> None:
    """Make the newest backup that differs from what is live, live again."""
    nginx = Nginx(config.nginx)
    with locked(nginx.lock, 0o600, wait_seconds=15):
        current, backups = nginx.read(), list(nginx.backups())
        live = nginx.live_or_restored(current)
        # What nginx runs is no way back, unless the file says something else.
        runs = live.generation if is_intact(current) and generation_of(current) == live.generation else None
        former = next((text for text in backups if text != current and generation_of(text) != runs), None)
        if former is None:
            damaged = len(nginx.copies("bak")) - len(backups)
            hint = f" ({damaged} damaged)" if damaged else ""
            raise FailureError(f"no backup beside {nginx.file}{hint}: nothing to go back to")
        nginx.publish(former, current, live)
        with contextlib.suppress(FileNotFoundError, FailureError):
            result = Result(outcome="rolled_back", generation=generation_of(former), workers=state.workers())
            plan = dataclasses.replace(state.status(), decided_at=timestamp())
            state.record(plan, result, "rolled back by the operator", config.interval_seconds)
    now_live = f"generation {generation_of(former)} is live"
    print(f"{now_live}; the next tick decides anew, so stop vllm-nginx-lb.timer to keep it")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    assert __doc__  # python -OO is not supported
    parser = argparse.ArgumentParser(prog="vllm-nginx-lb", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--config", type=Path, default=Path("/etc/vllm-nginx-lb/config.yml"), metavar="PATH")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="one tick: collect, decide, apply")
    run.add_argument("--dry-run", action="store_true", help="print the decision and the diff, change nothing")
    commands.add_parser("collect", help="scrape the nodes and write the plan (unprivileged)")
    commands.add_parser("apply", help="validate the plan and make it live (root)")
    status = commands.add_parser("status", help="show the last decision; exit code 1 when it is too old")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--watch", action="store_true", help="go on, until interrupted")
    explain = commands.add_parser("explain", help="show what moved a node's weight, and when")
    explain.add_argument("node", metavar="NODE")
    since = "since when: 30m, 6h, 2d, or a time such as 2026-11-26T10:00 (%(default)s)"
    explain.add_argument("--since", default="1h", metavar="WHEN", help=since)
    replay = commands.add_parser("replay", help="show what other settings would have made of recorded ticks")
    replay.add_argument("files", nargs="*", type=Path, metavar="FILE", help="history files (all of this host's)")
    replay.add_argument("--policy", choices=sorted(POLICIES), help="the policy of all pools")
    example = "a setting of config.yml, such as policies.stepped.max_running=16; may come several times"
    replay.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=example)
    commands.add_parser("check-config", help="validate and print the effective configuration")
    for name, words in (("drain", "take a node out of rotation"), ("undrain", "put it back")):
        commands.add_parser(name, help=words).add_argument("node", metavar="NODE")
    commands.add_parser("rollback", help="make the previous upstream file live again")
    return parser


def execute(options: argparse.Namespace) -> None:
    """Run one command."""
    config = load_config(options.config)
    state = State(Path(config.state_directory))
    match options.command:
        case "run" if options.dry_run:
            dry_run(config, state)
        case "run":
            with state.lock():
                collect_command(config, state, options.config)
                apply_command(config, state)
        case "collect":
            with state.lock():
                collect_command(config, state, options.config)
        case "apply":
            apply_command(config, state)
        case "status":
            status_command(state, as_json=options.json, watch=options.watch)
        case "explain":
            view().explain(config, state, options.node, options.since)
        case "replay":
            view().replay(options.config, state, options.files, policy=options.policy, changes=options.set)
        case "check-config":
            check_config_command(config)
        case "rollback":
            rollback_command(config, state)
        case command:
            with state.lock(wait_seconds=15):
                drain_command(config, state, options.node, drain=command == "drain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = make_parser().parse_args(arguments)  # which exits with code 2 on a usage error
    try:
        execute(options)
        sys.stdout.flush()
    except FailureError as failure:
        log(ERROR, str(failure))
        return failure.code
    except BrokenPipeError:  # the reader of our output has gone
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130  # as shells say it
    except OSError as error:  # a full disk behind our output, say
        log(ERROR, f"{error.filename or 'output'}: {error.strerror}")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
