"""Contestants: nginx with the weights of the script, published by reloads."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.proxies.nginx import Nginx, command
from benchmarks.proxies.script import Ticker, script_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.contestant import Running, Site


class ScriptWeights(Nginx):
    """An nginx whose weights the script decides and publishes by a reload."""

    def __init__(
        self, name: str, label: str, policy: str, *, known: bool = False, reload_limits: dict[str, float] | None = None
    ) -> None:
        """Decide by a policy of the script.

        `known`: the operator has set the nodes' capacities. `reload_limits`: settings of `nginx` in the script's
        configuration, in seconds of the model where they are times.
        """
        super().__init__(name, label, "least_conn")
        self.policy, self.known, self.reload_limits = policy, known, reload_limits or {}

    @contextmanager
    def serve(self, site: Site) -> Iterator[Running]:
        """Run nginx, and the script's ticks beside it."""
        config = site.directory / "config.yml"
        config.write_text(json.dumps(self.script_config(site)))
        with super().serve(site) as running:
            ticker = Ticker(config, site, running)
            ticker.tick()  # as the role does, before it starts the timer
            running.reloads = 0
            thread = threading.Thread(target=ticker.run)
            thread.start()
            try:
                yield running
            finally:
                ticker.over.set()
                thread.join()
            if ticker.faults:
                print(f"{self.name}: {len(ticker.faults)} ticks failed, the last one: {ticker.faults[-1]}")

    def script_config(self, site: Site) -> dict[str, Any]:
        """Return the script's configuration for this site."""
        nginx = command(site.directory)
        limits = {"min_reload_interval_seconds": 30.0, **self.reload_limits}
        limits["min_reload_interval_seconds"] *= site.scale
        return script_config(site, self.policy, known=self.known) | {
            "nginx": {
                "upstream_file": str(site.directory / "upstream.conf"),
                "test_command": [*nginx, "-t", "-q"],
                "reload_command": [*nginx, "-s", "reload"],
                "pid_file": str(site.directory / "nginx.pid"),
                "confirm_url": f"http://127.0.0.1:{site.status_port}/generation",
                **limits,
            }
        }
