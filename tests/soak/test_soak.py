"""Half an hour of a site's life, twenty times faster: anything may fail but requests to healthy nodes."""

from __future__ import annotations

import bisect
import fcntl
import math
import os
import random
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import vllm_nginx_lb
from tests.integration.conftest import PYTHON, SCRIPT, wait_for
from tests.soak.clients import Answer, Clients
from tests.soak.schedule import Event, make_schedule
from tests.soak.simulated_site import WORKERS, Site, node_names, start_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ACCELERATION = 20
TICKS, TICK_SECONDS = 180, 10 / ACCELERATION
CLIENTS, MAX_TOKENS = 16, range(4, 60)
# Small caches: the load alone moves the weights, up to preemptions.
NODE_OPTIONS = ("--num-blocks=14", "--step-ms=20", "--prefill-token-ms=0.1")
FAIL_TIMEOUT_SECONDS = 60 // ACCELERATION
# What the role's nginx tries on another node, and for how long. A 502 is its own, for a connection that broke.
TRIED_AGAIN, TRIED_AGAIN_WITHIN_SECONDS = {502, 503}, 30
# A node that went down again and again needs 32 good scrapes; then two ticks to its full weight.
TICKS_TO_SETTLE = 60
TICK_USUALLY_TAKES_SECONDS = 0.4


@dataclass
class Outage:
    """When the clients of a node could see a fault of it. Times are the monotonic clock's."""

    address: str
    began: float
    ended: float = math.inf

    def meets(self, began: float, ended: float) -> bool:
        """Tell whether it was on at some time between two."""
        return self.began <= ended and began <= self.ended


@dataclass
class Soak:
    """A site, what is done to it, and what came of it."""

    site: Site
    outages: dict[Event, Outage] = field(default_factory=dict)
    rotations: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    locks: ExitStack = field(default_factory=ExitStack)
    on: set[str] = field(default_factory=set)  # the faults beside the nodes

    # --- faults ---------------------------------------------------------------------------------

    def begin(self, event: Event) -> None:
        """Let a fault begin."""
        self.counts["faults"] += 1
        if not event.begin:
            self.on.add(event.what)
            self.disturb(event)
            return
        node = self.site.machines[event.node]
        if event.out:
            self.outages[event] = Outage(node.address, time.monotonic())
        node.control(**event.begin)

    def end(self, event: Event) -> None:
        """Let a fault end."""
        if not event.begin:
            self.on.remove(event.what)
            self.calm(event)
            return
        self.site.machines[event.node].control(**event.end)
        if event.out:
            self.outages[event].ended = time.monotonic()

    def disturb(self, event: Event) -> None:
        """Do what goes wrong beside the nodes, but for the killing of a tick: see tick()."""
        site = self.site
        match event.what:
            case "edit":
                text = site.upstream.read_text()
                site.upstream.write_text(text.replace("max_fails=10", "max_fails=9").replace('"port":', '"port" :'))
            case "empty":
                site.upstream.write_text("")
            case "truncate":
                os.truncate(site.directory / "state" / event.file, 100)
            case "foreign reload":
                subprocess.run([*site.nginx, "-s", "reload"], check=False, capture_output=True)
            case "foreign fault":
                site.write_nginx("no_such_directive;")
            case "lock":
                file = self.locks.enter_context((site.directory / "state" / "lock").open())
                fcntl.flock(file, fcntl.LOCK_EX)
            case "drain":
                site.script("drain", event.node)
            case "remove":
                site.config["pools"][0]["nodes"] = [node for node in site.as_configured() if node["name"] != event.node]

    def calm(self, event: Event) -> None:
        """End what went wrong beside the nodes, where it does not happen once."""
        match event.what:
            case "foreign fault":
                self.site.write_nginx()
            case "lock":
                self.locks.close()
            case "drain":
                self.site.script("undrain", event.node)
            case "remove":
                self.site.config["pools"][0]["nodes"] = self.site.as_configured()

    # --- ticks ------------------------------------------------------------------------------------

    def tick(self, kill: Event | None = None) -> None:
        """Run a tick, to its end or until it is killed."""
        self.counts["ticks"] += 1
        if kill:
            command = [PYTHON, str(SCRIPT), "--config", str(self.site.write_config()), "run"]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                threading.Timer(kill.moment * TICK_USUALLY_TAKES_SECONDS, process.kill).start()
                process.communicate(timeout=60)
            self.counts[f"exit {process.returncode}"] += 1
        else:
            done = self.site.script("run")
            self.counts[f"exit {done.returncode}"] += 1
            assert done.returncode in ({75} if "lock" in self.on else {0, 1}), done.stderr
            if done.returncode != 75:
                outcome = self.site.status()["outcome"]
                self.counts[outcome] += 1
                assert outcome not in {"failed", "rolled_back"} or "foreign fault" in self.on, done.stderr
        if vllm_nginx_lb.is_intact(self.site.upstream.read_text()):
            self.rotations.append((time.monotonic(), self.site.rotation()))

    def play(self, schedule: list[Event]) -> None:
        """Run the ticks with the faults, as the timer does, which starts no tick before the last has ended."""
        clock = threading.Event()
        for tick in range(1, TICKS + 1):
            due = time.monotonic() + TICK_SECONDS
            ending = [event for event in schedule if event.ends == tick]
            for event in sorted(ending, key=lambda event: event.what != "lock"):  # which others wait for
                self.end(event)
            beginning = [event for event in schedule if event.begins == tick]
            for event in beginning:
                self.begin(event)
            self.tick(kill=next((event for event in beginning if event.what == "kill"), None))
            clock.wait(due - time.monotonic())

    def settle(self) -> int | None:
        """Return after how many more ticks the weights are right, if ever."""
        for tick in range(1, TICKS_TO_SETTLE + 1):
            self.tick()
            if self.is_right():
                return tick
        return None

    def is_right(self) -> bool:
        """Tell whether every node is up with the weight of an idle one, and that is live."""
        [pool] = self.site.status()["pools"]
        right = all((node["state"], node["weight"]) == ("up", 100) for node in pool["nodes"])
        return right and len(self.site.rotation()) == len(self.site.machines) and self.site.is_settled()

    # --- the verdict --------------------------------------------------------------------------------

    def unexplained(self, failed: list[Answer]) -> list[str]:
        """Return those failed requests that cannot be put down to a faulty node, in words."""
        entries = self.site.entries()
        return [
            f"{answer} {entries.get(answer.request_id)} during "
            f"{[str(event) for event, each in self.outages.items() if each.meets(answer.began, answer.ended)]}"
            for answer in failed
            if answer.request_id not in entries or not self.is_explained(answer, entries[answer.request_id])
        ]

    def is_explained(self, answer: Answer, entry: dict[str, Any]) -> bool:
        """Tell whether a failed request met nothing but nodes that were out.

        What nginx tries again, it must have had no healthy node for: every one in rotation was out, or just had been.
        """
        if entry["status"] not in TRIED_AGAIN or entry["request_time"] >= TRIED_AGAIN_WITHIN_SECONDS:
            return self.was_out(entry["upstream_addr"].split(", ")[-1], answer.began, answer.ended)
        began = answer.began - FAIL_TIMEOUT_SECONDS
        return any(
            all(self.was_out(address, began, answer.ended) for address in rotation)
            for rotation in self.rotations_between(began, answer.ended)
        )

    def was_out(self, address: str, began: float, ended: float) -> bool:
        """Tell whether a node had a fault that its clients could see at some time between two."""
        return any(each.address == address and each.meets(began, ended) for each in self.outages.values())

    def rotations_between(self, began: float, ended: float) -> list[frozenset[str]]:
        """Return the sets of nodes that were in the upstream file at some time between two."""
        times = [time for time, _ in self.rotations]
        first, last = bisect.bisect(times, began) - 1, bisect.bisect(times, ended)
        return [rotation for _, rotation in self.rotations[max(0, first) : last + 1]]


