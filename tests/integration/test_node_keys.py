"""Nodes that change to another key, one after the other: the requests of clients, and the script's scrapes."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import FakeNode, respond, wait_for
from tests.integration.rendered import Host, ask, ingress, render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from tests.integration.conftest import Stack

pytestmark = pytest.mark.slow
NEW, FORMER, NEITHER = "new-key-of-the-nodes", "former-key-of-the-nodes", "nobodys-key"
SETTINGS: dict[str, Any] = {
    "nginx_ingress_upstream_api_key": NEW,
    "nginx_ingress_upstream_former_api_key": FORMER,
    "nginx_ingress_client_body_buffer_size_kib": 64,
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """Render an ingress with two keys of the nodes for each balancer, and one that cannot ask twice."""
    settings = {name: {**SETTINGS, "nginx_ingress_balancer": name} for name in ("upstream", "work")}
    without = {**settings["upstream"], "nginx_ingress_answer_guard_enabled": False}
    one_key = {**settings["work"], "nginx_ingress_upstream_former_api_key": ""}
    return render(tmp_path_factory.mktemp("rendered"), {**settings, "without-lua": without, "one-key": one_key})


class KeyedNode(FakeNode):
    """A node that requires a key, also for /metrics, and remembers the keys and bodies that it was sent."""

    def __init__(self, name: str, key: str) -> None:
        """Listen."""
        super().__init__(name)
        self.key = key
        self.sent: list[str] = []
        self.breaks = False
        self.posted = self.answer = self.check

    def check(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer 200 to the key, 401 to others."""
        key = handler.headers["Authorization"].removeprefix("Bearer ")
        self.sent.append(key)
        if key != self.key:
            refusal = b'{"error": "Unauthorized"}'
            respond(handler, refusal, 401, "application/json", WWW_Authenticate="Bearer", X_Refused="yes")
        elif self.breaks:
            handler.close_connection = True
        elif handler.path == "/metrics":
            respond(handler, self.metrics().encode())
        else:
            respond(handler, json.dumps({"node": self.name}).encode(), 200, "application/json")


