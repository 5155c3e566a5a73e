"""Where nodes may be, what they may be called, and how many there may be."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import SEED, FakeNode, Stack, fetch, free_port
from vllm_lb.text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEPS = "nothing is touched"


def use(stack: Stack, *addresses: str) -> None:
    """Make new nodes at these addresses the stack's only ones."""
    for node in stack.nodes:
        node.stop()
    stack.nodes[:] = [FakeNode(f"node-{i}", address) for i, address in enumerate(addresses)]
    stack.config["pools"][0]["nodes"] = [
        {"name": node.name, "host": address, "port": node.port}
        for node, address in zip(stack.nodes, addresses, strict=True)
    ]


def refused(stack: Stack) -> list[str]:
    """Return the lines with which the script refuses its configuration and touches nothing."""
    done = stack.script("run")
    assert done.returncode == 2
    assert stack.upstream.read_text() == SEED
    assert sorted(path.name for path in stack.upstream.parent.iterdir()) == ["upstream.conf"]
    assert not (stack.directory / "state").exists()
    assert all(line.isprintable() for line in done.stderr.splitlines())
    return [line.removeprefix(f"{stack.directory}/config.yml: ") for line in done.stderr.splitlines()]


@pytest.mark.fault(
    9, "all nodes have IPv6 addresses", sees="llm_cluster/node-0: weight new -> 100", keeps="all is as with IPv4"
)
def test_nodes_of_ipv6(stack: Stack) -> None:
    use(stack, "::1", "::1")
    stack.run()
    assert f"server [::1]:{stack.nodes[0].port} weight=100" in stack.upstream.read_text()
    assert {fetch(stack.ingress_port, "/v1/models") for _ in range(20)} == {"node-0", "node-1"}
    assert stack.nodes[0].headers[0]["Host"] == f"[::1]:{stack.nodes[0].port}"


@pytest.mark.fault(
    9,
    "nodes have IPv4 and IPv6 addresses",
    sees="llm_cluster/node-1: unknown: connection refused (1 of 3), last weight held",
    keeps="both families are weighed and asked",
)
def test_nodes_of_both_families(stack: Stack) -> None:
    use(stack, "127.0.0.1", "::1", "127.0.0.2")
    stack.nodes[2].load["kv"] = 0.8
    stack.run()
    assert stack.weights() == {"node-0": 100, "node-1": 100, "node-2": 60}
    assert {fetch(stack.ingress_port, "/v1/models") for _ in range(20)} == {"node-0", "node-1", "node-2"}
    stack.nodes[1].stop()
    for _ in range(3):
        stack.run()
    assert stack.weights() == {"node-0": 100, "node-1": 0, "node-2": 60}


SYNTAX = [
    *("a;} server 1.2.3.4", "$host", "${host}", "a{", "a}", "a;", "a#", "a%", "a b", '"a"', "'a'", "a\\", "", "ä"),
    *("a\nb", "a\n", "a\r", "\t", "\x00", "\x1b[31m", "\u202e", "\u2028"),
]
TOO_LONG = ["n" * 64]
NO_HOSTS = ["unix:/run/docker.sock", "127.0.0.1:80", "[::1]", "fe80::1%eth0", "1.2.3", "256.1.1.1", "-a", "a..b"]


@pytest.mark.fault(
    9,
    "a node's name or host has nginx syntax in it",
    sees="config.yml: pools[0].nodes[0].…: 'a;} server 1.2.3.4': expected",
    keeps=KEEPS,
)
@pytest.mark.parametrize(("key", "values"), [("name", SYNTAX + TOO_LONG), ("host", SYNTAX + NO_HOSTS)])
def test_syntax_in_a_node_is_refused(stack: Stack, key: str, values: list[str]) -> None:
    stack.config["pools"][0]["nodes"] = [{"name": f"node-{i}", "host": f"10.0.0.{i}"} for i in range(len(values))]
    for node, value in zip(stack.config["pools"][0]["nodes"], values, strict=True):
        node[key] = value
    allowed = {"name": "1 to 63 of A-Z a-z 0-9 . _ -", "host": "an IP address or a host name"}[key]
    assert refused(stack) == [
        f"pools[0].nodes[{i}].{key}: {quoted(value)}: expected {allowed}" for i, value in enumerate(values)
    ]