def counted(counts: Counter[Any]) -> str:
    """Return counts in one line."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def scaled_config(site: Site) -> None:
    """Divide the times of the defaults by the acceleration, but for those that this machine must keep to."""
    site.config["scrape"] = {"timeout_seconds": 0.5}
    site.config["nginx"] |= {"min_reload_interval_seconds": 30 / ACCELERATION, "confirm_timeout_seconds": 5}
    site.config["health"] = {"stale_after_seconds": 180 / ACCELERATION}
    site.config["pools"][0] |= {"fail_timeout_seconds": FAIL_TIMEOUT_SECONDS}


@contextmanager
def noting(note: str) -> Iterator[None]:
    """Add a note to whatever fails."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


@pytest.mark.parametrize(
    ("balancer", "hosts"),
    [
        ("upstream", ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")),
        ("work", ("127.0.0.10", "127.0.0.11", "127.0.0.12", "127.0.0.13")),
    ],
    ids=["upstream", "work"],
)
def test_no_request_to_a_healthy_node_fails(
    tmp_path: Path,
    heard: list[str],
    seed: int,
    record_property: Callable[[str, object], None],
    balancer: str,
    hosts: tuple[str, ...],
) -> None:
    schedule = make_schedule(seed, node_names(hosts), TICKS)
    with (
        noting("\n".join([f"SOAK_SEED={seed}:", *map(str, schedule)])),
        start_site(tmp_path, heard, hosts, NODE_OPTIONS, balancer) as site,
        Clients(site.ingress_port) as clients,
    ):
        scaled_config(site)
        soak, master = Soak(site), site.master_pid
        soak.tick()
        wait_for(site.is_settled)
        clients.keep_busy(CLIENTS, MAX_TOKENS, random.Random(seed))  # noqa: S311 - to be repeated, not to be secret
        soak.play(schedule)
        clients.finish()
        settled_after = soak.settle()

        failed = [answer for answer in clients.answers if answer.problem]
        unexplained = soak.unexplained(failed)
        record_property(
            f"soak on {balancer}, seed {seed}",
            f"{len(clients.answers)} requests, {len(failed)} failed "
            f"({counted(Counter(answer.problem for answer in failed))}), {len(unexplained)} of them at healthy nodes; "
            f"{counted(soak.counts)}; weights right after {settled_after} more",
        )
        assert not unexplained, "\n".join(unexplained[:5])
        assert settled_after is not None, f"{site.status()}\n{heard[-10:]}"
        assert site.master_pid == master
        wait_for(lambda: len(site.worker_pids()) == WORKERS)
        assert not list(site.upstream.parent.glob(".*.new")), "a temporary file is left"
        assert subprocess.run([*site.nginx, "-t", "-q"], check=False).returncode == 0