@contextlib.contextmanager
def keyed(*keys: str) -> Iterator[list[KeyedNode]]:
    """Run nodes with these keys."""
    nodes = [KeyedNode(f"node-{number}", key) for number, key in enumerate(keys)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.stop()


@pytest.mark.unmeasured
@pytest.mark.parametrize("size", [10, 300_000], ids=["in-memory", "in-a-file"])
@pytest.mark.parametrize("name", ["upstream", "work"])
def test_no_client_sees_that_nodes_change_their_key_one_after_the_other(
    tmp_path: Path, hosts: dict[str, Host], name: str, size: int
) -> None:
    with keyed(FORMER, FORMER, FORMER) as nodes, ingress(tmp_path, hosts[name], [n.port for n in nodes]) as entry:
        for changed in (None, *nodes):
            if changed:
                changed.key = NEW
            for _ in range(12):
                answer = ask(f"{entry.url}/v1/completions?a=b", b"x" * size)
                assert answer.status == 200
                assert answer.headers["X-Refused"] is None, "nothing of the refusal is left"
                assert answer.headers["WWW-Authenticate"] is None
        for line in entry.log(48):
            tries = [each.strip() for each in line["upstream_addr"].split(" : ")]
            assert len(set(tries)) == 1, "the same node is asked"
            assert line["upstream_status"] == ("200" if len(tries) == 1 else "401 : 200")
        for node in nodes:
            assert NEW in node.sent
            assert node.sent.count(FORMER) == sum(key == FORMER for key in node.sent)
        if name == "work":
            rows = json.loads(ask(f"{entry.status_url}/work").body)["nodes"]
            assert sum(row["answers"]["2xx"] for row in rows) == 48
            assert [row["answers"].get("401") for row in rows] == [None] * 3
            assert [row["ejections"] for row in rows] in ([{}] * 3, [[]] * 3)
            assert [(row["streams"], row["pending_bytes"]) for row in rows] == [(0, 0)] * 3


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", ["upstream", "work"])
def test_a_client_loses_no_request_on_a_connection_whose_answer_came_with_the_former_key(
    tmp_path: Path, hosts: dict[str, Host], name: str
) -> None:
    with keyed(FORMER) as (node,), ingress(tmp_path, hosts[name], [node.port]) as entry:
        # It connects anew only if an answer says that nginx closes the connection.
        client = http.client.HTTPConnection(urlsplit(entry.url).netloc, timeout=10)
        with contextlib.closing(client):
            for _ in range(5):
                client.request("POST", "/v1/completions", b"{}")
                answer = client.getresponse()
                assert (answer.status, json.loads(answer.read())) == (200, {"node": node.name})


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", ["upstream", "work"])
def test_a_node_that_refuses_both_keys_is_asked_twice_and_its_answer_is_the_clients(
    tmp_path: Path, hosts: dict[str, Host], name: str
) -> None:
    with keyed(NEITHER) as (node,), ingress(tmp_path, hosts[name], [node.port]) as entry:
        answer = ask(f"{entry.url}/v1/completions", b"{}")
        assert (answer.status, answer.body) == (401, b'{"error": "Unauthorized"}')
        assert node.sent == [NEW, FORMER]
        node.key, node.breaks = FORMER, True
        broken = ask(f"{entry.url}/v1/completions", b"{}")
        assert (broken.status, json.loads(broken.body)["error"]["code"]) == (502, "bad_gateway")
        if name == "work":
            wait_for(lambda: json.loads(ask(f"{entry.status_url}/work").body)["nodes"][0]["streams"] == 0)


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", ["upstream", "work"])
def test_the_second_try_stays_with_its_node(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    with keyed(FORMER, FORMER) as nodes, ingress(tmp_path, hosts[name], [n.port for n in nodes]) as entry:
        nodes[0].breaks = True
        wait_for(lambda: ask(f"{entry.url}/v1/completions", b"{}").status == 502)
        wait_for(lambda: any(line["status"] == 502 for line in entry.log()))
        (line,) = (line for line in entry.log() if line["status"] == 502)
        assert line["upstream_addr"] == " : ".join([f"127.0.0.1:{nodes[0].port}"] * 2)


@pytest.mark.unmeasured
@pytest.mark.parametrize(("name", "sent"), [("without-lua", [NEW]), ("one-key", [NEW])])
def test_where_there_is_no_second_try_the_client_gets_the_refusal(
    tmp_path: Path, hosts: dict[str, Host], name: str, sent: list[str]
) -> None:
    with keyed(FORMER) as (node,), ingress(tmp_path, hosts[name], [node.port]) as entry:
        assert ask(f"{entry.url}/v1/completions", b"{}").status == 401
        assert node.sent == sent


@pytest.mark.parametrize(
    ("key", "sent", "says"),
    [
        (NEW, [NEW], ""),
        (FORMER, [NEW, FORMER], ""),
        (NEITHER, [NEW, FORMER], "HTTP 401 (see scrape.api_key_file)"),
    ],
    ids=["new", "former", "neither"],
)
def test_a_scrape_that_is_refused_is_tried_once_with_the_former_key(
    stack: Stack, tmp_path: Path, key: str, sent: list[str], says: str
) -> None:
    for name, text in (("new", NEW), ("former", FORMER)):
        (tmp_path / name).write_text(f"{text}\n")
    stack.config["scrape"] |= {
        "api_key_file": str(tmp_path / "new"),
        "former_api_key_file": str(tmp_path / "former"),
    }
    with keyed(key) as (node,):
        stack.config["pools"][0]["nodes"][0] |= {"host": "127.0.0.1", "port": node.port}
        stack.run()
        assert node.sent == sent
    shown = stack.status()["pools"][0]["nodes"][0]
    assert shown["state"] == ("unknown" if says else "up")
    assert says in (shown["error"] or "")


def test_a_former_key_that_cannot_be_read_is_named(stack: Stack, tmp_path: Path) -> None:
    stack.config["scrape"] |= {"former_api_key_file": str(tmp_path / "none")}
    assert f"scrape.former_api_key_file: {tmp_path / 'none'}: No such file or directory" in stack.run(2)
