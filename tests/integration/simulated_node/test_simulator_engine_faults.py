"""What real vLLM engines do when they are full, hang, die or end, and how the simulated node shows it."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import requests
from prometheus_client.openmetrics import parser as openmetrics

from tests.integration.simulated_node.node_process import DEADLINE_SECONDS, FOREVER, open_stream, start_node, wait_until
from tests.integration.simulated_node.vllm_errors import DEAD, DRAINING, FULL, error_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.simulated_node.node_process import SimulatedNode

pytestmark = pytest.mark.unmeasured


def post(node: SimulatedNode, max_tokens: int = 3, *, stream: bool = False) -> requests.Response:
    body = {"prompt": "hello", "max_tokens": max_tokens, "stream": stream}
    return requests.post(f"{node.url}/v1/completions", json=body, stream=stream, timeout=DEADLINE_SECONDS)


@contextmanager
def waiting_post(node: SimulatedNode) -> Iterator[list[requests.Response]]:
    """Send a plain request that does not end by itself, wait until it is in the engine, and give its later answer."""
    answers: list[requests.Response] = []
    before = sum(node.running())
    sender = threading.Thread(target=lambda: answers.append(post(node, FOREVER)))
    sender.start()
    wait_until(lambda: sum(node.running()) > before, "the request runs")
    yield answers
    sender.join(DEADLINE_SECONDS)


def test_a_full_node_says_so_at_once_and_counts_it(node: SimulatedNode) -> None:
    refused = "vllm:admission_rejections_total"
    before = node.samples(refused)
    node.control(faults={"admission_limit": {"requests": 1}})
    with open_stream(node):
        for stream in (False, True):
            answer = post(node, stream=stream)
            assert (answer.status_code, error_of(answer.text)) == (503, FULL)
        assert node.get("/health").status_code == 200
        assert node.samples(refused) == [before[0] + 2, before[1]]
    wait_until(lambda: node.running() == [0], "the stream is aborted")
    assert post(node).status_code == 200


def test_streams_of_a_burst_are_refused_after_their_headers(node: SimulatedNode) -> None:
    """As in vLLM: all pass the first check; the second one comes when the headers are sent."""
    node.control(faults={"admission_limit": {"requests": 1}}, speed=0.1)
    with ThreadPoolExecutor(16) as clients:
        texts = list(clients.map(lambda _: post(node, 20, stream=True).text, range(16)))
    ended = [text for text in texts if '"finish_reason":"length"' in text]
    assert {error_of(text) for text in texts if text not in ended} == {FULL}
    assert 1 <= len(ended) < 16


def test_a_draining_node_is_healthy_and_refuses_what_is_new(node: SimulatedNode) -> None:
    with open_stream(node, max_tokens=300) as pieces:
        node.control(faults={"draining": {}})
        for stream in (False, True):
            answer = post(node, stream=stream)
            assert (answer.status_code, error_of(answer.text)) == (500, DRAINING)
        assert node.get("/health").status_code == 200
        assert node.samples("vllm:num_requests_running") == [1]
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_sigterm_drains_for_the_time_that_is_set() -> None:
    with start_node("--shutdown-timeout", "1") as node, open_stream(node, max_tokens=200) as pieces:
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: post(node).status_code == 500, "new requests are refused")
        assert node.get("/health").status_code == 200
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert node.process.wait(DEADLINE_SECONDS) == 0


def test_a_hanging_engine_is_invisible_and_answers_nothing(node: SimulatedNode) -> None:
    node.control(faults={"engine_hang": {}})
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{node.url}/v1/completions", json={"prompt": "a"}, timeout=0.3)
    body = {"prompt": "a", "stream": True}
    with requests.post(f"{node.url}/v1/completions", json=body, stream=True, timeout=DEADLINE_SECONDS) as answer:
        assert answer.status_code == 200
        assert node.control()["engines"][0]["waiting"] >= 1
        for gauge in ("num_requests_running", "num_requests_waiting"):
            assert node.samples(f"vllm:{gauge}") == [0]
        assert node.get("/health").status_code == 200
        node.clear_faults()
        assert answer.text.endswith("data: [DONE]\n\n")


def test_the_gauges_of_an_engine_that_hangs_while_busy_stay(node: SimulatedNode) -> None:
    with open_stream(node):
        node.control(faults={"engine_hang": {}})
        tokens = node.samples("vllm:generation_tokens_total")
    wait_until(lambda: node.running() == [0], "the client has left")
    assert node.samples("vllm:num_requests_running") == [1]
    assert node.samples("vllm:generation_tokens_total") == tokens
    node.clear_faults()
    assert node.samples("vllm:num_requests_running") == [0]


def test_a_dead_engine_ends_requests_with_an_error_and_refuses_others() -> None:
    with start_node("--max-num-seqs", "2") as node, open_stream(node) as begun, waiting_post(node) as plain:
        queued = post(node, stream=True)
        assert queued.status_code == 200
        node.control(faults={"engine_dead": {}})
        assert error_of(queued.text) == DEAD
        assert error_of(b"".join(begun).decode()) == DEAD
        wait_until(lambda: bool(plain), "the plain request is answered")
        assert (plain[0].status_code, error_of(plain[0].text)) == (500, DEAD)
        answer = post(node)
        assert (answer.status_code, error_of(answer.text)) == (500, DEAD)
        assert node.get("/health").status_code == 503
        assert node.samples("vllm:num_requests_running") == [2]
        node.clear_faults()
        assert (node.get("/health").status_code, node.samples("vllm:generation_tokens_total")) == (200, [0])
        assert node.complete()


def test_requests_that_a_shutdown_aborts_look_complete_but_for_their_reason() -> None:
    with start_node("--max-num-seqs", "2") as node, open_stream(node) as begun, waiting_post(node) as plain:
        queued = post(node, stream=True)
        assert node.control(faults={"abort_all": {}})["faults"] == {}
        assert queued.text == "data: [DONE]\n\n"  # it had no token yet
        *_, last, done, _ = b"".join(begun).split(b"\n\n")
        assert json.loads(last.removeprefix(b"data: "))["choices"][0]["finish_reason"] == "abort"
        assert done == b"data: [DONE]"
        wait_until(lambda: bool(plain), "the plain request is answered")
        answer = plain[0].json()
        assert (plain[0].status_code, answer["choices"][0]["finish_reason"]) == (200, "abort")
        assert len(answer["choices"][0]["text"].split()) == answer["usage"]["completion_tokens"] < FOREVER
        assert node.running() == [0]
        assert node.complete()


def test_a_stream_that_waits_gets_comments() -> None:
    with start_node("--fault", "sse_keep_alive=50", "--fault", "engine_hang") as node:
        answer = post(node, stream=True)
        pieces = answer.iter_content(None)
        assert next(pieces) == b": keep-alive\n\n"
        node.control(faults={"engine_hang": None})
        events = [event for event in b"".join(pieces).split(b"\n\n") if not event.startswith(b":")]
        assert (len(events), events[-2:]) == (5, [b"data: [DONE]", b""])


def test_openmetrics(node: SimulatedNode) -> None:
    node.control(faults={"openmetrics": {}})
    answer = node.get("/metrics")
    assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.text.endswith("# EOF\n")
    families = openmetrics.text_string_to_metric_families(answer.text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"vllm:num_requests_running", "vllm:generation_tokens", "vllm:inter_token_latency_seconds"} <= names
    node.clear_faults()
    assert "# EOF" not in node.get("/metrics").text


def test_a_node_without_statistics_shows_those_of_its_process_alone(node: SimulatedNode) -> None:
    node.complete()
    node.control(faults={"no_stats": {}})
    text = node.get("/metrics").text
    assert "vllm:" not in text
    assert "python_info{" in text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"}' in text


def test_gauges_lose_their_samples_until_a_request_has_run(node: SimulatedNode) -> None:
    assert node.samples("vllm:num_requests_running") == [0]
    assert node.control(faults={"unset_gauges": {}})["faults"] == {}
    assert node.samples("vllm:num_requests_running") == node.samples("vllm:kv_cache_usage_perc") == []
    node.complete()
    assert node.samples("vllm:num_requests_running") == [0]


def test_a_response_begins_before_its_first_token(node: SimulatedNode) -> None:
    node.control(faults={"engine_hang": {}})
    with node.client() as client:
        stream = iter(client.responses.create(model="sim", input="hello", max_output_tokens=4, stream=True))
        assert [next(stream).type for _ in range(2)] == ["response.created", "response.in_progress"]
        node.clear_faults()
        events = list(stream)
        answer = client.responses.create(model="sim", input=[{"role": "user", "content": "hello"}], max_output_tokens=4)
    assert [event.type for event in events[:2]] == ["response.output_item.added", "response.content_part.added"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "word " * 4
    assert [event.sequence_number for event in events] == list(range(2, 2 + len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == answer.output_text == "word " * 4
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 4)
