"""The script beside a contestant: its configuration, and its ticks in time with the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.contestant import ContestantError, Running, Site
from benchmarks.installed import install
from benchmarks.processes import LOW_PRIORITY
from benchmarks.scenario import INTERVAL_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def script_config(site: Site, policy: str, *, known: bool = False) -> dict[str, Any]:
    """Return the part of the script's configuration that does not depend on the proxy.

    Times that decide weights are scaled. `known`: the operator has set the nodes' capacities.
    """
    return {
        "state_directory": str(site.directory / "state"),
        "interval_seconds": INTERVAL_SECONDS * site.scale,
        "scrape": {"timeout_seconds": max(0.5, 5 * site.scale)},
        "health": {"stale_after_seconds": max(1, 180 * site.scale)},
        "pools": [
            {
                "name": "llm_cluster",
                "policy": policy,
                "fail_timeout_seconds": max(1, round(60 * site.scale)),
                "nodes": [
                    {
                        "name": node.name,
                        "host": node.host,
                        "port": node.port,
                        "capacity": node.capacity if known else 1.0,
                    }
                    for node in site.backends
                ],
            }
        ],
    }


class Ticker:
    """Runs the script as its timer does, and counts reloads and processor time.

    Attributes:
        over: set it to end run().
        faults: what ticks printed that ended with another exit code than 0.
    """

    def __init__(self, config: Path, site: Site, running: Running) -> None:
        """Prepare; `running` is where the counts go."""
        self.config, self.site, self.running = config, site, running
        self.script = install(ROOT, site.directory / "script", sys.executable)
        self.over = threading.Event()
        self.faults: list[str] = []

    def run(self) -> None:
        """Tick every INTERVAL_SECONDS of the model until it is over."""
        due = time.monotonic()
        while True:
            due += INTERVAL_SECONDS * self.site.scale
            if self.over.wait(max(0.0, due - time.monotonic())):
                return
            self.tick()

    def tick(self) -> None:
        """Run the script once.

        Raises:
            ContestantError: it left no status.json.
        """
        with (self.site.directory / "ticks.log").open("ab+") as log:
            before = log.tell()
            process = subprocess.Popen(
                [*LOW_PRIORITY, sys.executable, str(self.script), "--config", str(self.config), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.running.balancer_seconds += usage.ru_utime + usage.ru_stime
            if process.returncode:
                log.seek(before)
                self.faults.append(log.read().decode(errors="replace").strip())
        with suppress(OSError, ValueError):
            found = json.loads((self.site.directory / "state" / "status.json").read_text())
            self.running.reloads += found["outcome"] == "reloaded"
            self.running.peak_draining = max(self.running.peak_draining, found["draining_generations"])
            return
        raise ContestantError(f"the script's first tick left no status: {self.faults[-1:]}")
