"""The ingress with all options on, TLS, keys, limits and pools, and the answers that clients get in each case."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crossplane  # type: ignore[import-untyped]
import openai
import pytest
import trustme

from tests.integration.conftest import wait_for
from tests.integration.rendered import (
    DEADLINE_SECONDS,
    PARTS,
    ROLE,
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
NAMES = ["localhost", "llm.example", "batch.example"]
KEYS = {
    "team-a": "Key.of-team+A/0123456789==",
    "team-b": "key-of-team-b-0123456789",
    "team-c": "key-of-team-c-0123456789",
}
NODE_KEY = "key-of-the-nodes"
FULL: dict[str, Any] = {
    "nginx_ingress_server_names": ["localhost", "llm.example"],
    "nginx_ingress_tls_enabled": True,
    "nginx_ingress_tls_hsts_seconds": 63072000,
    "nginx_ingress_acme_webroot": "/var/www/acme",
    "nginx_ingress_clients": [
        {"name": "team-a", "key": KEYS["team-a"]},
        {"name": "team-b", "key": KEYS["team-b"], "requests_per_minute": 2, "requests_burst": 2},
        {"name": "team-c", "key": KEYS["team-c"], "concurrent_requests": 2},
    ],
    "nginx_ingress_requests_per_minute": 60000,
    "nginx_ingress_requests_burst": 100,
    "nginx_ingress_pools": {
        "batch": {
            "path_prefix": "/batch",
            "server_names": ["batch.example"],
            "x_models": ["big-model"],
            "concurrent_requests": 1,
        }
    },
    "nginx_ingress_upstream_api_key": NODE_KEY,
    "nginx_ingress_client_max_body_size_mib": 32,
    "nginx_ingress_read_timeout_seconds": 3,
    "nginx_ingress_next_upstream_timeout_seconds": 2,
    "nginx_ingress_connect_timeout_seconds": 1,
}
CONSTANT_PARTS = {file.name for file in (ROLE / "files" / "nginx").iterdir()}
GIXY = Path(sys.executable).with_name("gixy")
BALANCERS = ("upstream", "work")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make the certificate authority that clients trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> dict[str, Host]:
    """Render an ingress with everything for each balancer, in a grace time, with limits by address, and without Lua."""
    settings = {name: {**FULL, "nginx_ingress_balancer": name} for name in BALANCERS}
    grace = {
        f"grace-{name}": {
            **settings[name],
            "nginx_ingress_clients_grace_enabled": True,
            "nginx_ingress_tls_grace_enabled": True,
            "nginx_ingress_grace_until": "2031-05-06",
            "nginx_ingress_upstream_former_api_key": f"former-{NODE_KEY}",
        }
        for name in BALANCERS
    }
    by_address = {"nginx_ingress_concurrent_requests": 2, "nginx_ingress_next_upstream_tries": 1}
    without_lua = {**settings["upstream"], "nginx_ingress_answer_guard_enabled": False}
    everything = {**settings, **grace, "by-address": by_address, "without-lua": without_lua}
    found = render(tmp_path_factory.mktemp("rendered"), everything)
    for host in found.values():
        certificate = authority.issue_cert(*NAMES)
        certificate.private_key_pem.write_to_path(host.root / "tls.key")
        certificate.cert_chain_pems[0].write_to_path(host.root / "tls.crt")
    return found


@pytest.fixture(scope="module")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """Return what a client trusts."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextlib.contextmanager
def client(
    host: Host, trust: ssl.SSLContext, name: str = "team-a", path: str = "/v1", **settings: Any
) -> Iterator[Any]:
    """Let the openai library speak to an ingress, as one of its clients."""
    http = openai.DefaultHttpxClient(verify=trust, trust_env=False)
    url = f"https://localhost:{host.tls_port}{path}"
    options = {"api_key": KEYS.get(name, name), "max_retries": 0, "timeout": DEADLINE_SECONDS, **settings}
    with openai.OpenAI(base_url=url, http_client=http, **options) as it:
        yield it


def complete(user: Any, **extra: Any) -> Any:
    """Send one small request."""
    return user.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], **extra)


COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
}


def as_vllm(node: Node) -> Node:
    """Let a node answer as OpenAI's clients expect it."""
    node.answer = COMPLETION
    return node


@pytest.fixture(params=BALANCERS)
def entry(
    request: pytest.FixtureRequest, tmp_path: Path, hosts: dict[str, Host]
) -> Iterator[tuple[Ingress, Node, Node]]:
    """Run the ingress with everything, and a node in each of its pools."""
    host = hosts[request.param]
    with (
        serve(as_vllm(Node())) as node,
        serve(as_vllm(Node())) as batch,
        ingress(tmp_path, host, [node.port], batch=[batch.port]) as running,
    ):
        yield running, node, batch


