"""Each hostile request, sent byte by byte, and a node that records everything it gets."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.hostile import CLOSED, HOSTILE, Hostile, table
from tests.integration.rendered import DEADLINE_SECONDS, Host, Ingress, Node, ingress, render, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
SETTINGS: dict[str, Any] = {
    "nginx_ingress_server_names": ["localhost"],
    "nginx_ingress_client_header_timeout_seconds": 1,
    "nginx_ingress_client_body_timeout_seconds": 1,
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """Render an ingress with a name, of each balancer."""
    settings = {name: {**SETTINGS, "nginx_ingress_balancer": name} for name in ("upstream", "work")}
    return render(tmp_path_factory.mktemp("rendered"), settings)


@pytest.fixture(scope="module", params=["upstream", "work"])
def entry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hosts: dict[str, Host]
) -> Iterator[tuple[Ingress, Node]]:
    """Run the ingress and its one node."""
    folder = tmp_path_factory.mktemp(request.param)
    with serve(Node()) as node, ingress(folder, hosts[request.param], [node.port]) as running:
        yield running, node


def answer_to(port: int, sent: bytes) -> tuple[str, bytes]:
    """Send bytes. Return the status of the first answer, CLOSED if there is none, and all bytes that came back."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as connection:
        try:
            connection.sendall(sent)
            while piece := connection.recv(65536):
                came += piece
                head, _, body = came.partition(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), -1
                )
                if b"\r\n\r\n" in came and len(body) >= length >= 0:
                    break
        except ConnectionResetError:
            pass
    return (came.split()[1].decode() if came.startswith(b"HTTP/") else CLOSED), came


@pytest.mark.slow
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: f"{hostile.group}-{hostile.what}".replace("`", ""))
def test_hostile_request(entry: tuple[Ingress, Node], hostile: Hostile) -> None:
    running, node = entry
    node.seen.clear()
    status, came = answer_to(running.host.port, hostile.sent)
    assert status in hostile.answers, came[:1000]
    if hostile.reaches is None:
        assert node.seen == []
        if status != CLOSED:
            head, _, body = came.partition(b"\r\n\r\n")
            assert b"Content-Type: application/json" in head, "an error that clients can read"
            assert json.loads(body)["error"]["message"]
        return
    ((_, path, headers, body),) = node.seen
    assert (path, body) == (hostile.reaches, hostile.body)
    assert headers["Host"] == "vllm"
    assert [name for name in hostile.absent if headers[name] is not None] == []
    assert [(name, headers.get_all(name)) for name, _ in hostile.present] == [(n, [v]) for n, v in hostile.present]


def test_the_page_has_what_is_tested() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "docs/security.md is out of date: python -c 'from tests.integration.hostile import table; print(table())' "
        "prints its table"
    )


def test_the_page_names_tests_that_there_are() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 8
    for file, name in named:
        assert f"def {name}(" in Path(__file__).with_name(file).read_text(encoding="utf-8"), name
