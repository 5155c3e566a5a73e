"""A real nginx on loopback, nodes that answer whatever a test wants, and the script as a process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import heard, told
from tests.integration.ports import free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "files" / "vllm_nginx_lb.py"
# SCRIPT_PYTHON=/usr/bin/python3 tests the script with the libraries of Debian's own Python.
PYTHON = os.environ.get("SCRIPT_PYTHON", sys.executable)
__all__ = ["free_port", "heard", "told"]  # fixtures, and what other tests import from here
# What an nginx needs that runs the role's Lua. Its workers run as root, because only root may read a test's folder.
LUA = ROOT / "roles" / "nginx_ingress" / "files" / "lua"
LOAD_LUA = "".join(
    f"load_module /usr/lib/nginx/modules/{name}.so; " for name in ("ndk_http_module", "ngx_http_lua_module")
) + ("" if os.geteuid() else "user root; ")
SEED = 'map "" $vllm_nginx_lb_generation { default "seed"; }\nupstream llm_cluster { server 127.0.0.1:9 down; }\n'


def wait_for(condition: Callable[[], bool], seconds: float = 30, every: float = 0.02) -> None:
    """Poll until a condition holds, and fail when it does not within the deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        pause.wait(every)


class NodeServer(ThreadingHTTPServer):
    """The HTTP server of a FakeNode: of either family, with TLS if it has a context."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: str, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None, port: int
    ) -> None:
        """Listen."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), handler)
        if tls:  # the first read does the handshake, in the connection's own thread
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_arguments: Any) -> None:
        """Say nothing when a client goes away or refuses the certificate."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*_arguments)


class FakeNode:
    """An HTTP server with the /metrics that a test wants; every answer names the node."""

    def __init__(self, name: str, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        """Listen, and answer as an idle vLLM node."""
        self.name = name
        self.load = {"kv": 0.1, "waiting": 0.0, "running": 1.0, "preemptions": 0.0}
        self.answer: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.posted: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.headers: list[dict[str, str]] = []
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != "/metrics":
                    respond(self, node.name.encode())
                    return
                node.headers.append(dict(self.headers.items()))
                if node.answer:
                    node.answer(self)
                else:
                    respond(self, node.metrics().encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if node.posted:
                    node.posted(self)
                else:
                    respond(self, body)

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = NodeServer(address, Handler, tls, port)
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        """The address it listens on."""
        return str(self.server.server_address[0])

    def metrics(self) -> str:
        """Return the load as vLLM's metrics."""
        labels = '{engine="0",model_name="m"}'
        size = self.load.get("kv_tokens")
        return (
            (f'vllm:cache_config_info{{engine="0",kv_cache_size_tokens="{size}"}} 1.0\n' if size else "")
            + f"vllm:kv_cache_usage_perc{labels} {self.load['kv']}\n"
            f"vllm:num_requests_waiting{labels} {self.load['waiting']}\n"
            f"vllm:num_requests_running{labels} {self.load['running']}\n"
            f"vllm:num_preemptions_total{labels} {self.load['preemptions']}\n"
        )

    def stop(self) -> None:
        """Close the listening socket: connections are refused from now on."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def respond(
    handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, content_type: str = "text/plain", **headers: str
) -> None:
    """Answer one request."""
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)


@dataclass
class Stack:
    """An nginx with the upstream file, its nodes, and the script's configuration."""

    directory: Path
    nodes: list[FakeNode]
    status_port: int
    ingress_port: int
    binary: str
    config: dict[str, Any] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)
    master: subprocess.Popen[bytes] | None = None

    @property
    def upstream(self) -> Path:
        """The upstream file."""
        return self.directory / "upstream" / "upstream.conf"

    @property
    def nginx(self) -> list[str]:
        """The command line of the nginx binary with this stack's configuration."""
        return [self.binary, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]

    def write_nginx(self, extra: str = "") -> None:
        """Write nginx.conf; `extra` is a part that somebody else configures in the same nginx."""
        (self.directory / "nginx.conf").write_text(f"""
            pid nginx.pid; error_log error.log; worker_processes 1; events {{}}
            http {{
                access_log off; map_hash_bucket_size 256;
                include {self.upstream};
                {extra}
                server {{ listen 127.0.0.1:{self.status_port};
                    location = /generation {{ default_type text/plain;
                        return 200 "$vllm_nginx_lb_generation $pid\\n"; }} }}
                server {{ listen 127.0.0.1:{self.ingress_port};
                    location / {{ proxy_pass http://llm_cluster; proxy_set_header Connection "";
                        proxy_http_version 1.1; }} }}
            }}""")

    def write_config(self) -> Path:
        """Write config.yml; JSON is YAML."""
        path = self.directory / "config.yml"
        path.write_text(json.dumps(self.config))
        return path

    def script(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script; a traceback fails the test."""
        done = subprocess.run(
            [PYTHON, str(SCRIPT), "--config", str(self.write_config()), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | environment,
        )
        assert "Traceback" not in done.stderr, done.stderr
        self.heard += [done.stdout, done.stderr]
        return done

    def run(self, expect: int = 0, *arguments: str) -> str:
        """Run one tick, wait until old workers are gone if the tick ends well, and return its lines on stderr."""
        done = self.script("run", *arguments)
        assert done.returncode == expect, done.stderr
        if expect == 0:
            self.await_generation(self.status()["generation"])
        return done.stderr

    def status(self) -> dict[str, Any]:
        """Return status.json."""
        return dict(json.loads((self.directory / "state" / "status.json").read_text()))

    def weights(self) -> dict[str, int]:
        """Return the decided weights."""
        return {node["name"]: node["weight"] for pool in self.status()["pools"] for node in pool["nodes"]}

    def backups(self) -> list[Path]:
        """Return the copies of what was live, newest first."""
        return sorted(self.upstream.parent.glob(".upstream.conf.*.bak"), reverse=True)

    def edits(self) -> list[Path]:
        """Return the copies of what was edited by hand, newest first."""
        return sorted(self.upstream.parent.glob(".upstream.conf.*.edited"), reverse=True)

    def start(self) -> None:
        """Start nginx, and wait until it serves."""
        command = [*self.nginx, "-g", "daemon off;"]
        # nginx leads a process group of its own, as a daemon does.
        if self.master:
            self.master.wait(10)
        self.master = master = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(lambda: master.poll() is None and answers(self.status_port) and self.is_master(master.pid))
        # nginx listens, and writes its pid file, before it starts its workers.
        wanted = re.search(r"worker_processes (\d+)", (self.directory / "nginx.conf").read_text())
        wait_for(lambda: len(self.worker_pids()) >= int(wanted[1] if wanted else 1))

    def is_master(self, pid: int) -> bool:
        """Tell whether nginx has written its pid file, which it does after it listens."""
        path = self.directory / "nginx.pid"
        return path.exists() and path.read_text().strip() == str(pid)

    def stop(self) -> None:
        """End nginx at once, if it runs."""
        if self.master:
            self.master.send_signal(signal.SIGTERM)
            self.master.wait(10)

    def restart(self, extra: str = "") -> None:
        """Write nginx.conf, and start nginx anew; `extra` as in write_nginx."""
        self.write_nginx(extra)
        self.stop()
        self.start()

    @contextlib.contextmanager
    def holding(self, lock: Path) -> Iterator[None]:
        """Hold a lock file of the script."""
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def generation(self) -> str:
        """Return the generation that nginx's workers serve."""
        return fetch(self.status_port, "/generation").split()[0]

    def await_generation(self, wanted: str) -> None:
        """Wait until the old workers, which may accept connections for a moment, are gone and `wanted` is served."""
        wait_for(lambda: len(self.worker_pids()) == 1 and self.generation() == wanted)

    def worker_pids(self) -> set[str]:
        """Return the processes of nginx's workers."""
        master = (self.directory / "nginx.pid").read_text().strip()
        return set(Path(f"/proc/{master}/task/{master}/children").read_text().split())


def answers(port: int) -> bool:
    """Tell whether something accepts connections at a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def fetch(port: int, path: str) -> str:
    """GET a page of 127.0.0.1 with a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            return answer.read().partition(b"\r\n\r\n")[2].decode()


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[None]:
    """Start nginx; end it and the nodes afterwards."""
    try:
        stack.start()
        yield
    finally:
        stack.stop()
        for node in stack.nodes:
            node.stop()


@contextlib.contextmanager
def standing(directory: Path, heard: list[str]) -> Iterator[Stack]:
    """Start nginx with the seed and three idle nodes, with all files in a directory; end both afterwards."""
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary, "nginx is missing: make system-packages installs it"
    (directory / "upstream").mkdir()
    nodes = [FakeNode(name) for name in ("node-a", "node-b", "node-c")]
    it = Stack(directory, nodes, free_port(), free_port(), binary, heard=heard)
    it.config = {
        "state_directory": str(directory / "state"),
        "scrape": {"timeout_seconds": 2},
        "nginx": {
            "upstream_file": str(it.upstream),
            "test_command": [*it.nginx, "-t", "-q"],
            "reload_command": [*it.nginx, "-s", "reload"],
            "confirm_url": f"http://127.0.0.1:{it.status_port}/generation",
            "confirm_timeout_seconds": 3,
            "min_reload_interval_seconds": 0,
        },
        "pools": [
            {
                "name": "llm_cluster",
                "policy": "stepped",  # the load of one tick decides its weights
                "nodes": [{"name": node.name, "host": "127.0.0.1", "port": node.port} for node in nodes],
            }
        ],
    }
    it.upstream.write_text(SEED)
    it.write_nginx()
    with running(it):
        yield it


@pytest.fixture
def stack(tmp_path: Path, heard: list[str]) -> Iterator[Stack]:
    """Give a test a stack of its own."""
    with standing(tmp_path, heard) as it:
        yield it
