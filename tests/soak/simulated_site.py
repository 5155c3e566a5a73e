"""A small site as in production: simulated nodes as processes, nginx with the role's server file, and the script."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import string
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from tests.integration.conftest import LOAD_LUA, SEED, Stack, free_port, wait_for
from tests.integration.rendered import SERVER, host_variables, install_parts, parts_task, run_play
from vllm_lb.backups import Backups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
SHUTTING_DOWN = b"nginx: worker process is shutting down"


@dataclass(frozen=True)
class Node:
    """A simulated node with an address of its own, so that no other connection uses its port while it is closed."""

    name: str
    host: str
    port: int
    control_port: int

    @property
    def address(self) -> str:
        """The node's address in nginx's log."""
        return f"{self.host}:{self.port}"

    def control(self, **settings: object) -> dict[str, Any]:
        """Change settings, and return the node's true state."""
        url = f"http://{self.host}:{self.control_port}/control"
        answer = requests.put(url, json=settings, timeout=10)
        assert answer.status_code == 200, f"{self.name}: {answer.text}"
        return dict(answer.json())


@contextlib.contextmanager
def start_node(name: str, host: str, options: Sequence[str], log: Path) -> Iterator[Node]:
    """Run a node, and end it by its PID."""
    command = [sys.executable, "-m", "simulator", "--name", name, "--host", host, "--port=0", "--control-port=0"]
    with (
        log.open("w") as errors,
        subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout
            ports = [int(process.stdout.readline().rpartition(":")[2]) for _ in range(2)]
            yield Node(name, host, *ports)
        finally:
            process.terminate()


@dataclass
class Site(Stack):
    """An ingress host and its nodes."""

    machines: dict[str, Node] = field(default_factory=dict)
    balancer: str = "upstream"

    @property
    def master_pid(self) -> str:
        """The process id of nginx's master."""
        return (self.directory / "nginx.pid").read_text().strip()

    def write_nginx(self, extra: str = "") -> None:
        """Write nginx.conf around the role's server; `extra` is what others configure in the same nginx."""
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {self.directory}/{kind};" for kind in kinds)
        (self.directory / "nginx.conf").write_text(f"""
            {LOAD_LUA} pid nginx.pid; error_log error.log info; worker_processes {WORKERS};
            events {{ worker_connections 1024; }}
            http {{
                access_log off; {temporary}
                include {self.directory / SERVER};
                {extra}
            }}""")

    def as_configured(self) -> list[dict[str, object]]:
        """Return the nodes of the script's configuration, all of them."""
        return [{"name": node.name, "host": node.host, "port": node.port} for node in self.machines.values()]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the entries of the access log by request id."""
        text = (self.directory / "upstream_trace.log").read_text()
        return {entry["request_id"]: entry for entry in map(json.loads, text.splitlines())}

    def rotation(self) -> frozenset[str]:
        """Return the addresses of the published file that get requests."""
        if self.balancer == "work":
            [pool] = json.loads(self.upstream.read_text())["pools"]
            return frozenset(f"{node['address']}:{node['port']}" for node in pool["nodes"] if node["weight"])
        found = re.findall(r"server (\S+) (\S+)", self.upstream.read_text())
        return frozenset(address for address, weight in found if weight != "down")

    def live_weight(self, node: Node) -> int:
        """Return the weight that the upstream file gives a node."""
        found = re.search(rf"server {re.escape(node.address)} weight=(\d+)", self.upstream.read_text())
        return int(found[1]) if found else 0

    def is_settled(self) -> bool:
        """Tell whether file, nginx and status have one generation, and no old worker is left."""
        if len(self.worker_pids()) != WORKERS:
            return False
        published, status, served = self.published_generation(), self.status(), self.generation()
        return published is not None and status["generation"] == published == served

    def published_generation(self) -> str | None:
        """Return the generation of the published file, or None if the script did not write it as it is."""
        record = Backups(self.upstream).record_of(self.upstream.read_text())
        return record.generation if record else None

    def draining_generations(self) -> int:
        """Count the reloads whose old workers still drain, by the start times of these workers."""
        started = sorted(filter(None, map(start_of_draining, self.worker_pids())))
        return sum(after - before > TICKS_APART for before, after in itertools.pairwise([-math.inf, *started]))


TICKS_APART = os.sysconf("SC_CLK_TCK") // 2  # half a second: workers of one reload start within less


def start_of_draining(pid: str) -> int | None:
    """Return when a worker was started, in clock ticks since boot, if it is one that is shutting down."""
    with contextlib.suppress(OSError):
        process = Path("/proc", pid)
        if process.joinpath("cmdline").read_bytes().startswith(SHUTTING_DOWN):
            return int(process.joinpath("stat").read_text().rpartition(")")[2].split()[19])
    return None


def write_server(site: Site) -> None:
    """Let Ansible write the role's parts of nginx's configuration."""
    folder = site.directory / "ansible"
    folder.mkdir()
    settings = {
        "ansible_connection": "local",
        "nginx_ingress_listen_port": site.ingress_port,
        "nginx_ingress_status_port": site.status_port,
        "nginx_ingress_balancer": site.balancer,
    }
    nodes = {node.name: {"ansible_host": node.host, "vllm_port": node.port} for node in site.machines.values()}
    inventory = {"ingress": {"hosts": {"entry": settings}}, "vllm": {"hosts": nodes}}
    rendered = folder / "parts.json"
    tasks: list[dict[str, Any]] = [
        {"import_role": {"name": "nginx_ingress", "tasks_from": "preflight.yml"}},
        parts_task(str(rendered)),
    ]
    run_play(folder, inventory, host_variables() | {"__nginx_ingress_ipv6": {"stat": {"exists": False}}}, tasks)
    published = {f"/etc/nginx/vllm-nginx-lb/{name}": str(site.upstream) for name in ("upstream.conf", "weights.json")}
    readings = {"/var/lib/vllm-nginx-lb/readings.json": str(site.directory / "state" / "readings.json")}
    install_parts(rendered, site.directory, published | readings)


def node_names(hosts: Sequence[str]) -> list[str]:
    """Return the names of the nodes on these addresses: node-a and so on."""
    return [f"node-{letter}" for letter, _ in zip(string.ascii_lowercase, hosts, strict=False)]


@contextlib.contextmanager
def start_site(
    directory: Path, heard: list[str], hosts: Sequence[str], options: Sequence[str] = (), balancer: str = "upstream"
) -> Iterator[Site]:
    """Start a node on each host address and nginx in front of them; end all of it afterwards."""
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary, "nginx is missing: make system-packages installs it"
    (directory / "upstream").mkdir()
    with contextlib.ExitStack() as running:
        site = Site(directory, [], free_port(), free_port(), binary, heard=heard, balancer=balancer)
        for name, host in zip(node_names(hosts), hosts, strict=True):
            site.machines[name] = running.enter_context(start_node(name, host, options, directory / f"{name}.log"))
        site.config = {
            "state_directory": str(directory / "state"),
            "nginx": {
                "balancer": balancer,
                "upstream_file": str(site.upstream),
                "test_command": [*site.nginx, "-t", "-q"],
                "reload_command": [*site.nginx, "-s", "reload"],
                "confirm_url": f"http://127.0.0.1:{site.status_port}/generation",
            },
            "pools": [{"name": "llm_cluster", "policy": "stepped", "nodes": site.as_configured()}],
        }
        if balancer == "upstream":
            site.upstream.write_text(SEED)
        write_server(site)
        site.write_nginx()
        master = running.enter_context(
            subprocess.Popen([*site.nginx, "-g", "daemon off;"], stderr=subprocess.DEVNULL, start_new_session=True)
        )
        running.callback(master.send_signal, signal.SIGTERM)
        wait_for(lambda: master.poll() is None and (directory / "nginx.pid").exists())
        yield site
