"""Who is let in: keys that rotate and expire, the grace time for keys and TLS, and requests for unknown names."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trustme

from roles.nginx_ingress.filter_plugins.nginx_ingress_keys import nginx_ingress_digits_below, nginx_ingress_seconds
from tests.integration.conftest import wait_for
from tests.integration.rendered import PARTS, Answer, Host, Ingress, Node, ask, ingress, render, serve
from tests.playbook import play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
BALANCERS = ("upstream", "work")
OLD, NEW, OTHER = "Old-key-of-team-a-0123", "new-key-of-team-a-0123", "key-of-team-b-0123456789"
EXPIRED, LATER = "expired-key-of-team-a-01", "later-key-of-team-a-0123"
END = "2031-05-06T07:08:09+02:00"
KEYS: dict[str, Any] = {
    "nginx_ingress_clients": [
        {
            "name": "team-a",
            "keys": [
                {"key": OLD, "expires": END},
                {"key": NEW},
                {"key": EXPIRED, "expires": dt.date(2024, 2, 29)},
                {"key": LATER, "expires": "2031-05-06"},
            ],
            "concurrent_requests": 1,
        },
        {"name": "team-b", "key": OTHER},
    ],
}
GRACE: dict[str, Any] = {
    "nginx_ingress_server_names": ["localhost", "127.0.0.1"],
    "nginx_ingress_tls_enabled": True,
    "nginx_ingress_tls_hsts_seconds": 600,
    "nginx_ingress_acme_webroot": "/var/www/acme",
    "nginx_ingress_tls_grace_enabled": True,
    "nginx_ingress_clients": [
        {"name": "team-a", "key": NEW},
        {"name": "team-b", "key": EXPIRED, "expires": "2024-02-29"},
    ],
    "nginx_ingress_clients_grace_enabled": True,
    "nginx_ingress_grace_until": END,
    "nginx_ingress_concurrent_requests": 2,
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make the certificate authority that clients trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> dict[str, Host]:
    """Render an ingress with several keys, and one in its grace time, for each balancer."""
    wanted = {"keys": KEYS, "grace": GRACE}
    settings = {
        f"{name}-{balancer}": {**settings, "nginx_ingress_balancer": balancer}
        for name, settings in wanted.items()
        for balancer in BALANCERS
    }
    found = render(tmp_path_factory.mktemp("rendered"), settings)
    for host in found.values():
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(host.root / "tls.key")
        certificate.cert_chain_pems[0].write_to_path(host.root / "tls.crt")
    return found


@pytest.fixture(params=BALANCERS)
def balancer(request: pytest.FixtureRequest) -> str:
    """Return the name of each balancer."""
    return str(request.param)


@contextlib.contextmanager
def running(folder: Path, host: Host) -> Iterator[tuple[Ingress, Node]]:
    """Run an ingress with one node."""
    with serve(Node()) as node, ingress(folder, host, [node.port]) as entry:
        yield entry, node


def with_key(url: str, key: str | None, **options: Any) -> Answer:
    """Ask for the models with a key."""
    return ask(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {}, **options)


def ending_soon(host: Host, part: str, moment: str) -> float:
    """Let a time in a rendered part be two seconds from now, and return it."""
    file = host.root / PARTS / part
    former, soon = nginx_ingress_seconds(moment), int(time.time()) + 2
    text = file.read_text(encoding="utf-8")
    written = nginx_ingress_digits_below(former)
    assert written in text
    file.write_text(text.replace(written, nginx_ingress_digits_below(soon)), encoding="utf-8")
    return soon


@contextlib.contextmanager
def as_rendered(host: Host, part: str) -> Iterator[None]:
    """Put a part back afterwards."""
    file = host.root / PARTS / part
    before = file.read_text(encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")


def unfit(entry: Ingress) -> dict[str, int]:
    """Return the counts of unfit requests, by "fault answer"."""
    text = ask(f"{entry.status_url}/work/metrics").body.decode()
    rows = [line.split() for line in text.splitlines() if line.startswith("vllm_nginx_lb_work_unfit_requests_total{")]
    return {" ".join(labels.split('"')[1::2]): int(number) for labels, number in rows}


# --- keys ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A key, and what becomes of a request with it."""

    what: str
    key: str | None
    state: str
    client: str = ""