def test_a_client_with_a_key_is_answered_and_its_key_goes_no_further(
    entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext
) -> None:
    running, node, _ = entry
    with client(running.host, trust) as user:
        raw = user.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "a secret prompt"}]
        )
        assert raw.parse().choices[0].message.content == "hello"
    assert raw.headers["strict-transport-security"] == "max-age=63072000"
    assert node.seen[0][2]["Authorization"] == f"Bearer {NODE_KEY}"
    assert KEYS["team-a"] not in str(node.seen[0][2])
    (line,) = running.log(1)
    assert (line["client_name"], line["status"], line["pool"]) == ("team-a", 200, "llm_cluster")
    assert line["request_id"] == raw.headers["x-request-id"] == node.seen[0][2]["X-Request-Id"]
    written = running.host.text("upstream_trace.log")
    assert "secret" not in written
    assert not any(key in written for key in (*KEYS.values(), NODE_KEY))


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "Bearer",
        "Basic dGVhbS1hOng=",
        f"Bearer {KEYS['team-a'].lower()}",
        f"Bearer {KEYS['team-a']}x",
        "Bearer x",
    ],
    ids=["none", "empty", "no-key", "basic", "other-case", "longer", "unknown"],
)
def test_a_request_without_a_good_key_is_refused(
    entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext, key: str | None
) -> None:
    running, node, _ = entry
    headers = {} if key is None else {"Authorization": key}
    refused = ask(f"https://localhost:{running.host.tls_port}/v1/models", headers=headers, trust=trust)
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert json.loads(refused.body)["error"]["code"] == "invalid_api_key"
    assert node.seen == []
    assert running.log(1)[0]["client_name"] == ""


