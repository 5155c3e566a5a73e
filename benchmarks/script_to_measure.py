"""An installed script with simulated nodes and an ingress, and the commands of it that tick.py measures.

Standard library only, as tick.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cost import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDING = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "vllm-0.32.0-busy.txt"
# A half of a tick, run from a module. A bare half writes no history, no metrics and no totals: these lines switch them
# off, by half.
TICK = "import sys; sys.path.insert(0, sys.argv.pop(1)); {}from vllm_lb.commands import main; sys.exit(main())"
NO_TOTALS = "import vllm_lb.state as s; s.State.last = lambda _: None; "
BARE = {
    "collect": NO_TOTALS + "import vllm_lb.collect as c; c.History.add = lambda *_: None; c.metrics = lambda *_: ''; ",
    "apply": NO_TOTALS,
}
# The command for the script of one file, which a checkout of version 0.1.0 has.
FORMER_TICK = "import sys; sys.path.insert(0, sys.argv.pop(1)); import vllm_nginx_lb as lb; {}sys.exit(lb.main())"
FORMER_BARE = dict.fromkeys(
    BARE, "lb.History.add = lambda *_: None; lb.metrics = lambda *_: ''; lb.State.last = lambda _: None; "
)

NGINX_CONF = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    map_hash_bucket_size 256;
    include upstream.conf;
    server {{
        listen {node_port};
        location = /metrics {{ default_type "text/plain; version=1.0.0"; alias {recording}; }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location = /generation {{ default_type text/plain; return 200 "$vllm_nginx_lb_generation $pid\\n"; }}
    }}
}}
"""


@dataclass(frozen=True)
class Script:
    """A script to measure, with a folder, an nginx and two ports of its own."""

    name: str
    python: str
    directory: Path
    entry: Path
    node_port: int
    status_port: int

    def config(self, nodes: int) -> Path:
        """Write a configuration with this many nodes, each at an address of its own, and return its path."""
        nginx = ["nginx", "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]
        config = {
            "state_directory": str(self.directory / f"state-{nodes}"),
            "nginx": {
                "upstream_file": str(self.directory / "upstream.conf"),
                "test_command": [*nginx, "-t", "-q"],
                "reload_command": [*nginx, "-s", "reload"],
                "confirm_url": f"http://127.0.0.1:{self.status_port}/generation",
                "min_reload_interval_seconds": 0,
            },
            "pools": [
                {
                    "name": "llm_cluster",
                    "nodes": [
                        {"name": f"node-{i}", "host": f"127.1.{i // 250}.{i % 250 + 1}", "port": self.node_port}
                        for i in range(nodes)
                    ],
                }
            ],
        }
        path = self.directory / f"config-{nodes}.yml"
        path.write_text(json.dumps(config))
        return path

    def command(self, nodes: int, command: str = "run") -> list[str]:
        """Return the command line of a tick over this many nodes, or of another command."""
        return [self.python, str(self.entry), "--config", str(self.config(nodes)), command]

    def version(self) -> list[str]:
        """Return the command line that prints the version."""
        return [self.python, str(self.entry), "--version"]

    def halves(self, *, bare: bool) -> list[list[str]]:
        """Return the command lines of both halves of a tick over 4 nodes; `bare`: one that records nothing."""
        is_package = (self.entry.parent / "vllm_lb").is_dir()
        program, changes = (TICK, BARE) if is_package else (FORMER_TICK, FORMER_BARE)
        return [
            [
                *(self.python, "-B", "-c", program.format(change if bare else ""), str(self.entry.parent)),
                *self.command(4, half)[2:],
            ]
            for half, change in changes.items()
        ]

    @contextlib.contextmanager
    def nginx(self) -> Iterator[None]:
        """Run nginx, and wait until a first tick over 4 nodes has published."""
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            sys.exit("nginx is missing: tools/system-packages bench installs it")
        conf = NGINX_CONF.format(node_port=self.node_port, status_port=self.status_port, recording=RECORDING)
        (self.directory / "nginx.conf").write_text(conf)
        (self.directory / "upstream.conf").write_text('map "" $vllm_nginx_lb_generation { default "seed"; }\n')
        server = subprocess.Popen([program, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")])
        try:
            deadline = time.monotonic() + 10
            while subprocess.run(self.command(4), capture_output=True, check=False).returncode:
                if time.monotonic() > deadline:
                    sys.exit(f"{self.name}: no tick over 4 nodes ends well: {measure(self.command(4))}")
            yield
        finally:
            server.terminate()
            server.wait(10)
