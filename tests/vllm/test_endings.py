"""How real engines end and stand still, behind both balancers at once: what fails, and what does not."""

from __future__ import annotations

import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
import requests

from tests.integration.conftest import wait_for
from tests.integration.simulated_node.vllm_errors import DEAD, DRAINING, FULL, error_of
from tests.vllm.engines import DEADLINE_SECONDS, MOST_REQUESTS, Engine, complete, open_stream
from tests.vllm.sites import PATIENCE_SECONDS, Clients, ask, start_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.soak.simulated_site import Site

    Record = Callable[[str, object], None]
    SignalTo = Callable[[Engine, signal.Signals], None]

AGAIN_SECONDS = 90  # until a node that is back has requests again
BURST = 3 * MOST_REQUESTS  # at once, where two engines take two thirds


@pytest.fixture
def sites(tmp_path: Path, engines: list[Engine]) -> Iterator[list[Site]]:
    """Start the product twice in front of the same engines: with `work` and with `upstream`."""
    with contextlib.ExitStack() as running:
        yield [running.enter_context(start_site(tmp_path / name, engines, name)) for name in ("work", "upstream")]


@contextlib.contextmanager
def clients_of(sites: list[Site], record: Record) -> Iterator[list[Clients]]:
    """Let clients ask at both sites, and record what failed."""
    clients = [Clients(site) for site in sites]
    try:
        with contextlib.ExitStack() as running:
            for each in clients:
                running.enter_context(each.asking())
            await_good(clients, 10)
            yield clients
    finally:
        for each in clients:
            record(each.site.balancer, each.told())


@contextlib.contextmanager
def standing_still(engine: Engine, signal_to: SignalTo) -> Iterator[None]:
    """Stop processes of an engine for a while."""
    signal_to(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_to(engine, signal.SIGCONT)


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


@pytest.mark.parametrize("idle", [False, True], ids=["busy", "idle"])
@pytest.mark.parametrize(
    "signal_to", [Engine.signal_all, Engine.signal_core], ids=["all processes", "the engine alone"]
)
def test_one_that_stands_still_and_goes_on(
    sites: list[Site], engines: list[Engine], record_property: Record, signal_to: SignalTo, *, idle: bool
) -> None:
    """All processes: connections are made, and nothing answers. The engine alone: /health and /metrics answer."""
    with contextlib.ExitStack() as still:
        if idle:
            wait_for(lambda: engines[0].unfinished() == 0)
            still.enter_context(standing_still(engines[0], signal_to))
        with clients_of(sites, record_property) as clients:
            if not idle:
                still.enter_context(standing_still(engines[0], signal_to))
            stopped = time.monotonic()
            if signal_to == Engine.signal_core:
                assert requests.get(f"{engines[0].url}/health", timeout=DEADLINE_SECONDS).status_code == 200
            # Until the clients that wait for it have given up, and others were served meanwhile.
            wait_for(lambda: time.monotonic() > stopped + PATIENCE_SECONDS + 5, 60, every=0.5)
            still.close()
            await_share(engines[0])
            settled = time.monotonic()
            await_good(clients, 30)
    assert fail_after(clients, settled) == []


def terminate(engine: Engine, _: Iterator[bytes]) -> None:
    """SIGTERM: how the stream ends is chance (test_engine_metrics.py)."""
    assert engine.process
    engine.process.send_signal(signal.SIGTERM)


def terminate_with_a_timeout(engine: Engine, stream: Iterator[bytes]) -> None:
    """SIGTERM: it finishes what it has, answers 500 to all that is new, and says that it is healthy."""
    terminate(engine, stream)
    wait_for(lambda: complete(engine.url).status_code == 500)
    assert error_of(complete(engine.url).text) == DRAINING
    assert requests.get(f"{engine.url}/health", timeout=DEADLINE_SECONDS).status_code == 200
    assert b"".join(stream).endswith(b"data: [DONE]\n\n")


def kill(engine: Engine, stream: Iterator[bytes]) -> None:
    """SIGKILL to all processes: the port closes."""
    engine.stop()
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(stream)


def kill_the_engine_alone(engine: Engine, stream: Iterator[bytes]) -> None:
    """SIGKILL to the engine: the API server answers 500 once, and ends itself."""
    engine.signal_core(signal.SIGKILL)
    assert error_of(b"".join(stream).decode()) == DEAD


@pytest.mark.parametrize(
    ("options", "tokens", "end"),
    [
        pytest.param((), 600, terminate, id="SIGTERM"),
        # So few tokens end within the timeout on a busy machine too.
        pytest.param(("--shutdown-timeout", "12"), 100, terminate_with_a_timeout, id="SIGTERM with --shutdown-timeout"),
        pytest.param((), 600, kill, id="SIGKILL"),
        pytest.param((), 600, kill_the_engine_alone, id="SIGKILL of the engine alone"),
    ],
)
def test_one_that_ends_and_comes_back(
    sites: list[Site],
    engines: list[Engine],
    record_property: Record,
    options: Sequence[str],
    tokens: int,
    end: Callable[[Engine, Iterator[bytes]], None],
) -> None:
    """Nothing fails from when its port is closed, neither while it is away nor when it has requests again."""
    ending, other = engines
    if options:
        ending.restart(*options)
    with clients_of(sites, record_property) as clients:
        await_share(ending)
        with open_stream(other.url, 600) as kept:
            with open_stream(ending.url, tokens) as stream:
                end(ending, stream)
            wait_for(lambda: refuses(ending), DEADLINE_SECONDS)
            gone = time.monotonic()
            await_good(clients, 30)
            assert b"".join(kept).endswith(b"data: [DONE]\n\n")
        assert fail_after(clients, gone) == []
        ending.restart()
        await_share(ending)
        settled = time.monotonic()
        await_good(clients, 30)
    assert fail_after(clients, settled) == []


def test_a_burst_of_more_than_the_engines_take(
    sites: list[Site], engines: list[Engine], record_property: Record
) -> None:
    """--max-num-queued-reqs: what is too much is refused at once, and no node is left out for it afterwards."""
    for site in sites:
        with ThreadPoolExecutor(BURST) as pool:
            asking = partial(ask, site, max_tokens=60, patience_seconds=DEADLINE_SECONDS)
            burst = list(pool.map(asking, range(BURST)))
        refused = [answer for answer in burst if not answer.good]
        record_property(f"{site.balancer}, burst", f"{len(refused)} of {BURST} refused")
        assert refused
        assert {error_of(answer.says) for answer in refused} == {FULL}
    with clients_of(sites, record_property) as clients:
        await_good(clients, 60)
        for engine in engines:
            await_share(engine)
    assert [each.failed() for each in clients] == [[], []]
