"""The files of the roles for ingress hosts, rendered by Ansible, and a real nginx that runs with them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.integration.conftest import LOAD_LUA, LUA, NodeServer, free_port, wait_for
from tests.playbook import ROOT, play
from vllm_lb.render import Source, bundled
from vllm_lb.settings import Pool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from email.message import Message

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
DEADLINE_SECONDS = 20

ROLE = ROOT / "roles" / "nginx_ingress"
SERVER = "etc/nginx/conf.d/vllm-nginx-lb.conf"  # which Debian's nginx.conf includes
PARTS = "etc/nginx/vllm-nginx-lb/parts"
UPSTREAM = "etc/nginx/vllm-nginx-lb/upstream.conf"
CONNECTIONS = "etc/nginx/vllm-nginx-lb/connections.nft"
CONNECTIONS_UNIT = "etc/systemd/system/vllm-nginx-lb-connections.service"
BODIES_UNIT = "etc/systemd/system/var-lib-nginx-vllm_nginx_lb_bodies.mount"
# The parts that a host needs, by name: an expression for Ansible.
WANTED_PARTS = "(__nginx_ingress_parts + __nginx_ingress_secret_parts) | selectattr('wanted') | map(attribute='name')"
# Other templates, by role
TEMPLATES: dict[str, list[str]] = {
    "nginx_ingress": [
        UPSTREAM,
        CONNECTIONS,
        BODIES_UNIT,
        CONNECTIONS_UNIT,
    ],
    "vllm_nginx_lb": [
        "etc/vllm-nginx-lb/config.yml",
        "etc/systemd/system/vllm-nginx-lb.service",
        "etc/systemd/system/vllm-nginx-lb.timer",
    ],
}
NODES = {
    "node-a": {"ansible_host": "192.0.2.1"},
    "node-b": {"ansible_host": "2001:db8::2", "vllm_capacity": 0.5, "vllm_drain": True},
    "node-c": {"ansible_host": "node-c.example", "vllm_port": 8000, "vllm_pool": "batch"},
}


@dataclass(frozen=True)
class Host:
    """What the roles wrote for one ingress host: everything below `root`, instead of below /."""

    root: Path
    port: int
    status_port: int
    tls_port: int

    def text(self, name: str) -> str:
        """Return one of the files."""
        return (self.root / name).read_text(encoding="utf-8")


def nginx_version() -> str:
    """Return nginx's version."""
    assert NGINX, "these tests need nginx"
    return subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr


def host_variables() -> dict[str, Any]:
    """Return the variables that the role's tasks register before they write anything, for this machine."""
    return {
        "ansible_python_interpreter": sys.executable,
        "__nginx_ingress_ipv6": {"stat": {"exists": Path("/proc/net/if_inet6").exists()}},
        "__nginx_ingress_version": {"stderr": nginx_version()},
    }


def run_play(folder: Path, inventory: dict[str, Any], variables: dict[str, Any], tasks: list[dict[str, Any]]) -> None:
    """Run tasks for the ingress hosts of an inventory, on this machine, with the project's group_vars."""
    playbook = folder / "play.yml"
    wanted = {"name": "Render", "hosts": "ingress", "gather_facts": False, "tasks": tasks}
    playbook.write_text(yaml.safe_dump([wanted]), encoding="utf-8")
    result = play(folder, inventory, playbook, **variables)
    assert result.returncode == 0, result.stdout + result.stderr


