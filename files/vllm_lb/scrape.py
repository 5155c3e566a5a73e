# SPDX-License-Identifier: Apache-2.0
"""Scraping every node at once, each under its own deadline."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_lb.addresses import canonical, is_ip
from vllm_lb.causes import ScrapeCause
from vllm_lb.discovery import resolve
from vllm_lb.fetch import broken_off, fetch_metrics
from vllm_lb.network import Fault, fault_of
from vllm_lb.observation import Sample
from vllm_lb.vllm_metrics import UnreadableError, parse_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_lb.observation import Reading
    from vllm_lb.settings import Node, Scrape

# A scrape without an answer after this many seconds waits for the network, not for a processor. It then no longer
# counts towards scrape.workers, so that dead nodes do not delay live ones.
BLOCKED_AFTER_SECONDS = 0.1


@dataclass(slots=True)
class Job:
    """A scrape under way. Its thread writes `address` and the fields after `started`; the main thread reads them."""

    node: Node
    address: str | None
    started: float  # seconds of the monotonic clock
    answered: bool = False
    unresolved: str | None = None

    def mark_answered(self) -> None:
        """Note that the node has begun to answer."""
        self.answered = True

    def sample(self, reading: Reading | None, fault: Fault | tuple[None, None] = (None, None)) -> Sample:
        """Return the sample of this scrape."""
        cause, error = fault
        seconds = time.monotonic() - self.started
        return Sample(self.address, seconds, reading, error, cause, self.answered, self.unresolved)

    def timeout(self, settings: Scrape) -> Fault:
        """Return the fault of a scrape that reached its deadline."""
        complete = "complete " if self.answered else ""
        return ScrapeCause.TIMEOUT, f"no {complete}answer within {settings.timeout_seconds:g} s"


Results = queue.SimpleQueue[tuple[Job, Sample]]


def scrape_all(
    nodes: Sequence[Node], settings: Scrape, api_keys: Sequence[str], known: Mapping[str, str | None]
) -> dict[str, Sample]:
    """Scrape every node in threads; return a sample of each, whatever happens.

    A thread whose node still drips bytes at the deadline is left behind; it is a daemon and ends with the process.
    `api_keys` has the present key and the former one, as far as there are any. `known` has the last addresses, for
    names that do not resolve now.
    """
    import requests  # noqa: F401 - imported here once, not in many threads at once

    results: Results = queue.SimpleQueue()
    pending, active, samples = deque(nodes), dict[str, Job](), dict[str, Sample]()
    while pending or active:
        now = time.monotonic()
        for job in [job for job in active.values() if now - job.started > settings.timeout_seconds]:
            del active[job.node.name]
            samples[job.node.name] = job.sample(None, job.timeout(settings))
        busy = sum(job.answered or now - job.started < BLOCKED_AFTER_SECONDS for job in active.values())
        for _ in range(min(len(pending), settings.workers - busy)):
            node = pending.popleft()
            address = canonical(node.host) if is_ip(node.host) else known.get(node.name)
            job = active[node.name] = Job(node, address, now)
            try:
                threading.Thread(target=scrape_one, args=(job, settings, api_keys, results), daemon=True).start()
            except RuntimeError:
                job.mark_answered()  # a limit of this host is no fault of the node
                results.put((job, job.sample(None, (ScrapeCause.OWN_LIMIT, "no thread can be started"))))
        with contextlib.suppress(queue.Empty):
            while active:
                job, sample = results.get(timeout=BLOCKED_AFTER_SECONDS / 2)
                if active.pop(job.node.name, None):
                    samples[job.node.name] = sample
                if pending:
                    break
    return samples


def fetch_with_keys(job: Job, address: str, settings: Scrape, api_keys: Sequence[str]) -> bytes:
    """GET the metrics of a node. One that refuses the present key is asked once more with the former one.

    Raises:
        Exception: see fetch_metrics.
    """
    present, *former = api_keys or (None,)
    try:
        return fetch_metrics(job.node, address, settings, present, job.mark_answered)
    except UnreadableError as unreadable:
        if not former or unreadable.cause != ScrapeCause.UNAUTHORIZED:
            raise
    return fetch_metrics(job.node, address, settings, former[0], job.mark_answered)


def scrape_one(job: Job, settings: Scrape, api_keys: Sequence[str], results: Results) -> None:
    """Resolve and scrape one node, and put its sample on the queue, whatever happens."""
    import requests
    import urllib3

    reading: Reading | None = None
    fault: Fault | tuple[None, None] = (None, None)
    try:
        job.address, job.unresolved = resolve(job.node, job.address, settings.timeout_seconds / 3)
        page = fetch_with_keys(job, job.address, settings, api_keys)
        reading, left_out = parse_metrics(page)
        fault = left_out or fault
    except UnreadableError as unreadable:
        fault = unreadable.cause, str(unreadable)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        fault = job.timeout(settings)
    except (OSError, requests.RequestException) as error:
        fault = fault_of(error)
        job.answered = job.answered or fault[0] == ScrapeCause.OWN_LIMIT
    except urllib3.exceptions.HTTPError:  # requests does not translate what happens while the body is read
        fault = broken_off().cause, str(broken_off())
    except Exception as error:  # noqa: BLE001 - a node must not be able to end the tick
        fault = ScrapeCause.UNEXPECTED, f"unexpected {type(error).__name__}"
    results.put((job, job.sample(reading, fault)))
