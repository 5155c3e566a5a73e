"""Besiege an ingress from a network of its own: the program that test_siege.py runs in a new network namespace.

Usage: siege.py SETTINGS (JSON, as a dict of `Siege`). Makes a second network namespace for the clients and joins the
two, starts nginx and a node that never answers, and lets an attacker open all connections at once. Prints, as JSON,
what it sees as soon as that is as wanted, or after 20 s: how many connections the attacker got, how many requests the
node has, and what an honest client, /health from this host and the status server are answered (null: nothing).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator

INGRESS = {"4": "10.99.0.1", "6": "fd99::1"}
HONEST = "10.99.0.200"
DEADLINE_SECONDS = 20
# The frames of HTTP/2 (RFC 9113) that the attacker sends
HEADERS, SETTINGS = 1, 4
END_STREAM, END_HEADERS = 1, 4
STREAMS = 128  # as many as nginx allows in a connection


class Siege(TypedDict):
    """What to do.

    Attributes:
        nginx: its command.
        rules: a file for nft, or null.
        port, tls_port, status_port, node_port: of nginx and its node.
        attack: a key of ATTACKS.
        sources: the addresses of the attacker.
        connections: how many the attacker tries to open.
        wanted: what shall be seen.
    """

    nginx: list[str]
    rules: str | None
    port: int
    tls_port: int
    status_port: int
    node_port: int
    attack: str
    sources: list[str]
    connections: int
    wanted: dict[str, Any]


# --- The attacker, in the network of the clients ---------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def field(name: str, value: str) -> bytes:
    """Return a header of HTTP/2 without compression."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
BLOCK = b"".join(
    itertools.starmap(
        field, [(":method", "GET"), (":scheme", "https"), (":path", "/v1/models"), (":authority", "localhost")]
    )
)
ATTACKS = {
    "half a request": b"POST /v1/completions HTTP/1.1\r\nHost: local",
    "half a request of HTTP/2": BEGIN + frame(HEADERS, 0, 1, BLOCK[:20]),
    "many requests of HTTP/2": BEGIN
    + b"".join(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, BLOCK) for i in range(STREAMS)),
}


def open_one(siege: Siege, source: str, context: ssl.SSLContext) -> socket.socket | None:
    """Open a connection from a source and begin the attack on it; return it, or None when it is refused."""
    over_tls = "HTTP/2" in siege["attack"]
    target = (INGRESS["6" if ":" in source else "4"], siege["tls_port" if over_tls else "port"])
    with contextlib.suppress(OSError):
        connection = socket.create_connection(target, 2, source_address=(source, 0))
        if over_tls:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        connection.sendall(ATTACKS[siege["attack"]])
        return connection
    return None


def attack(siege: Siege) -> None:
    """Open connections, print how many there are, and keep them until the input ends.

    A worker with few free connections closes those whose first bytes it has not read yet. Of a fast attacker it thus
    closes one for each new one, and stays with a few free. So the attacker opens again what the worker closes, one
    after the other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    poll = select.poll()
    held: dict[int, tuple[socket.socket, str]] = {}  # connections and their sources, by the number that poll gives

    def hold(source: str) -> None:
        if connection := open_one(siege, source, context):
            held[connection.fileno()] = (connection, source)
            poll.register(connection, select.POLLRDHUP)

    for source in itertools.islice(itertools.cycle(siege["sources"]), siege["connections"]):
        hold(source)
    print(len(held), flush=True)  # noqa: T201 - its result
    poll.register(sys.stdin, select.POLLIN)
    while sys.stdin.fileno() not in (closed := [number for number, _ in poll.poll()]):
        for number in closed:
            poll.unregister(number)
            connection, source = held.pop(number)
            connection.close()
            hold(source)


# --- The ingress, and those who look at it ---------------------------------------------------------------------------


def run(*command: str) -> None:
    """Run a command, which must succeed."""
    subprocess.run(command, check=True)


@contextlib.contextmanager
def network_of_clients(sources: list[str]) -> Iterator[list[str]]:
    """Make a network namespace that reaches this one; yield the beginning of commands that run in it."""
    run("ip", "link", "set", "lo", "up")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo made; exec cat"], stdin=-1, stdout=-1) as there:  # noqa: S607
        assert there.stdin and there.stdout  # noqa: PT018 - for the type checker
        there.stdout.readline()
        inside = ["nsenter", f"--target={there.pid}", "--net"]
        run("ip", "link", "add", "clients", "type", "veth", "peer", "name", "ingress", "netns", str(there.pid))
        for address in ("10.99.0.1/16", "fd99::1/32"):
            run("ip", "address", "add", address, "dev", "clients", *(["nodad"] if ":" in address else []))
        run("ip", "link", "set", "clients", "up")
        run(*inside, "ip", "link", "set", "ingress", "up")
        for address in [HONEST, *sources]:  # the first one is that of connections that name none
            length = "/32" if ":" in address else "/16"
            run(*inside, "ip", "address", "add", address + length, "dev", "ingress", *(["nodad"] * (":" in address)))
        try:
            yield inside
        finally:
            there.stdin.close()


def keep_requests(port: int, requests: list[socket.socket]) -> None:
    """Be a node that takes requests and answers none."""
    with socket.create_server(("127.0.0.1", port), backlog=1000) as server:
        while True:
            requests.append(server.accept()[0])


def answer(url: str) -> int | None:
    """Return the status that a URL is answered with, or None."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def ask_from(inside: list[str], url: str) -> int | None:
    """Return the status that an honest client in the network of the clients gets, or None."""
    command = [*inside, sys.executable, __file__, "ask", url]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # type: ignore[no-any-return]


def besiege(siege: Siege) -> dict[str, Any]:
    """Let the attacker begin, and return what is seen as soon as all is as wanted, or after 20 s."""
    local = f"http://127.0.0.1:{siege['port']}/health"
    requests: list[socket.socket] = []
    seen: dict[str, Any] = {}
    with network_of_clients(siege["sources"]) as inside, subprocess.Popen(siege["nginx"]) as nginx:
        if siege["rules"]:
            run("nft", "--file", siege["rules"])
        threading.Thread(target=keep_requests, args=(siege["node_port"], requests), daemon=True).start()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while answer(local) != 200 and time.monotonic() < deadline:
            pass
        command = [*inside, sys.executable, __file__, "attack", json.dumps(siege)]
        with subprocess.Popen(command, stdin=-1, stdout=-1) as attacker:
            assert attacker.stdin and attacker.stdout  # noqa: PT018 - for the type checker
            connections = int(attacker.stdout.readline())
            deadline = time.monotonic() + DEADLINE_SECONDS
            while seen != siege["wanted"] and time.monotonic() < deadline:
                seen = {
                    "connections": connections,
                    "requests": len(requests),
                    "client": ask_from(inside, f"http://{INGRESS['4']}:{siege['port']}/health"),
                    "health": answer(local),
                    "status": answer(f"http://127.0.0.1:{siege['status_port']}/generation"),
                }
                seen = {key: seen[key] for key in siege["wanted"]}
            attacker.stdin.close()
        nginx.terminate()
    return seen


if __name__ == "__main__":
    if sys.argv[1] == "attack":
        attack(json.loads(sys.argv[2]))
    elif sys.argv[1] == "ask":
        print(json.dumps(answer(sys.argv[2])))  # noqa: T201 - its result
    else:
        print(json.dumps(besiege(json.loads(sys.argv[1]))))  # noqa: T201 - its result
