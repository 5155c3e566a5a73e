"""What one client can do to the others and to the logs, on the rendered configuration of both balancers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import free_port, wait_for
from tests.integration.rendered import (
    BODIES_UNIT,
    DEADLINE_SECONDS,
    SERVER,
    Host,
    Ingress,
    Node,
    ask,
    ingress,
    nginx_command,
    render,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
SECRET = "sk-dont-write-me-down"  # noqa: S105 - a secret of this test
BALANCERS = ("upstream", "work")
SETTINGS: dict[str, Any] = {
    "nginx_ingress_server_names": ["localhost", "127.0.0.1"],
    "nginx_ingress_client_max_body_size_mib": 4,
    "nginx_ingress_large_requests_per_client": 2,
    "nginx_ingress_client_header_timeout_seconds": 60,
}
ONE_AT_A_TIME = {"nginx_ingress_concurrent_requests": 1}
LARGE = 1_000_000  # bytes
SHORT_PAUSES = {"nginx_ingress_client_body_timeout_seconds": 1, "nginx_ingress_large_requests_per_client": 1}
SMALL_PLACE = {"nginx_ingress_client_body_tmpfs_mib": 8, "nginx_ingress_large_requests_per_client": 100}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """Render an ingress of each balancer, and one for each length of IPv6 prefixes."""
    settings = {name: {**SETTINGS, "nginx_ingress_balancer": name} for name in BALANCERS}
    prefixes = {
        f"prefix-{bits}": {**ONE_AT_A_TIME, "nginx_ingress_client_ipv6_prefix_bits": bits} for bits in (48, 64, 128)
    }
    places = {f"place-{name}": {**each, **SMALL_PLACE} for name, each in settings.items()}
    slow = {f"slow-{name}": {**each, **SHORT_PAUSES} for name, each in settings.items()}
    return render(tmp_path_factory.mktemp("rendered"), {**settings, **prefixes, **places, **slow})


@pytest.fixture(params=BALANCERS)
def entry(request: pytest.FixtureRequest, tmp_path: Path, hosts: dict[str, Host]) -> Iterator[tuple[Ingress, Node]]:
    """Run the ingress and its one node."""
    with serve(Node()) as node, ingress(tmp_path, hosts[request.param], [node.port]) as running:
        yield running, node


def send(running: Ingress, text: bytes, client: str = "127.0.0.1") -> socket.socket:
    """Send bytes over a connection of their own."""
    connection = socket.create_connection(("127.0.0.1", running.host.port), DEADLINE_SECONDS, (client, 0))
    connection.sendall(text)
    return connection


# --- Secrets in the address ------------------------------------------------------------------------------------------

QUERIES = [
    *("api_key=", "api-key=", "apikey=", "key=", "token=", "access_token=", "a=b&token=", "Password=", "X-Api-Key="),
    *("client_secret=", "auth=", "Authorization=", "sig=", "subscription-key=", "a=b;token=", "api%5Fkey=", "?token="),
    *("%6bey=", "a=b&tok%65n=", "api_%4B%45%59="),
]


def written(tmp_path: Path, running: Ingress) -> str:
    """Return all that nginx has written down."""
    return (tmp_path / "error.log").read_text(encoding="utf-8") + running.host.text("upstream_trace.log")


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_secret_in_the_address_is_in_no_log_whatever_becomes_of_the_request(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    body = b"x" * (5 * 2**20)
    with ingress(tmp_path, hosts[balancer], [free_port()]) as running:  # no node answers
        for query in QUERIES:
            refused = ask(f"{running.url}/v1/completions?{query}{SECRET}", b"{}")
            assert (refused.status, json.loads(refused.body)["error"]["code"]) == (400, "secret_in_address"), query
        for path, data in (("/v1/models", None), ("/none", b"{}"), ("/v1/completions", body), ("/health", None)):
            with contextlib.suppress(OSError):  # nginx closes the connection of a large body
                assert ask(f"{running.url}{path}?token={SECRET}", data).status == 400
        for request in (
            "GET /v1/models?token={} HTTP/9.9\r\nHost: localhost\r\n\r\n",
            "GET /v1/models?token={} HTTP/1.1\r\n\r\n",
            "GET /v1/models?token={} HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET /v1/models?token={} HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "GET /v1/models?token={} HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 70_000 + "\r\n\r\n",
            "GET /%00?token={} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET /../..?token={} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET http://evil.example/?token={} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "DELETE /v1/models?token={} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "POST /v1/completions?token={} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
            "POST /v1/completions?token={} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
        ):
            with contextlib.suppress(ConnectionError), send(running, request.format(SECRET).encode()) as connection:
                connection.recv(1)
        assert ask(f"{running.url}/v1/completions?q=to-be-seen", b"{}").status == 502
        wait_for(lambda: "to-be-seen" in written(tmp_path, running))
        assert SECRET not in written(tmp_path, running)


@pytest.mark.parametrize(
    ("request_line", "logged"),
    [
        ("GET /" + '"' * 8000, {"method": "GET", "path": "/" + '"' * 255 + "..."}),
        ("GET /" + "%ff" * 4000, {"method": "GET", "path": ""}),
        ("X" * 9000 + " /none", {"method": "", "path": "/none"}),
    ],
    ids=["a path", "a path of odd bytes", "a method"],
)
def test_a_request_is_a_short_line_in_the_log(
    entry: tuple[Ingress, Node], request_line: str, logged: dict[str, str]
) -> None:
    running, _ = entry
    with send(running, f"{request_line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()) as it:
        it.recv(1)
    wait_for(lambda: running.host.text("upstream_trace.log").endswith("\n"))
    line = running.host.text("upstream_trace.log").splitlines()[-1]
    assert json.loads(line).items() >= logged.items()
    assert len(line) < 1500


def test_a_harmless_query_reaches_the_node(entry: tuple[Ingress, Node]) -> None:
    running, node = entry
    query = "api-version=1&stream=true&max_tokens=5&monkey=1&author=a&tokens=key&beta=true&a%5B0%5D=%6b"
    assert ask(f"{running.url}/v1/completions?{query}", b"{}").status == 200
    assert node.seen[0][1] == f"/v1/completions?{query}"


# --- Limits by address -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "other", "status"),
    [
        (64, "2001:db8:1:2:ffff:a:d:c0de", 429),
        (64, "2001:db8:1:3::1", 200),
        (64, "2001:db8:0:2::1", 200),
        (64, "192.0.2.1", 200),
        (48, "2001:db8:1:ffff::1", 429),
        (48, "2001:db8:2:2::1", 200),
        (128, "2001:db8:1:2::2", 200),
        (128, "2001:db8:1:2::1", 429),
    ],
)
def test_an_ipv6_network_counts_as_one_client(
    tmp_path: Path, hosts: dict[str, Host], bits: int, other: str, status: int
) -> None:
    host = hosts[f"prefix-{bits}"]
    file = host.root / SERVER
    if "real_ip" not in file.read_text(encoding="utf-8"):  # a test has one address, and nginx believes it others
        text = file.read_text(encoding="utf-8")
        file.write_text(f"set_real_ip_from 127.0.0.1; real_ip_header X-Test;\n{text}", encoding="utf-8")
    with serve(Node()) as node, ingress(tmp_path, host, [node.port]) as running:
        # A request whose body does not end is open. 0x0a and 0x00 are bytes of its address.
        upload = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Test: 2001:db8:1:2::1\r\nContent-Length: 9\r\n\r\n"
        with send(running, upload):
            url = f"{running.url}/v1/models"
            wait_for(lambda: ask(url, headers={"X-Test": "2001:db8:1:2::1"}).status == 429)
            assert ask(url, headers={"X-Test": other}).status == status


# --- Large bodies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [f"Content-Length: {LARGE}", "Transfer-Encoding: chunked"])
def test_a_client_has_few_large_requests_open(entry: tuple[Ingress, Node], length: str) -> None:
    running, _ = entry
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode()
    url = f"{running.url}/v1/completions"
    with send(running, head) as first, send(running, head):
        wait_for(lambda: ask(url, b"x" * LARGE).status == 429)
        limited = ask(url, b"x" * LARGE)
        assert (limited.status, limited.headers["Retry-After"]) == (429, "1")
        assert json.loads(limited.body)["error"]["code"] == "rate_limit_exceeded"
        assert ask(url, b"x" * (LARGE - 1)).status == 200
        assert ask(f"{running.url}/v1/models").status == 200
        first.close()
        wait_for(lambda: ask(url, b"x" * LARGE).status == 200)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_an_upload_that_pauses_for_too_long_counts_no_longer(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n".encode()
    with serve(Node()) as node, ingress(tmp_path, hosts[f"slow-{balancer}"], [node.port]) as running:
        with send(running, head) as upload:
            assert upload.recv(4096) == b"", "nginx closes its connection"
        wait_for(lambda: ask(f"{running.url}/v1/completions", b"x" * LARGE).status == 200)
        assert running.log(1)[0]["status"] == 408


def status_of(running: Ingress, client: str, length: str) -> int | None:
    """Return the status that a client gets for a request with half of a body, or None: nginx waits for the rest."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode()
    with send(running, head, client) as connection:
        connection.settimeout(0.5)
        try:
            return int(connection.recv(4096).split()[1])
        except TimeoutError:
            return None


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_client_holds_no_more_than_its_share_of_the_place_for_bodies(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    length, chunks = f"Content-Length: {3 * LARGE}", "Transfer-Encoding: chunked"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode()
    with serve(Node()) as node, ingress(tmp_path, hosts[f"place-{balancer}"], [node.port]) as running:
        url = f"{running.url}/v1/completions"
        with send(running, head, "127.0.0.2"), send(running, head, "127.0.0.3") as other:
            wait_for(lambda: status_of(running, "127.0.0.2", length) == 429)
            assert status_of(running, "127.0.0.2", chunks) == 429
            third = ask(url, b"x" * 3 * LARGE)  # 9 MB are more than the place has, which nginx alone does not add up
            if balancer == "work":
                assert (third.status, third.headers.get_all("Retry-After")) == (503, ["1"])
                assert json.loads(third.body)["error"]["code"] == "service_unavailable"
            else:
                assert third.status == 200
            assert ask(url, b"x" * (LARGE - 1)).status == 200
            other.close()
            wait_for(lambda: ask(url, b"x" * 3 * LARGE).status == 200)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_client_has_few_bodies_in_the_memory_of_nginx(tmp_path: Path, hosts: dict[str, Host], balancer: str) -> None:
    length = f"Content-Length: {LARGE - 1}"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode()
    with serve(Node()) as node, ingress(tmp_path, hosts[f"place-{balancer}"], [node.port]) as running:
        with contextlib.ExitStack() as uploads:
            for _ in range(4):  # half of the place for bodies
                uploads.enter_context(send(running, head, "127.0.0.2"))
            wait_for(lambda: status_of(running, "127.0.0.2", length) == 429)
            assert status_of(running, "127.0.0.3", length) is None
        wait_for(lambda: status_of(running, "127.0.0.2", length) is None)


@pytest.mark.parametrize(("balancer", "status"), [("work", 200), ("upstream", 429)])
def test_the_large_requests_of_a_killed_worker_are_forgotten_by_work_alone(
    tmp_path: Path, hosts: dict[str, Host], balancer: str, status: int
) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n".encode()
    with serve(Node()) as node, ingress(tmp_path, hosts[balancer], [node.port]) as running:
        url, master = f"{running.url}/v1/completions", (tmp_path / "nginx.pid").read_text(encoding="utf-8").strip()
        children = Path(f"/proc/{master}/task/{master}/children")
        with send(running, head), send(running, head):
            wait_for(lambda: ask(url, b"x" * LARGE).status == 429)
            [before] = children.read_text(encoding="utf-8").split()
            os.kill(int(before), signal.SIGKILL)
            wait_for(lambda: children.read_text(encoding="utf-8").split() not in ([], [before]))
        if status == 200:
            wait_for(lambda: ask(url, b"x" * LARGE).status == 200)
        assert ask(url, b"x" * LARGE).status == status
        assert ask(url, b"x" * (LARGE - 1)).status == 200


WITH_LITTLE_ROOM = """
mkdir -p "$1" && mount -t tmpfs -o size=2m,mode=0777 tmpfs "$1" && shift && exec "$@"
"""


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_full_place_for_bodies_concerns_nothing_but_long_bodies(
    tmp_path: Path, hosts: dict[str, Host], balancer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = hosts[balancer]
    room = host.root / "vllm_nginx_lb_bodies"
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", WITH_LITTLE_ROOM, "sh", str(room)]
    monkeypatch.setattr(
        "tests.integration.rendered.nginx_command", lambda *arguments: [*within, *nginx_command(*arguments)]
    )
    with serve(Node()) as node, ingress(tmp_path, host, [node.port]) as running:
        url = f"{running.url}/v1/completions"
        full = ask(url, b"x" * (3 * 2**20))
        assert (full.status, full.headers.get_all("Retry-After")) == (503, ["1"])
        assert json.loads(full.body)["error"]["code"] == "service_unavailable"
        assert "No space left on device" in (tmp_path / "error.log").read_text(encoding="utf-8")
        assert ask(url, b"x" * 1000).status == 200
        assert ask(url, b"x" * (2**20 + 2**19)).status == 200, "what fits is taken, also after a body that did not"
        assert [entry["status"] for entry in running.log(3)] == [503, 200, 200]


def test_the_place_for_bodies_is_a_unit_that_systemd_understands(hosts: dict[str, Host]) -> None:
    unit = hosts["work"].root / BODIES_UNIT
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Options=size=1024m," in unit.read_text(encoding="utf-8")
