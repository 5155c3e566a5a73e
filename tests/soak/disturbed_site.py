"""A site with the faults of a schedule, and the failed requests that these faults explain."""

from __future__ import annotations

import bisect
import fcntl
import math
import os
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.integration.conftest import PYTHON, SCRIPT
from tests.soak.packets import dropped
from tests.soak.schedule import DROP, EVERYWHERE, FAST_ERRORS

if TYPE_CHECKING:
    from tests.soak.clients import Answer
    from tests.soak.schedule import Event
    from tests.soak.simulated_site import Site

ACCELERATION = 20
TICKS, TICK_SECONDS = 180, 10 / ACCELERATION
FAIL_TIMEOUT_SECONDS = 60 // ACCELERATION
# Answers after which the role's nginx tries another node, and for how long. A 502 is its own, for a broken connection.
TRIED_AGAIN, TRIED_AGAIN_WITHIN_SECONDS = {502, 503}, 30
NOT_CONNECTED = "-"  # in the log, the connect time of a try that got no connection
# A node that is well again is asked at once. A request that was under way may still fail.
ASKED_AGAIN_WITHIN_SECONDS = 1
# A node with the largest flap count needs 32 good scrapes, and then two ticks of slow start.
TICKS_TO_RECOVER = 60
TICK_USUALLY_TAKES_SECONDS = 0.4


@dataclass
class Outage:
    """A fault of a node that its clients can see, from when to when on the monotonic clock."""

    what: str
    address: str
    began: float
    ended: float = math.inf

    def meets(self, began: float, ended: float) -> bool:
        """Tell whether the fault was on at some time between two times."""
        return self.began <= ended and began <= self.ended


@dataclass
class DisturbedSite:
    """A site, the faults that it gets, and what was counted meanwhile."""

    site: Site
    outages: dict[Event, Outage] = field(default_factory=dict)
    rotations: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    locks: ExitStack = field(default_factory=ExitStack)
    dropping: dict[str, ExitStack] = field(default_factory=dict)  # by node
    on: set[str] = field(default_factory=set)  # the present faults that are not a node's

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
            self.outages[event] = Outage(event.what, node.address, time.monotonic())
        node.control(**event.begin)
        if event.what == DROP:
            self.dropping[event.node] = ExitStack()
            self.dropping[event.node].enter_context(dropped(node.host, node.port))

    def end(self, event: Event) -> None:
        """Let a fault end."""
        if not event.begin:
            self.on.remove(event.what)
            self.calm(event)
            return
        if event.what == DROP:
            self.dropping.pop(event.node).close()
        self.site.machines[event.node].control(**event.end)
        if event.out:
            self.outages[event].ended = time.monotonic()

    def disturb(self, event: Event) -> None:
        """Begin a fault that is not a node's; tick() kills a tick."""
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
        """End a fault that is not a node's, unless it happens once."""
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
        if self.site.published_generation():
            self.rotations.append((time.monotonic(), self.site.rotation()))

    def play(self, schedule: list[Event]) -> None:
        """Run the ticks with the faults. As with the timer, no tick starts before the last one has ended."""
        clock = threading.Event()
        for tick in range(1, TICKS + 1):
            due = time.monotonic() + TICK_SECONDS
            ending = [event for event in schedule if event.ends == tick]
            for event in sorted(ending, key=lambda event: event.what != "lock"):  # the other ends need the lock
                self.end(event)
            beginning = [event for event in schedule if event.begins == tick]
            for event in beginning:
                self.begin(event)
            self.tick(kill=next((event for event in beginning if event.what == "kill"), None))
            clock.wait(due - time.monotonic())

    def recover(self) -> int | None:
        """Return after how many further ticks the weights are right; None if they never are."""
        for tick in range(1, TICKS_TO_RECOVER + 1):
            self.tick()
            if self.is_right():
                return tick
        return None

    def is_right(self) -> bool:
        """Tell whether every node is up with the weight of an idle node, and these weights are live."""
        [pool] = self.site.status()["pools"]
        right = all((node["state"], node["weight"]) == ("up", 100) for node in pool["nodes"])
        return right and len(self.site.rotation()) == len(self.site.machines) and self.site.is_settled()

    # --- the verdict --------------------------------------------------------------------------------

    def unexplained(self, failed: list[Answer]) -> list[str]:
        """Return a line for each failed request that no faulty node explains."""
        entries = self.site.entries()
        return [
            f"{answer} {entries.get(answer.request_id)} during "
            f"{[str(event) for event, each in self.outages.items() if each.meets(answer.began, answer.ended)]}"
            for answer in failed
            if answer.request_id not in entries or not self.is_explained(answer, entries[answer.request_id])
        ]

    def is_explained(self, answer: Answer, entry: dict[str, Any]) -> bool:
        """Tell whether a failed request reached only nodes with a fault.

        Where nginx tries another node, all nodes in rotation must have had a fault then or just before.
        """
        tried_again = entry["status"] in TRIED_AGAIN or last(entry["upstream_connect_time"]) == NOT_CONNECTED
        if not tried_again or entry["request_time"] >= TRIED_AGAIN_WITHIN_SECONDS:
            return self.was_out(last(entry["upstream_addr"]), answer.began, answer.ended)
        began = answer.began - ASKED_AGAIN_WITHIN_SECONDS
        return any(
            all(self.was_out(address, began, answer.ended) for address in rotation)
            for rotation in self.rotations_between(began, answer.ended)
        )

    def most_drawn(self, failed: list[Answer]) -> int:
        """Return how many requests failed at the node that failed most of them by answering fast."""
        entries, drawn = self.site.entries(), [0]
        for outage in self.outages.values():
            if outage.what in FAST_ERRORS:
                meanwhile = [each for each in failed if outage.meets(each.began, each.ended)]
                reached = [last(entries[each.request_id]["upstream_addr"]) for each in meanwhile if each.request_id]
                drawn.append(reached.count(outage.address))
        return max(drawn)

    def longest_return(self, answers: list[Answer]) -> float:
        """Return the longest time between the end of a fault of all nodes and the end of its last failed request.

        Failures count until the first request that begins after the end of the fault and is answered.
        """
        longest = 0.0
        for ended in [each.ended for each in self.outages.values() if each.what in EVERYWHERE]:
            after = sorted((each for each in answers if each.began > ended), key=lambda each: each.began)
            good = next((each.ended for each in after if each.problem is None), math.inf)
            longest = max(longest, *(each.ended - ended for each in after if each.problem and each.ended < good), 0.0)
        return longest

    def was_out(self, address: str, began: float, ended: float) -> bool:
        """Tell whether a node had a fault that its clients could see at some time between two."""
        return any(each.address == address and each.meets(began, ended) for each in self.outages.values())

    def rotations_between(self, began: float, ended: float) -> list[frozenset[str]]:
        """Return the sets of nodes that were in the upstream file at some time between two."""
        times = [time for time, _ in self.rotations]
        first, last = bisect.bisect(times, began) - 1, bisect.bisect(times, ended)
        return [rotation for _, rotation in self.rotations[max(0, first) : last + 1]]


def last(values: str) -> str:
    """Return the last try's value of a field of the access log."""
    return values.rpartition(", ")[2]