def render(folder: Path, settings: dict[str, dict[str, Any]]) -> dict[str, Host]:
    """Let Ansible write every template of the roles below a folder, for ingress hosts with these settings."""
    found = {name: Host(folder / name, free_port(), free_port(), free_port()) for name in settings}
    templates = {
        name: f"{ROOT}/roles/{role}/templates/{name}.j2" for role, names in TEMPLATES.items() for name in names
    }
    inventory = {
        "ingress": {
            "hosts": {
                name: {
                    "ansible_connection": "local",
                    "nginx_ingress_listen_port": host.port,
                    "nginx_ingress_status_port": host.status_port,
                    "nginx_ingress_tls_listen_port": host.tls_port,
                    **settings[name],
                }
                for name, host in found.items()
            }
        },
        "vllm": {"hosts": NODES},
    }
    root = f"{folder}/{{{{ inventory_hostname }}}}"
    # One task writes all that a host has, as JSON: one for each file takes half a minute for these hosts.
    rendered = f"{{{{ lookup('template', *{list(templates.values())}, wantlist=true) | to_json }}}}"
    tasks: list[dict[str, Any]] = [
        *({"import_role": {"name": role, "tasks_from": "preflight.yml"}} for role in TEMPLATES),
        {"copy": {"content": rendered, "dest": f"{root}.json", "mode": "0600"}},
        parts_task(f"{root}.parts.json"),
    ]
    run_play(folder, inventory, host_variables(), tasks)
    for name, host in found.items():
        texts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for file, text in zip(templates, texts, strict=True):
            (host.root / file).parent.mkdir(parents=True, exist_ok=True)
            (host.root / file).write_text(text, encoding="utf-8")
        install_parts(folder / f"{name}.parts.json", host.root)
    return found


def parts_task(file: str) -> dict[str, Any]:
    """Return the task that writes the parts that settings change to a file, as JSON by name."""
    templates = f"['{ROLE}/templates/{PARTS}/'] | product(parts, ['.j2']) | map('join')"
    rendered = (
        f"{{% set parts = {WANTED_PARTS} | list %}}"
        f"{{{{ dict(parts | zip(lookup('template', *({templates}), wantlist=true))) | to_json }}}}"
    )
    return {"copy": {"content": rendered, "dest": file, "mode": "0600"}}


def install_parts(rendered: Path, root: Path, places: dict[str, str] | None = None) -> None:
    """Install the parts of nginx's configuration below a folder, with Lua and the status page of this repository.

    Args:
        rendered: what parts_task wrote.
        root: the folder that stands for /.
        places: further paths of a host, and what stands for them here.
    """
    paths = {
        **(places or {}),
        f"/{PARTS}/lua": str(LUA),
        "/etc/nginx/vllm-nginx-lb/tls.": f"{root}/tls.",
        "/etc/nginx/vllm-nginx-lb/": f"{root}/etc/nginx/vllm-nginx-lb/",
        "/var/log/nginx/": f"{root}/",
        "/var/lib/nginx/": f"{root}/",
        "/usr/local/share/vllm-nginx-lb/page": str(LUA.with_name("page")),
        "/var/lib/vllm-nginx-lb": f"{root}/var/lib/vllm-nginx-lb",
    }
    texts = {f"{PARTS}/{name}": text for name, text in json.loads(rendered.read_text(encoding="utf-8")).items()}
    texts |= {f"{PARTS}/{file.name}": file.read_text(encoding="utf-8") for file in ROLE.glob("files/nginx/*.conf")}
    texts[f"{PARTS}/set.conf"] = 'return 200 "a set\\n";\n'
    texts[SERVER] = (ROLE / "files" / "conf.d" / Path(SERVER).name).read_text(encoding="utf-8")
    for name, text in texts.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(re.sub("|".join(map(re.escape, paths)), lambda found: paths[found[0]], text), encoding="utf-8")