@pytest.mark.fault(
    9,
    "a pool's name has nginx syntax in it",
    sees="config.yml: pools[0].name: 'a;} server 1.2.3.4': expected",
    keeps=KEEPS,
)
def test_syntax_in_a_pool_is_refused(stack: Stack) -> None:
    stack.config["pools"] = [{"name": name, "nodes": [{"name": "a", "host": "10.0.0.1"}]} for name in SYNTAX]
    assert refused(stack) == [
        f"pools[{i}].name: {quoted(name)}: expected a letter, then up to 62 of A-Z a-z 0-9 _"
        for i, name in enumerate(SYNTAX)
    ]


@pytest.mark.fault(
    9, "a node is there twice", sees="already used by pools[0].nodes[0].… expected … of its own", keeps=KEEPS
)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"name": "node-a"}, {"name": "node-a"}),
        ({"host": "10.0.0.1", "port": 80}, {"host": "10.0.0.1", "port": 80}),
        ({"host": "::1", "port": 80}, {"host": "0:0:0:0:0:0:0:1", "port": 80}),
        ({"host": "one.example", "port": 80}, {"host": "ONE.example", "port": 80}),
    ],
    ids=["name", "address", "spelling", "case"],
)
def test_a_node_that_is_there_twice_is_refused(stack: Stack, first: dict[str, Any], second: dict[str, Any]) -> None:
    nodes = stack.config["pools"][0]["nodes"]
    nodes[0] |= first
    nodes[1] |= second
    (line,) = refused(stack)
    assert line.startswith("pools[0].nodes[1].")


class Crowd:
    """Many idle nodes in one thread, each at an address of its own; every answer names the address."""

    def __init__(self, addresses: list[str]) -> None:
        """Keep where to listen."""
        self.addresses = addresses
        self.port = free_port()
        self.asked: collections.Counter[str] = collections.Counter()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        request = await reader.readuntil(b"\r\n\r\n")
        address = writer.get_extra_info("sockname")[0]
        body = address
        if request.startswith(b"GET /metrics "):
            self.asked[address] += 1
            body = (
                "vllm:kv_cache_usage_perc 0.1\nvllm:num_requests_waiting 0\n"
                "vllm:num_requests_running 0\nvllm:num_preemptions_total 0\n"
            )
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + body.encode())
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Answer at every address meanwhile."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self.answer, self.addresses, self.port))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()


@pytest.mark.fault(
    9,
    "there are 1,000 nodes, and two do not answer",
    sees="llm_cluster/node-999: weight new -> 100",
    keeps="each is asked once a tick, 998 serve",
)
def test_a_thousand_nodes(stack: Stack) -> None:
    addresses = [f"127.1.{i // 250}.{i % 250 + 1}" for i in range(1000)]
    crowd = Crowd([address for i, address in enumerate(addresses) if i not in (300, 600)])
    stack.config["scrape"]["timeout_seconds"] = 30
    stack.config["pools"][0]["nodes"] = [
        {"name": f"node-{i}", "host": address, "port": crowd.port} for i, address in enumerate(addresses)
    ]
    with crowd.listening():
        stack.run()
        assert set(crowd.asked.values()) == {1}
        assert set(crowd.asked) == set(crowd.addresses)
        assert collections.Counter(stack.weights().values()) == {100: 998, 10: 2}
        assert stack.upstream.read_text().count(" weight=100 max_fails=10 ") == 998
        stack.run()
        assert stack.status()["outcome"] == "unchanged"
        answers = collections.Counter(fetch(stack.ingress_port, "/v1/models") for _ in range(100))
        assert set(answers) <= set(crowd.addresses)
        assert len(answers) > 90
