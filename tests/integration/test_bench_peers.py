"""The benchmark's HAProxy between a client and simulated nodes: streams, weights, and what is tried again."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from benchmarks.contestant import Backend, ContestantError, Site
from benchmarks.haproxy_weights import BACKEND, command
from benchmarks.proxies.haproxy import HAPROXY_SOCKET, HaproxyLeastconn, HaproxyWeights
from tests.integration.conftest import free_port, wait_for
from tests.soak.simulated_site import Node, start_node

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS = 20
FOREVER = 30_000  # tokens; a request that is still running when its test ends
MAX_RUNNING = 8  # of the policy stepped: more requests lower the weight by a level
CONTESTANTS = [HaproxyLeastconn(), HaproxyWeights("stepped")]
both = pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda each: each.name)

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with contextlib.ExitStack() as running:
        yield [
            running.enter_context(start_node(name, host, ("--speed=5",), tmp_path / f"{name}.log"))
            for name, host in (("node-a", "127.0.0.2"), ("node-b", "127.0.0.3"))
        ]


@pytest.fixture
def site(tmp_path: Path, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> Site:
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.chdir(directory)  # the full path of a socket in this directory may be too long
    backends = tuple(Backend(node.name, node.host, node.port) for node in nodes)
    return Site(directory=directory, backends=backends, port=free_port(), status_port=free_port(), scale=0.02)


@contextlib.contextmanager
def open_stream(address: str, max_tokens: int, prompt: str = "hello") -> Iterator[requests.Response]:
    """Start a streamed completion."""
    body = {"model": "sim", "prompt": prompt, "max_tokens": max_tokens, "stream": True}
    with requests.post(f"http://{address}/v1/completions", json=body, stream=True, timeout=30) as answer:
        yield answer


def complete(site: Site, prompt: str = "hello") -> list[bytes]:
    """Return the pieces of a streamed completion through the contestant."""
    with open_stream(f"127.0.0.1:{site.port}", TOKENS, prompt) as answer:
        assert answer.status_code == 200, answer.text
        return [line for line in answer.iter_lines() if line]


def weight(node: Node) -> int:
    """Return the weight that HAProxy gives a node now."""
    return int(command(Path(HAPROXY_SOCKET), f"get weight {BACKEND}/{node.name}").split()[0])


@both
def test_a_stream_comes_through_whole_and_piece_by_piece(contestant: HaproxyLeastconn, site: Site) -> None:
    assert contestant.missing() is None
    with contestant.serve(site):
        pieces = complete(site)
    assert len(pieces) == TOKENS + 1
    assert pieces[-1] == b"data: [DONE]"


@pytest.mark.parametrize("fault", [{"status": {"scope": "api", "code": 503}}, {"refuse": {}}])
@pytest.mark.parametrize("prompt", ["hello", "x" * 60_000], ids=["short", "long"])
def test_what_a_faulty_node_refuses_is_tried_on_the_other(
    site: Site, nodes: list[Node], fault: dict[str, object], prompt: str
) -> None:
    rarely = dataclasses.replace(site, scale=30)  # health checks are too rare to see the fault
    with HaproxyLeastconn().serve(rarely):
        nodes[0].control(faults=fault)
        assert len(complete(site, prompt)) == TOKENS + 1
        assert len(complete(site, prompt)) == TOKENS + 1


def test_an_overloaded_node_loses_weight_and_gets_it_back(site: Site, nodes: list[Node]) -> None:
    busy, idle = nodes
    with HaproxyWeights("stepped").serve(site):
        wait_for(lambda: (weight(busy), weight(idle)) == (100, 100))
        with contextlib.ExitStack() as streams:
            for _ in range(MAX_RUNNING + 1):
                streams.enter_context(open_stream(busy.address, FOREVER))
            wait_for(lambda: weight(busy) == 60)
            assert weight(idle) == 100
        wait_for(lambda: weight(busy) == 100)
        busy.control(faults={"refuse": {}})
        wait_for(lambda: weight(busy) == 0)
        assert weight(idle) == 100


def test_a_policy_that_does_not_exist_is_named(site: Site) -> None:
    with pytest.raises(ContestantError, match="policy: 'guess': expected one of"), HaproxyWeights("guess").serve(site):
        pass