@dataclass
class Node:
    """A stand-in for a vLLM node: answers with a fixed status and remembers what it was sent."""

    status: int = 200
    failing: int = 0  # how many requests get a 500 first
    redirect: str | None = None  # its X-Accel-Redirect
    answer: dict[str, Any] | None = None  # instead of its port
    held: threading.Event | None = None  # the node answers when this is set
    seen: list[tuple[str, str, Message, bytes]] = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def serve(node: Node, tls: ssl.SSLContext | None = None) -> Iterator[Node]:
    """Let a node answer on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            node.seen.append((self.command, self.path, self.headers, body))
            if node.held:
                node.held.wait(DEADLINE_SECONDS)
            answer = json.dumps(node.answer or {"port": node.port}).encode()
            self.send_response(500 if node.failing else node.status)
            node.failing = max(0, node.failing - 1)
            self.send_header("X-Request-Id", "made-by-the-node")
            if node.redirect:
                self.send_header("X-Accel-Redirect", node.redirect)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815 - the name http.server calls

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = NodeServer("127.0.0.1", Handler, tls, 0)
    node.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Answer:
    """An answer to a request."""

    status: int
    headers: Message
    body: bytes


class Unfollowed(urllib.request.HTTPRedirectHandler):
    """Returns a redirect as the answer."""

    def redirect_request(self, *_: object) -> None:
        """Follow no redirect."""


def ask(
    url: str,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    trust: ssl.SSLContext | None = None,
    follow: bool = True,
) -> Answer:
    """Send one request; an error status is an answer too."""
    request = urllib.request.Request(url, data=data, headers=headers or {})  # noqa: S310 - always to 127.0.0.1
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)]
    opener = urllib.request.build_opener(*handlers, *([] if follow else [Unfollowed]))
    try:
        with opener.open(request, timeout=DEADLINE_SECONDS) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


@dataclass
class Ingress:
    """A running nginx."""

    host: Host
    url: str
    status_url: str

    def log(self, at_least: int = 0) -> list[dict[str, Any]]:
        """Return the access log's entries, once there are some: they are written after the answer."""
        wait_for(lambda: self.host.text("upstream_trace.log").count("\n") >= at_least)
        return [json.loads(line) for line in self.host.text("upstream_trace.log").splitlines()]


def nginx_command(folder: Path, host: Host, *options: str) -> list[str]:
    """Return the command of an nginx that serves the rendered parts and writes below `folder`."""
    assert NGINX, "these tests need nginx"
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    main = folder / "nginx.conf"
    main.write_text(
        f"{LOAD_LUA}daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{ }}\nhttp {{ access_log off; client_body_temp_path {folder}/body;\n{temporary}"
        f"include {host.root}/{SERVER}; }}\n",
        encoding="utf-8",
    )
    return [NGINX, "-p", str(folder), "-c", str(main), "-e", str(folder / "error.log"), *options]


def upstream_file(pools: dict[str, list[int]], settings: dict[str, Any]) -> str:
    """Return the upstream file that the script writes for nodes with these ports, in the generation `a…`."""
    limit = settings.get("max_conns", 0)
    published = []
    for name, ports in pools.items():
        servers = [
            {"name": f"node-{port}", "address": "127.0.0.1", "port": port, "weight": 100, "max_conns": limit}
            for port in ports
        ]
        pool = {each.name: each.default for each in dataclasses.fields(Pool)} | settings
        published.append(pool | {"name": name, "nodes": (), "servers": servers})
    source = Source(published, bundled("upstream.conf.j2"))
    return source.render().content.replace(source.generation, "a" * 64)


@contextlib.contextmanager
def ingress(
    folder: Path, host: Host, ports: list[int], settings: dict[str, Any] | None = None, **pools: list[int]
) -> Iterator[Ingress]:
    """Run nginx on the rendered parts, with these node ports as its upstream, and those of other pools.

    Args:
        folder: nginx writes below it.
        host: the rendered parts.
        ports: of the nodes of llm_cluster.
        settings: of the script for all pools, and `max_conns` of all nodes; by default nginx leaves no node out.
        pools: ports of the nodes of further pools.
    """
    settings = {"method": "round_robin", "max_fails": 0} | (settings or {})
    upstream = upstream_file({"llm_cluster": ports, **pools}, settings)
    (host.root / UPSTREAM).write_text(upstream, encoding="utf-8")
    (host.root / "upstream_trace.log").unlink(missing_ok=True)
    running = Ingress(host, f"http://127.0.0.1:{host.port}", f"http://127.0.0.1:{host.status_port}")
    with subprocess.Popen(nginx_command(folder, host)) as process:

        def is_up() -> bool:
            assert process.poll() is None, (folder / "error.log").read_text(encoding="utf-8")
            with contextlib.suppress(urllib.error.URLError):
                return ask(f"{running.url}/health").status == 200
            return False

        try:
            wait_for(is_up, DEADLINE_SECONDS)
            yield running
        finally:
            process.terminate()