def test_the_key_word_of_a_key_may_be_in_any_case(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, _, _ = entry
    headers = {"Authorization": f"bearer {KEYS['team-a']}"}
    assert ask(f"https://localhost:{running.host.tls_port}/v1/models", headers=headers, trust=trust).status == 200


def test_openai_raises_its_own_exceptions(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, node, _ = entry
    with client(running.host, trust, "not-a-key-of-anybody") as refused, pytest.raises(openai.AuthenticationError):
        complete(refused)
    with client(running.host, trust) as user:
        with pytest.raises(openai.NotFoundError, match="not served here"):
            user.files.list()
        with pytest.raises(openai.NotFoundError) as no_model:
            complete(user, extra_headers={"X-Model": "unheard-of"})
        assert no_model.value.code == "model_not_found"
        for status in (400, 500):
            node.status = status
            with pytest.raises(openai.BadRequestError if status == 400 else openai.InternalServerError):
                complete(user)
        for status in (502, 503):  # the request is tried again, then the client gets the node's own answer
            node.status = status
            with pytest.raises(openai.InternalServerError) as problem:
                complete(user)
            assert problem.value.status_code == status
        node.status, node.held = 200, threading.Event()
        with pytest.raises(openai.InternalServerError, match="did not answer in time") as late:
            complete(user)
        node.held.set()
        assert (late.value.status_code, late.value.code) == (504, "gateway_timeout")
        node.held = None
        with pytest.raises(openai.APIStatusError, match="larger than 32 MiB") as large:
            complete(user, extra_body={"filler": "x" * 2**25})
        assert (large.value.status_code, large.value.code) == (413, "request_too_large")
        assert late.value.request_id


def test_openai_tries_again_by_itself(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, node, _ = entry
    node.failing = 2
    with client(running.host, trust, max_retries=2) as user:
        assert complete(user).choices[0].message.content == "hello"
    assert len(node.seen) == 3


def test_twenty_megabytes_go_through(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, node, _ = entry
    with client(running.host, trust) as user:
        complete(user, extra_body={"filler": "x" * 20_000_000})
    assert len(node.seen[-1][3]) > 20_000_000


def test_a_rate_is_per_client_and_says_when_to_come_back(
    entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext
) -> None:
    running, node, _ = entry
    with client(running.host, trust, "team-b") as user, client(running.host, trust, "team-a") as other:
        for _ in range(3):  # one request of the rate and two of the burst
            complete(user)
        with pytest.raises(openai.RateLimitError) as limited:
            complete(user)
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.response.headers["retry-after"] == "30"
        for _ in range(10):
            complete(other)
    assert len(node.seen) == 13


def test_open_requests_are_counted_per_client(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, node, _ = entry
    node.held = threading.Event()
    with client(running.host, trust, "team-c") as user, client(running.host, trust) as other:
        threads = [threading.Thread(target=quietly, args=(complete, user)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(node.seen) == 2)
        with pytest.raises(openai.RateLimitError) as limited:
            complete(user)
        assert limited.value.response.headers["retry-after"] == "1"
        node.held.set()
        complete(other)
        for thread in threads:
            thread.join()
        complete(user)


def quietly(call: Any, *arguments: Any) -> None:
    """Call something whose failure another assertion shows."""
    with contextlib.suppress(openai.OpenAIError):
        call(*arguments)


def test_a_pool_is_found_by_path_name_and_header(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, node, batch = entry
    with client(running.host, trust) as user, client(running.host, trust, path="/batch/v1") as by_path:
        complete(user)
        assert (len(node.seen), len(batch.seen)) == (1, 0)
        complete(by_path)
        complete(user, extra_headers={"X-Model": "big-model"})
        complete(user, extra_headers={"Host": "batch.example"})
    assert (len(node.seen), len(batch.seen)) == (1, 3)
    assert {path for _, path, _, _ in batch.seen} == {"/v1/chat/completions"}
    assert [line["pool"] for line in running.log(4)] == ["llm_cluster", "batch", "batch", "batch"]


def test_a_pool_has_limits_of_its_own(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, _, batch = entry
    batch.held = threading.Event()
    with client(running.host, trust) as user, client(running.host, trust, path="/batch/v1") as by_path:
        thread = threading.Thread(target=quietly, args=(complete, by_path))
        thread.start()
        wait_for(lambda: len(batch.seen) == 1)
        with pytest.raises(openai.RateLimitError):
            complete(by_path)
        complete(user)
        batch.held.set()
        thread.join()


def test_the_port_without_tls_redirects_and_keeps_the_method(entry: tuple[Ingress, Node, Node]) -> None:
    running, node, _ = entry
    host = running.host
    sent = ask(f"http://localhost:{host.port}/v1/models?a=b", follow=False)
    assert (sent.status, sent.headers["Location"]) == (308, f"https://localhost:{host.tls_port}/v1/models?a=b")
    assert ask(f"http://localhost:{host.port}/.well-known/acme-challenge/none", follow=False).status == 404
    assert node.seen == []


def test_whoever_asks_for_another_name_gets_nothing(entry: tuple[Ingress, Node, Node], trust: ssl.SSLContext) -> None:
    running, node, _ = entry
    host = running.host
    with socket.create_connection(("127.0.0.1", host.port)) as plain:
        plain.sendall(b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert plain.recv(1) == b""
    for name in ("evil.example", None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", host.tls_port)) as raw, pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_hostname=name)
    # The handshake has a known name, and the request has another one.
    with (
        socket.create_connection(("127.0.0.1", host.tls_port)) as raw,
        trust.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert tls.recv(1) == b""
    assert ask(f"http://127.0.0.1:{host.port}/health").status == 200, "what is alive is said under any name"
    assert node.seen == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_modern_and_speaks_http_2(
    entry: tuple[Ingress, Node, Node], authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", entry[0].host.tls_port)) as raw,
        context.wrap_socket(raw, server_hostname="llm.example") as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers"),
    [(ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"), (ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-GCM-SHA384:@SECLEVEL=0")],
    ids=["old-version", "no-forward-secrecy"],
)
def test_old_tls_is_refused(
    entry: tuple[Ingress, Node, Node], authority: trustme.CA, version: ssl.TLSVersion, ciphers: str
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_ciphers(ciphers)
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", entry[0].host.tls_port)) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw, server_hostname="llm.example")


def test_limits_count_addresses_where_clients_have_no_keys(tmp_path: Path, hosts: dict[str, Host]) -> None:
    with serve(Node()) as node, ingress(tmp_path, hosts["by-address"], [node.port]) as running:
        node.held = threading.Event()
        url = f"{running.url}/v1/models"
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(node.seen) == 2)
        assert ask(url).status == 429
        node.held.set()
        for thread in threads:
            thread.join()


def test_one_try_means_that_nothing_is_tried_again(tmp_path: Path, hosts: dict[str, Host]) -> None:
    with (
        serve(Node(status=503)) as first,
        serve(Node(status=503)) as second,
        ingress(tmp_path, hosts["by-address"], [first.port, second.port]) as running,
    ):
        assert ask(f"{running.url}/v1/models").status == 503
        assert len(first.seen) + len(second.seen) == 1


@pytest.mark.parametrize("name", [*BALANCERS, "grace-upstream", "grace-work", "by-address", "without-lua"])
def test_what_is_rendered_is_valid_for_nginx_and_linters(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    done = subprocess.run(nginx_command(tmp_path, hosts[name], "-t"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    is_stock = name == "without-lua"
    parsed = crossplane.parse(str(tmp_path / "nginx.conf"), check_ctx=is_stock, check_args=is_stock)
    assert parsed["errors"] == []
    assert ("_by_lua" in json.dumps(parsed)) != is_stock
    written = {str(file) for file in (hosts[name].root / PARTS).iterdir() if file.name not in CONSTANT_PARTS}
    assert written - {part["file"] for part in parsed["config"]} == set(), "a part that nothing includes"
    # Upstreams have addresses instead of names, so no resolver is needed. A wrong name closes the connection. That a
    # connection has one request is meant for those to nodes. A request for an unknown name looks for one file.
    skipped = "missing_resolver,http2_misdirected_request,low_keepalive_requests,try_files_is_evil_too"
    linted = [str(GIXY), "--skips", skipped, str(tmp_path / "nginx.conf")]
    found = subprocess.run(linted, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_part_that_no_setting_changes_is_included_somewhere(tmp_path: Path, hosts: dict[str, Host]) -> None:
    included = set()
    for host in hosts.values():
        nginx_command(tmp_path, host)
        parsed = crossplane.parse(str(tmp_path / "nginx.conf"), check_ctx=False, check_args=False)
        included |= {Path(part["file"]).name for part in parsed["config"]}
    assert included >= CONSTANT_PARTS
