"""What metrics.prom tells of the ingress host itself: real handshakes, addresses and processes."""

from __future__ import annotations

import datetime as dt
import os
import re
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.conftest import FakeNode, free_port
from tests.integration.rendered import ingress, render
from vllm_lb.own_host import OwnHost, has_address, is_running, look, served_certificate, validity
from vllm_lb.settings import OwnHostSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Stack

NAME = "llm.example"


def certificate(not_before: dt.datetime, not_after: dt.datetime) -> bytes:
    """Return a certificate in DER that is valid between two times."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a name of 2020-01-01 Z 200101000000Z")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), not_before, not_after)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@contextmanager
def server(not_after: dt.datetime) -> Iterator[int]:
    """Serve TLS on loopback with a certificate that ends at a time, and return the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(NAME, not_after=not_after).configure_cert(context)
    node = FakeNode("ingress", tls=context)
    yield node.port
    node.stop()


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), dt.datetime(2026, 4, 2, 3, 4, 5, tzinfo=dt.UTC)),
        (dt.datetime(1999, 12, 31, tzinfo=dt.UTC), dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=dt.UTC)),
        (dt.datetime(2020, 2, 29, tzinfo=dt.UTC), dt.datetime(2050, 1, 1, tzinfo=dt.UTC)),
        (dt.datetime(2051, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)),
    ],
)
def test_the_times_of_a_certificate(not_before: dt.datetime, not_after: dt.datetime) -> None:
    assert validity(certificate(not_before, not_after)) == (not_before.timestamp(), not_after.timestamp())


@pytest.mark.parametrize("noise", [b"", b"\x17\x0d200101000000Z", b"\x17\x0d209901000000Z\x17\x0d200101000000Z"])
def test_what_is_no_certificate_has_no_times(noise: bytes) -> None:
    assert validity(noise) is None


@pytest.mark.parametrize("days", [30, -1])
def test_a_certificate_is_read_from_the_server_even_after_its_end(days: int) -> None:
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=days)
    with server(end) as port:
        for name in (NAME, None):
            found = served_certificate(port, name)
            assert found
            assert found.not_after == end.timestamp()


def test_a_server_without_tls_and_no_server_have_no_certificate() -> None:
    node = FakeNode("plain")
    assert served_certificate(node.port, NAME) is None
    node.stop()
    assert served_certificate(free_port(), NAME) is None


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),  # not the first one of its interface
        ("::1", True),
        ("0:0::1", True),
        ("192.0.2.100", False),
        ("2001:db8::100", False),
    ],
)
def test_the_addresses_of_this_host(address: str, own: bool) -> None:  # noqa: FBT001 - a row of a table
    assert has_address(address) is own


def test_a_kernel_without_ipv6_has_no_such_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "AF_INET6", 99)  # a family that no kernel has
    assert not has_address("::1")


def test_a_process_runs_until_it_has_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "keepalived.pid"
    assert not is_running(pid_file)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pid_file.write_text(f"{process.pid}\n")
    assert is_running(pid_file)
    process.communicate(b"\n")
    assert not is_running(pid_file)


@pytest.mark.parametrize("text", ["", "keepalived", "0", "-1", "9" * 30, "\xb2"])
def test_what_names_no_process_does_not_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "keepalived.pid").write_text(text, encoding="utf-8")
    assert not is_running(tmp_path / "keepalived.pid")


def test_a_process_of_another_user_runs(tmp_path: Path) -> None:
    (tmp_path / "keepalived.pid").write_text("1\n")
    tmp_path.chmod(0o755)
    child = os.fork()
    if not child:
        try:
            os.chdir(tmp_path)  # nobody else may go through its parents
            if os.geteuid() == 0:
                os.setuid(65534)
            os._exit(0 if is_running(Path("keepalived.pid")) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_asked_that_no_setting_names() -> None:
    assert look(OwnHostSettings()) == OwnHost()


def test_a_tick_tells_it_to_prometheus(stack: Stack, tmp_path: Path) -> None:
    end = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=30)
    (tmp_path / "keepalived.pid").write_text(f"{os.getpid()}\n")
    with server(end) as port:
        stack.config["own_host"] = {
            "tls_port": port,
            "tls_name": NAME,
            "floating_address": "192.0.2.100",
            "keepalived_pid_file": str(tmp_path / "keepalived.pid"),
        }
        stack.run()
    text = (stack.directory / "state" / "metrics.prom").read_text(encoding="utf-8")
    (after,) = re.findall(r"^vllm_nginx_lb_certificate_not_after_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert float(after) == end.timestamp()
    assert '\nvllm_nginx_lb_floating_address_held{address="192.0.2.100"} 0.0\n' in text
    assert "\nvllm_nginx_lb_keepalived_running 1.0\n" in text


ANY = {"nginx_ingress_tls_enabled": True, "nginx_ingress_server_names": []}
NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "wildcard": ({"nginx_ingress_server_names": ["*.llm.example"]}, "any.llm.example"),
    "dot": ({"nginx_ingress_server_names": [".llm.example"]}, "llm.example"),
    "address-first": ({"nginx_ingress_server_names": ["127.0.0.1", "llm.example"]}, "llm.example"),
    "pool": ({"nginx_ingress_pools": {"llm_cluster": {"server_names": ["batch.example"]}}}, "batch.example"),
}


@pytest.mark.slow
@pytest.mark.unmeasured
def test_the_script_asks_for_a_name_that_nginx_serves(tmp_path: Path) -> None:
    (tmp_path / "rendered").mkdir()
    hosts = render(tmp_path / "rendered", {name: ANY | settings for name, (settings, _) in NAMED.items()})
    for name, (_, asked) in NAMED.items():
        host = hosts[name]
        own_host = yaml.safe_load(host.text("etc/vllm-nginx-lb/config.yml"))["own_host"]
        assert (own_host["tls_port"], own_host["tls_name"]) == (host.tls_port, asked)
        issued = trustme.CA().issue_cert(asked)
        issued.private_key_pem.write_to_path(host.root / "tls.key")
        issued.cert_chain_pems[0].write_to_path(host.root / "tls.crt")
        (folder := tmp_path / name).mkdir()
        with ingress(folder, host, [free_port()]):
            assert look(OwnHostSettings(**own_host)).certificate, name
