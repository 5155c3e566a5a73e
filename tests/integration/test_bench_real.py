"""The benchmark in real time: short runs with real proxies, the real script and simulated nodes as processes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from benchmarks import real
from benchmarks.contestant import ContestantError, Site
from benchmarks.fleet import PORT, Fleet
from benchmarks.proxies import CONTESTANTS as ALL
from benchmarks.scenario import BY_NAME, ENGINE

if TYPE_CHECKING:
    from pathlib import Path

CONTESTANTS = {each.name: each for each in ALL}
pytestmark = [pytest.mark.slow, pytest.mark.unmeasured, pytest.mark.xdist_group("ports of the benchmark's nodes")]


@pytest.mark.parametrize(
    "name", ["nginx-least-conn", "article", "ours-capacity", "ours-work", "ours-work-no-prefix", "haproxy-weights"]
)
def test_every_stream_of_a_short_run_is_read_to_its_last_token(name: str) -> None:
    summary = real.play(CONTESTANTS[name], BY_NAME["unequal"].shortened(0.1), seed=1, scale=0.1)
    assert summary.requests > 100
    assert (summary.failed, summary.cut) == (0, 0)
    assert summary.ttft_p50 > 0
    assert summary.proxy_cpu_ms
    assert (summary.balancer_cpu_ms or 0) > 0 or not name.startswith(("article", "ours-"))


def test_answers_that_are_not_streamed_are_read_whole_and_are_in_no_percentile() -> None:
    scenario = BY_NAME["not-streamed"].shortened(0.1)
    summary = real.play(CONTESTANTS["nginx-least-conn"], scenario, seed=1, scale=0.1)
    assert (summary.failed, summary.cut) == (0, 0)
    assert summary.goodput > 0.9  # half of the requests can be good only by the time of their whole answers
    assert summary.ttft_p50 > 0


def test_a_node_that_is_killed_and_started_again_loses_only_what_it_had() -> None:
    summary = real.play(CONTESTANTS["ours-capacity"], BY_NAME["restart"].shortened(0.1), seed=1, scale=0.1)
    lost = summary.cut + summary.failed  # failed: those that had no token yet
    assert summary.cut > 0
    assert lost < summary.requests / 10


def test_a_contestant_that_does_not_start_says_why(tmp_path: Path) -> None:
    with Fleet(ENGINE, (1.0, 1.0), tmp_path, 0.1) as fleet, socket.create_server(("127.0.0.1", 0)) as taken:
        directory = tmp_path / "nginx"
        directory.mkdir()
        port = int(taken.getsockname()[1])
        site = Site(directory=directory, backends=fleet.backends, port=port, status_port=PORT, scale=0.1)
        serving = CONTESTANTS["nginx-least-conn"].serve(site)
        with pytest.raises(ContestantError, match=r"bind\(\) to 127\.0\.0\.1"):
            serving.__enter__()
