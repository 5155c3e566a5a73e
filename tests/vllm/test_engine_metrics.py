"""/metrics of real engines: what the script reads of it, and whether the simulator has the same families."""

from __future__ import annotations

import re
import signal
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Stack, free_port, wait_for
from tests.integration.simulated_node import node_process
from tests.integration.simulated_node.recording import shape_of
from tests.vllm.engines import Engine, body, complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module", params=[(), ("--api-server-count", "2")], ids=["one API server", "two API servers"])
def fresh(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Give the tests an engine that nobody has asked anything; they follow its life, in their order."""
    options: tuple[str, ...] = request.param
    engine = Engine(f"fresh{len(options)}", folder, options)
    engine.start()
    try:
        engine.await_ready()
        yield engine
    finally:
        engine.stop()


def is_shared(engine: Engine) -> bool:
    """Tell whether several API servers share the page."""
    return "--api-server-count" in engine.options


class Script(Stack):
    """The script with one node, and no nginx: what it decides is not under test."""

    def read(self, engine: Engine) -> dict[str, Any]:
        """Scrape an engine, and return what the script read."""
        self.config = {
            "state_directory": str(self.directory / "state"),
            "nginx": {
                "upstream_file": str(self.directory / "upstream.conf"),
                "test_command": ["true"],
                "reload_command": ["true"],
            },
            "pools": [
                {"name": "llm_cluster", "nodes": [{"name": engine.name, "host": "127.0.0.1", "port": engine.port}]}
            ],
        }
        assert self.script("run").returncode == 0, self.heard
        [node] = self.status()["pools"][0]["nodes"]
        return dict(node)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return the script with a state of its own."""
    return Script(tmp_path, [], free_port(), free_port(), "nginx")


def independent_reading(page: str) -> dict[str, float]:
    """Read a page by another parser than the script's: sums over engines, of the cache the fullest."""
    values: dict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            values[sample.name].append(sample.value)
    assert len(values["vllm:num_preemptions_total"]) == 1
    return {
        "kv_cache_usage": max(values["vllm:kv_cache_usage_perc"], default=0.0),
        "waiting": sum(values["vllm:num_requests_waiting"]),
        "running": sum(values["vllm:num_requests_running"]),
        "preemptions": values["vllm:num_preemptions_total"][0],
    }


def compare(script: Script, engine: Engine) -> dict[str, float]:
    """Compare what the script reads with the independent reading, and return that."""
    reading, ours = independent_reading(engine.page()), script.read(engine)
    assert (ours["state"], ours["error"], ours["engines"]) == ("up", None, 1)
    assert {name: ours[name] for name in ("kv_cache_usage", "waiting", "running")} == {
        name: pytest.approx(value, abs=1e-6) for name, value in reading.items() if name != "preemptions"
    }
    return reading


def simulated_shape(engine: Engine, *, asked: bool, hangs: bool = False) -> Any:
    """Return the families of a simulated node with the options of an engine, which was asked before, or hangs."""
    options = ("--api-servers", "2") if is_shared(engine) else ()
    with node_process.start_node(*options) as node:
        if asked:
            node.complete()
        node.control(faults={"engine_hang": {}} if hangs else {})
        return shape_of(node.get("/metrics").text)


def sleeping_core(engine: Engine) -> None:
    """Stop the engine so that its page holds still while two readers read it."""
    engine.signal_core(signal.SIGSTOP)
    last = engine.page()

    def stands() -> bool:
        nonlocal last
        before, last = last, engine.page()
        return independent_reading(before) == independent_reading(last)

    wait_for(stands)


def test_at_the_start(fresh: Engine, script: Script) -> None:
    reading = compare(script, fresh)
    assert set(reading.values()) == {0}
    assert (fresh.samples("vllm:num_requests_running") == []) == is_shared(fresh)
    assert shape_of(fresh.page()) == simulated_shape(fresh, asked=False)


def test_idle_after_requests(fresh: Engine, script: Script) -> None:
    with ThreadPoolExecutor(4) as clients:
        statuses = list(clients.map(lambda _: complete(fresh.url).status_code, range(8)))
    assert set(statuses) == {200}
    wait_for(lambda: fresh.unfinished() == 0)
    assert compare(script, fresh)["running"] == 0
    assert shape_of(fresh.page()) == simulated_shape(fresh, asked=True)


def test_busy(fresh: Engine, script: Script) -> None:
    with ThreadPoolExecutor(12) as clients:
        before = sum(fresh.samples("vllm:generation_tokens_total"))
        asked = [clients.submit(complete, fresh.url, 600) for _ in range(12)]
        wait_for(lambda: fresh.running() > 0 and sum(fresh.samples("vllm:generation_tokens_total")) > before + 50)
        sleeping_core(fresh)
        try:
            reading = compare(script, fresh)
            shape = shape_of(fresh.page())
        finally:
            fresh.signal_core(signal.SIGCONT)
        assert {each.result().status_code for each in asked} == {200}
    assert reading["running"] > 0
    assert reading["kv_cache_usage"] > 0
    assert shape == simulated_shape(fresh, asked=True, hangs=True)


def test_after_preemption(fresh: Engine, script: Script) -> None:
    script.read(fresh)
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(complete, fresh.url, 600) for _ in range(8)]
        assert {each.result().status_code for each in asked} == {200}
    wait_for(lambda: fresh.unfinished() == 0)
    preemptions = independent_reading(fresh.page())["preemptions"]
    assert preemptions > 0
    assert script.read(fresh)["preemptions_delta"] == preemptions
    assert shape_of(fresh.page()) == simulated_shape(fresh, asked=True)


def test_the_time_between_tokens_grows_by_the_number_of_running_requests(fresh: Engine) -> None:
    """Its sum over any interval is the sum of what the requests spent decoding, without a sample of a gauge."""
    names = [f"vllm:{name}_sum" for name in ("inter_token_latency_seconds", "request_decode_time_seconds")]
    before = [fresh.samples(name)[0] for name in names]
    with ThreadPoolExecutor(6) as clients:
        assert {each.status_code for each in clients.map(lambda _: complete(fresh.url, 100), range(6))} == {200}
    wait_for(lambda: fresh.unfinished() == 0)
    between, decoding = (fresh.samples(name)[0] - value for name, value in zip(names, before, strict=True))
    assert between == pytest.approx(decoding, rel=0.01)


def ending(engine: Engine, *, stream: bool) -> str:
    """Ask for more tokens than there is time for, and return how the answer ended."""
    try:
        answer = requests.post(f"{engine.url}/v1/completions", json=body(1800, stream=stream), timeout=20)
    except requests.RequestException as error:
        return type(error).__name__
    reasons = re.findall(r'"finish_reason":"(\w+)"', answer.text)
    return f"{answer.status_code} {' '.join(reasons) or 'without a reason'}"


def test_sigterm_without_a_timeout_ends_requests_early(
    fresh: Engine, record_property: Callable[[str, object], None]
) -> None:
    """How is chance: a part of the answer with 200 and "abort", 500 or an error event, a cut connection, or silence.

    It is the last test of an engine.
    """
    with ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(ending, fresh, stream=bool(number % 2)) for number in range(12)]
        wait_for(lambda: fresh.running() == 8)
        assert fresh.process
        fresh.process.send_signal(signal.SIGTERM)
        endings = Counter(each.result() for each in asked)
    record_property("how requests ended", dict(endings))
    assert not [each for each in endings if "length" in each or "stop" in each]