def name_of(case: Case) -> str:
    """Return the name of a case."""
    return case.what


@pytest.mark.parametrize(
    "case",
    [
        Case("old", OLD, "good", "team-a"),
        Case("new", NEW, "good", "team-a"),
        Case("later", LATER, "good", "team-a"),
        Case("other", OTHER, "good", "team-b"),
        Case("expired", EXPIRED, "expired", "team-a"),
        Case("expired-other-case", EXPIRED.upper(), "unknown"),
        Case("other-case", OLD.lower(), "unknown"),
        Case("twice", f"{OLD}|{OLD}", "unknown"),
        Case("none", None, "missing"),
    ],
    ids=name_of,
)
def test_a_client_may_have_several_keys_until_they_expire(
    tmp_path: Path, hosts: dict[str, Host], balancer: str, case: Case
) -> None:
    _, key, state, name = case
    status = 200 if state == "good" else 401
    with running(tmp_path, hosts[f"keys-{balancer}"]) as (entry, node):
        assert with_key(entry.url, key).status == status
        assert len(node.seen) == (status == 200)
        assert ask(f"{entry.url}/").status == 404
        line, other = entry.log(2)
        assert (line["status"], line["client_name"], line["key"]) == (status, name, state)
        assert (other["status"], other["key"]) == (404, ""), "nobody has looked for a key there"
        assert key is None or key not in entry.host.text("upstream_trace.log")
        if balancer == "work":
            wait_for(lambda: unfit(entry) == ({} if status == 200 else {f"{state}_key refused": 1}))


def test_all_keys_of_a_client_count_as_one(tmp_path: Path, hosts: dict[str, Host], balancer: str) -> None:
    with running(tmp_path, hosts[f"keys-{balancer}"]) as (entry, node), contextlib.ExitStack() as stack:
        node.held = stack.enter_context(held())
        connection = http.client.HTTPConnection("127.0.0.1", entry.host.port)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {OLD}"})
        wait_for(lambda: len(node.seen) == 1)
        assert with_key(entry.url, NEW).status == 429
        node.held.set()
        assert connection.getresponse().status == 200
        connection.close()


