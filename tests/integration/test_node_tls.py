"""Nodes with TLS: a node with a wrong certificate gets neither requests nor the key."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.integration.conftest import FakeNode, Stack

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "secret-key"


@pytest.fixture
def authority(stack: Stack, tmp_path: Path) -> trustme.CA:
    """Make a certificate authority, and let the script trust it, and send its nodes a key."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "key").write_text(KEY)
    stack.config["scrape"] |= {"ca_file": str(tmp_path / "ca.pem"), "api_key_file": str(tmp_path / "key")}
    return authority


def server(issuer: trustme.CA, *names: str, not_after: dt.datetime | None = None) -> ssl.SSLContext:
    """Return what a server with a certificate for these names needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


def replace(stack: Stack, index: int, host: str, tls: ssl.SSLContext) -> FakeNode:
    """Make one of the stack's nodes speak TLS."""
    address = socket.getaddrinfo(host, 0)[0][4][0]
    stack.nodes[index].stop()
    node = stack.nodes[index] = FakeNode(stack.nodes[index].name, str(address), tls)
    stack.config["pools"][0]["nodes"][index] |= {"host": host, "port": node.port, "scheme": "https"}
    return node


@pytest.mark.fault(
    14,
    "nodes speak TLS, known by address or name",
    sees="llm_cluster/node-c: weight new -> 100",
    keeps="they are weighed, the key goes to them",
)
def test_nodes_with_the_right_certificate_are_weighed(stack: Stack, authority: trustme.CA) -> None:
    nodes = [
        replace(stack, index, host, server(authority, host))
        for index, host in enumerate(("127.0.0.1", "::1", "localhost"))
    ]
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    assert [node.headers[0]["Authorization"] for node in nodes] == [f"Bearer {KEY}"] * 3


YESTERDAY = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)


def wrong(name: str, what: str, reason: str, host: str, certificate: Callable[[trustme.CA], ssl.SSLContext]) -> Any:
    """Return a case: what is wrong with a certificate, the message, and the node that has it."""
    mark = pytest.mark.fault(
        14,
        f"a node's certificate {what}",
        sees=f"node-b: unknown: certificate refused: {reason}… (1 of 3), last weight held",
        keeps="the others are weighed; no request goes to it, nor the key",
    )
    return pytest.param(host, certificate, id=name, marks=mark)


ISSUER, EXPIRED, MISMATCH = "unable to get local issuer certificate", "certificate has expired", "…match"


@pytest.mark.parametrize(
    ("host", "certificate"),
    [
        wrong("issuer", "is another authority's", ISSUER, "127.0.0.1", lambda _: server(trustme.CA(), "127.0.0.1")),
        wrong("expired", "has expired", EXPIRED, "localhost", lambda ca: server(ca, "localhost", not_after=YESTERDAY)),
        wrong("name", "is for another name", MISMATCH, "localhost", lambda ca: server(ca, "other.example")),
        wrong("address", "is for another address", MISMATCH, "127.0.0.1", lambda ca: server(ca, "127.0.0.9")),
    ],
)
def test_a_node_with_a_wrong_certificate_is_sent_nothing(
    stack: Stack, authority: trustme.CA, host: str, certificate: Callable[[trustme.CA], ssl.SSLContext]
) -> None:
    replace(stack, 1, host, server(authority, host))
    stack.run()
    node = replace(stack, 1, host, certificate(authority))
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
    stack.run()
    stack.run()
    assert stack.weights() == {"node-a": 100, "node-b": 0, "node-c": 100}
    assert node.headers == []


@pytest.mark.fault(
    14,
    "the CA file is missing or no certificate",
    sees="scrape.ca_file: …: expected certificates in PEM",
    keeps="all weights",
)
def test_a_wrong_ca_file_is_named_and_no_node_blamed(stack: Stack, authority: trustme.CA, tmp_path: Path) -> None:
    replace(stack, 1, "127.0.0.1", server(authority, "127.0.0.1"))
    stack.run()
    for damage in (Path.unlink, Path.touch):
        damage(tmp_path / "ca.pem")
        done = stack.script("run")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert stack.weights() == {"node-a": 100, "node-b": 100, "node-c": 100}
