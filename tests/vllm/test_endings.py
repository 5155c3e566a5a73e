"""How real engines end and stand still, behind both balancers at once: what fails, and what does not."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest
import requests

from tests.integration.conftest import wait_for
from tests.vllm.engines import DEADLINE_SECONDS, Engine, complete, open_stream
from tests.vllm.sites import PATIENCE_SECONDS, Clients, start_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.soak.simulated_site import Site

    Record = Callable[[str, object], None]

AGAIN_SECONDS = 90  # until a node that is back has requests again


@pytest.fixture
def sites(tmp_path: Path, engines: list[Engine]) -> Iterator[list[Site]]:
    """Start the product twice in front of the same engines: with `work` and with `upstream`."""
    with contextlib.ExitStack() as running:
        yield [running.enter_context(start_site(tmp_path / name, engines, name)) for name in ("work", "upstream")]


@contextlib.contextmanager
def clients_of(sites: list[Site], record: Record) -> Iterator[list[Clients]]:
    """Let clients ask at both sites, and record what failed."""
    clients = [Clients(site) for site in sites]
    with contextlib.ExitStack() as running:
        for each in clients:
            running.enter_context(each.asking())
        for each in clients:
            each.await_good(10)
        yield clients
    for each in clients:
        record(each.site.balancer, each.told())


def await_good(clients: list[Clients], more: int) -> None:
    """Wait for so many more good answers at each site."""
    for each in clients:
        each.await_good(more, AGAIN_SECONDS)


def await_share(engine: Engine) -> None:
    """Wait until an engine makes tokens for somebody."""
    [made] = engine.samples("vllm:generation_tokens_total")
    wait_for(lambda: engine.samples("vllm:generation_tokens_total")[0] > made, AGAIN_SECONDS)


def fail_after(clients: list[Clients], moment: float) -> list[str]:
    """Return what failed of the requests that began after a moment."""
    return [f"{each.site.balancer}: {answer}" for each in clients for answer in each.failed() if answer.began > moment]


def refuses(engine: Engine) -> bool:
    """Tell whether an engine's port is closed."""
    try:
        requests.get(f"{engine.url}/health", timeout=1)
    except requests.ConnectionError:
        return True
    except requests.RequestException:
        return False
    return False


def test_one_that_is_stopped_and_goes_on(sites: list[Site], engines: list[Engine], record_property: Record) -> None:
    """SIGSTOP to all of its processes: connections are made, and nothing answers."""
    with clients_of(sites, record_property) as clients:
        engines[0].signal_all(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            # Until the clients that wait for it have lost their patience, and others were served meanwhile.
            wait_for(lambda: time.monotonic() > stopped + PATIENCE_SECONDS + 5, 60, every=0.5)
        finally:
            engines[0].signal_all(signal.SIGCONT)
        await_share(engines[0])
        settled = time.monotonic()
        await_good(clients, 30)
    assert fail_after(clients, settled) == []


def test_an_engine_that_hangs_behind_its_api_server(
    sites: list[Site], engines: list[Engine], record_property: Record
) -> None:
    """SIGSTOP to the engine alone: /health and /metrics answer."""
    with clients_of(sites, record_property) as clients:
        engines[0].signal_core(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            assert requests.get(f"{engines[0].url}/health", timeout=DEADLINE_SECONDS).status_code == 200
            wait_for(lambda: time.monotonic() > stopped + PATIENCE_SECONDS + 5, 60, every=0.5)
        finally:
            engines[0].signal_core(signal.SIGCONT)
        await_share(engines[0])
        settled = time.monotonic()
        await_good(clients, 30)
    assert fail_after(clients, settled) == []


def test_sigterm_with_a_shutdown_timeout(sites: list[Site], engines: list[Engine], record_property: Record) -> None:
    """It finishes what it has, answers 500 to all that is new, and says that it is healthy."""
    with clients_of(sites, record_property) as clients:
        with open_stream(engines[0].url, 600) as pieces:
            assert engines[0].process
            engines[0].process.send_signal(signal.SIGTERM)
            wait_for(lambda: complete(engines[0].url).status_code == 500)
            assert requests.get(f"{engines[0].url}/health", timeout=DEADLINE_SECONDS).status_code == 200
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        wait_for(lambda: refuses(engines[0]), DEADLINE_SECONDS)
        gone = time.monotonic()
        await_good(clients, 30)
        assert fail_after(clients, gone) == []
        engines[0].stop()
        engines[0].ensure_ready()
        await_share(engines[0])
        settled = time.monotonic()
        await_good(clients, 30)
    assert fail_after(clients, settled) == []


@pytest.mark.parametrize("victim", ["all processes", "the engine alone"])
def test_kill_9(sites: list[Site], engines: list[Engine], record_property: Record, victim: str) -> None:
    """All processes: its port closes. The engine alone: the API server answers 500 once, and ends itself."""
    with clients_of(sites, record_property) as clients, contextlib.ExitStack() as streams:
        # One stream at each engine, which the client's answers do not count.
        cut, kept = (streams.enter_context(open_stream(engine.url, 600)) for engine in engines)
        if victim == "all processes":
            engines[0].stop()
        else:
            engines[0].signal_core(signal.SIGKILL)
        wait_for(lambda: refuses(engines[0]), DEADLINE_SECONDS)
        gone = time.monotonic()
        await_good(clients, 30)
        assert b"".join(kept).endswith(b"data: [DONE]\n\n")
        if victim == "all processes":
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                list(cut)
        else:
            assert b"EngineCore encountered an issue." in b"".join(cut)
    assert fail_after(clients, gone) == []