@contextlib.contextmanager
def held() -> Iterator[Any]:
    """Return an event that is set at the end at the latest."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def test_a_key_expires_without_a_reload(tmp_path: Path, hosts: dict[str, Host], balancer: str) -> None:
    host = hosts[f"keys-{balancer}"]
    with as_rendered(host, "clients.conf"):
        end = ending_soon(host, "clients.conf", END)
        with running(tmp_path, host) as (entry, _):
            while time.time() < end - 0.5:
                assert with_key(entry.url, OLD).status == 200 or time.time() >= end
            wait_for(lambda: with_key(entry.url, OLD).status == 401)
            assert time.time() >= end
            assert with_key(entry.url, NEW).status == 200


def test_each_run_says_what_expires_and_that_the_grace_time_is_on_and_shows_no_key(tmp_path: Path) -> None:
    settings = {**GRACE, **KEYS, "ansible_connection": "local"}
    playbook = tmp_path / "play.yml"
    tasks = [{"import_role": {"name": "nginx_ingress", "tasks_from": "preflight.yml"}}]
    playbook.write_text(json.dumps([{"hosts": "ingress", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    done = play(tmp_path, {"ingress": {"hosts": {"ingress-1": settings}}}, playbook, "--diff", "-vvv")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = " ".join(done.stdout.split())  # Ansible breaks lines
    for line in (
        "GRACE: requests without a good key are served, until 2031-05-06T05:08:09Z",
        "GRACE: requests without TLS are served, until 2031-05-06T05:08:09Z",
        "client team-a: its key 3 of 4 has expired (2024-02-29T00:00:00Z), and nginx refuses it; remove it",
    ):
        assert line in shown
    assert [key for key in (OLD, NEW, OTHER, EXPIRED, LATER) if key in done.stdout + done.stderr] == []


# --- the grace time -----------------------------------------------------------------------------------------------


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """Return what a client trusts."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    "case",
    [
        Case("good", NEW, "good", "team-a"),
        Case("expired", EXPIRED, "expired", "team-b"),
        Case("unknown", "sk-anything", "unknown"),
        Case("none", None, "missing"),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("name", [f"{scheme} {balancer}" for scheme in ("http", "https") for balancer in BALANCERS])
def test_the_grace_time_serves_and_tells(
    tmp_path: Path, hosts: dict[str, Host], trust: ssl.SSLContext, name: str, case: Case
) -> None:
    scheme, balancer = name.split()
    _, key, state, client = case
    with running(tmp_path, hosts[f"grace-{balancer}"]) as (entry, node):
        port = entry.host.port if scheme == "http" else entry.host.tls_port
        answer = with_key(f"{scheme}://localhost:{port}", key, trust=trust)
        assert answer.status == 200
        assert answer.headers["Strict-Transport-Security"] == (None if scheme == "http" else "max-age=600")
        assert node.seen[0][2]["Authorization"] is None, "no key of a client goes further"
        (line,) = entry.log(1)
        assert (line["client"], line["client_name"]) == ("127.0.0.1", client)
        assert (line["key"], line["scheme"]) == (state, scheme)
        assert key is None or key not in entry.host.text("upstream_trace.log")
        assert json.loads(ask(f"{entry.status_url}/access").body) == {
            "keys": "grace",
            "tls": "grace",
            "grace_until": "2031-05-06T05:08:09Z",
        }
        if balancer == "work":
            wanted = {f"{state}_key served": 1} if state != "good" else {}
            wait_for(lambda: unfit(entry) == wanted | ({"no_tls served": 1} if scheme == "http" else {}))


def test_the_grace_time_ends_without_a_reload(
    tmp_path: Path, hosts: dict[str, Host], trust: ssl.SSLContext, balancer: str
) -> None:
    host = hosts[f"grace-{balancer}"]
    url, tls_url = f"http://localhost:{host.port}", f"https://localhost:{host.tls_port}"
    with as_rendered(host, "grace.conf"):
        end = ending_soon(host, "grace.conf", END)
        with running(tmp_path, host) as (entry, node):
            assert with_key(url, None).status == 200 or time.time() >= end
            wait_for(lambda: with_key(url, None, follow=False).status == 308)
            assert time.time() >= end
            sent = ask(f"{url}/v1/completions?a=b", b"{}", follow=False)
            assert (sent.status, sent.headers["Location"]) == (308, f"{tls_url}/v1/completions?a=b")
            seen = len(node.seen)
            assert with_key(tls_url, None, trust=trust).status == 401
            assert with_key(tls_url, EXPIRED, trust=trust).status == 401
            assert len(node.seen) == seen
            assert with_key(tls_url, NEW, trust=trust).status == 200
            assert ask(f"{url}/health").body == b"ok\n"
            assert ask(f"{url}/v1/models?api_key=sk-1", follow=False).status == 400, "no secret is sent on"
            assert ask(f"{url}/v1/{'x' * 40000}", follow=False).status == 414
            assert ask(f"{url}/.well-known/acme-challenge/none", follow=False).status == 404
            assert json.loads(ask(f"{entry.status_url}/access").body)["tls"] == "required"
            if balancer == "work":
                wait_for(lambda: unfit(entry).get("no_tls refused", 0) >= 2)
                assert unfit(entry)["missing_key refused"] == unfit(entry)["expired_key refused"] == 1


def test_whoever_has_no_key_in_the_grace_time_is_limited_by_address(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    with running(tmp_path, hosts[f"grace-{balancer}"]) as (entry, node), held() as event:
        node.held = event
        connections = [http.client.HTTPConnection("127.0.0.1", entry.host.port) for _ in range(2)]
        for connection in connections:
            connection.request("GET", "/v1/models")
        wait_for(lambda: len(node.seen) == 2)
        assert with_key(entry.url, None).status == 429
        assert with_key(entry.url, "sk-anything").status == 429
        event.set()
        for connection in connections:
            assert connection.getresponse().status == 200
            connection.close()
        assert with_key(entry.url, NEW).status == 200


@pytest.mark.parametrize(("name", "keys"), [("keys", "required"), ("grace", "grace")])
def test_the_status_server_says_what_clients_need(
    tmp_path: Path, hosts: dict[str, Host], balancer: str, name: str, keys: str
) -> None:
    with running(tmp_path, hosts[f"{name}-{balancer}"]) as (entry, _):
        assert json.loads(ask(f"{entry.status_url}/access").body)["keys"] == keys


# --- names --------------------------------------------------------------------------------------------------------


def closes(port: int, name: str, tls: ssl.SSLContext | None = None) -> bool:
    """Ask for a name, after a handshake for localhost if with TLS, and tell whether the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), 10) as raw, contextlib.ExitStack() as stack:
        connection = stack.enter_context(tls.wrap_socket(raw, server_hostname="localhost")) if tls else raw
        connection.sendall(f"GET /v1/models?a=sk-1 HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        return connection.recv(1) == b""


def test_requests_for_unknown_names_are_counted_and_one_line_a_minute_is_logged(
    tmp_path: Path, hosts: dict[str, Host], trust: ssl.SSLContext, balancer: str
) -> None:
    with running(tmp_path, hosts[f"grace-{balancer}"]) as (entry, node):
        for number in range(20):
            assert closes(entry.host.port, f"evil-{number}.example")
        assert closes(entry.host.tls_port, "evil.example", trust)
        assert ask(f"{entry.url}/health", headers={"Host": "evil.example"}).status == 200
        assert with_key(entry.url, NEW).status == 200
        assert len(node.seen) == 1
        wait_for(lambda: entry.log(2)[-1]["status"] == 200)
        first, _ = entry.log(2)
        assert (first["unknown_name"], first["client"], first["path"]) == ("evil-0.example", "127.0.0.1", "/v1/models")
        assert (first["status"], first["unknown_names"]) == (444, "1")
        assert not {"key", "scheme"} & set(first), "it is none of the lines of the grace time"
        assert (tmp_path / "error.log").read_text(encoding="utf-8") == ""
        if balancer == "work":
            assert unfit(entry)["unknown_name refused"] == 21


def test_a_later_line_says_how_many_requests_for_unknown_names_there_were(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    host = hosts[f"grace-{balancer}"]
    with as_rendered(host, "unknown_names_server.conf"):
        file = host.root / PARTS / "unknown_names_server.conf"
        text = file.read_text(encoding="utf-8")
        assert "rate=1r/m" in text
        file.write_text(text.replace("rate=1r/m", "rate=1r/s"), encoding="utf-8")
        with running(tmp_path, host) as (entry, _):
            sent = 0

            def has_two_lines() -> bool:
                nonlocal sent
                sent += closes(host.port, "evil.example")
                return len(entry.log(1)) == 2

            wait_for(has_two_lines)
            assert 1 < int(entry.log()[1]["unknown_names"]) <= sent


@pytest.mark.parametrize(("level", "is_there"), [("error", False), ("info", True)], ids=["error", "info"])
def test_a_refused_handshake_is_in_the_error_log_at_the_level_info_alone(
    tmp_path: Path, hosts: dict[str, Host], level: str, *, is_there: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, log = hosts["grace-work"], tmp_path / "refused.log"
    with as_rendered(host, "http.conf"):
        file = host.root / PARTS / "http.conf"
        file.write_text(f"error_log {log} {level};\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
        with running(tmp_path, host) as (entry, _):
            with socket.create_connection(("127.0.0.1", entry.host.tls_port), 10) as raw, pytest.raises(ssl.SSLError):
                context.wrap_socket(raw, server_hostname="evil.example")
            assert with_key(entry.url, NEW).status == 200
            if is_there:
                wait_for(lambda: "handshake rejected" in log.read_text(encoding="utf-8"))
    assert ("handshake rejected" in log.read_text(encoding="utf-8")) == is_there
