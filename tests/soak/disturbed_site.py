"""A site with the faults of a schedule."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.integration.conftest import PYTHON, SCRIPT
from tests.packets import dropped
from tests.soak.schedule import DROP, STAND_INS
from tests.soak.stand_in import standing_in
from tests.soak.verdict import Outage, Verdict

if TYPE_CHECKING:
    from tests.soak.schedule import Event
    from tests.soak.simulated_site import Site

ACCELERATION = 20
TICKS, TICK_SECONDS = 180, 10 / ACCELERATION
FAIL_TIMEOUT_SECONDS = 1  # nginx's shortest: the default is 5
# A node with the largest flap count needs 32 good scrapes, and then two ticks of slow start.
TICKS_TO_RECOVER = 60
TICK_USUALLY_TAKES_SECONDS = 0.4


@dataclass
class DisturbedSite:
    """A site, the faults that it gets, and what was counted meanwhile."""

    site: Site
    verdict: Verdict = field(default_factory=Verdict)
    counts: Counter[str] = field(default_factory=Counter)
    locks: ExitStack = field(default_factory=ExitStack)
    ports: dict[str, ExitStack] = field(default_factory=dict)  # who has the port of a node instead, by node
    on: set[str] = field(default_factory=set)  # the present faults that are not a node's

    # --- faults ---------------------------------------------------------------------------------

    def begin(self, event: Event) -> None:
        """Let a fault begin."""
        self.counts["faults"] += 1
        if not event.begin:
            self.on.add(event.what)
            self.disturb(event)
            return
        self.began(event)
        self.site.machines[event.node].control(**event.begin)
        self.take_port(event)
        if not event.out:
            self.ended(event)

    def end(self, event: Event) -> None:
        """Let a fault end."""
        if not event.begin:
            self.on.remove(event.what)
            self.calm(event)
            return
        if not event.out:
            self.began(event)
        if event.node in self.ports:
            self.ports.pop(event.node).close()
        self.site.machines[event.node].control(**event.end)
        self.ended(event)

    def began(self, event: Event) -> None:
        """Note that requests to a node may fail from now on."""
        if event.out or event.what in STAND_INS:
            address = self.site.machines[event.node].address
            self.verdict.outages.append(Outage(event, address, time.monotonic()))

    def ended(self, event: Event) -> None:
        """Note that requests to a node may no longer fail."""
        for outage in self.verdict.outages:
            if outage.event is event:
                outage.ended = min(outage.ended, time.monotonic())

    def take_port(self, event: Event) -> None:
        """Put somebody else where a node has just closed its port, if the fault is so."""
        node = self.site.machines[event.node]
        if event.what == DROP:
            self.ports[event.node] = ExitStack()
            self.ports[event.node].enter_context(dropped(node.host, node.port))
        elif event.what in STAND_INS:
            self.ports[event.node] = ExitStack()
            self.ports[event.node].enter_context(standing_in(event.what, node.host, node.port))

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
            self.verdict.rotations.append((time.monotonic(), self.site.rotation()))

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
