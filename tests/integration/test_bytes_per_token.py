"""How many bytes a token of a prompt has, as nginx with the balancer `work` learns it from the answers of vLLM."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import fetch, wait_for
from tests.integration.simulated_node.node_process import start_node
from tests.integration.test_work_balancer import POOL, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.test_work_balancer import WorkStack

__all__ = ["work"]  # a fixture
MODEL = "sim"
AT_FIRST = 4  # bytes
SHARE = 1 / 64  # of a prompt of 16 KiB or more
# Escaped, each of these characters has six bytes; four of them are a token of the simulated node.
TEXT = "中" * 8192
TOKENS = 2048
MESSAGES = [{"role": "user", "content": TEXT}]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def entry(work: WorkStack) -> Iterator[WorkStack]:
    """Send all requests to a simulated node, whose pool names its model."""
    with start_node("--name", "node-a") as node:
        nodes = [{"name": "node-a", "address": "127.0.0.1", "port": node.port, "weight": 100}]
        pools = [{"name": POOL, "models": [MODEL], "nodes": nodes}]
        work.write(json.dumps({"version": 1, "generation": "0a", "pools": pools}))
        work.await_generation("0a")
        yield work


def ask(it: WorkStack, path: str, client: str = "127.0.0.1", **body: object) -> str:
    """Ask for a few tokens as the client of an address, and read the answer to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", it.ingress_port, timeout=30, source_address=(client, 0))
    connection.request("POST", path, json.dumps({"model": MODEL, **body}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200, text
    return text


def learned(it: WorkStack) -> dict[str, float]:
    """Return the bytes of a token, by the model."""
    families = text_string_to_metric_families(fetch(it.status_port, "/work/metrics"))
    [family] = [each for each in families if each.name == "vllm_nginx_lb_work_bytes_per_token"]
    assert all(sample.labels["pool"] == POOL for sample in family.samples)
    return {sample.labels["model"]: sample.value for sample in family.samples}


def await_learned(it: WorkStack, prompts: int, prompt: object, model: str = MODEL) -> None:
    """Wait until nginx has learned from so many of these prompts, and from nothing else."""
    seen = TOKENS / len(json.dumps(prompt))
    expected = 1 / (seen + (1 / AT_FIRST - seen) * (1 - SHARE) ** prompts)
    wait_for(lambda: learned(it) == {model: pytest.approx(expected, rel=1e-4)})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, {"messages": MESSAGES}, id="chat"),
        pytest.param(CHAT, {"messages": MESSAGES, **WITH_USAGE}, id="chat-streamed"),
        pytest.param("/v1/completions", {"prompt": TEXT}, id="completion"),
        pytest.param("/v1/completions", {"prompt": TEXT, **WITH_USAGE}, id="completion-streamed"),
        pytest.param(RESPONSES, {"input": TEXT}, id="response"),
        pytest.param(RESPONSES, {"input": TEXT, "stream": True}, id="response-streamed"),
        pytest.param("/v1/embeddings", {"input": TEXT}, id="embedding"),
    ],
)
def test_each_prompt_teaches_a_little(entry: WorkStack, path: str, body: dict[str, Any]) -> None:
    assert learned(entry) == {}
    prompt = next(body[key] for key in ("messages", "prompt", "input") if key in body)
    for prompts in (1, 2, 3):
        ask(entry, path, f"127.0.0.{prompts}", **body)
        await_learned(entry, prompts, prompt)


def test_a_client_that_asks_often_teaches_no_more_than_others(entry: WorkStack) -> None:
    ask(entry, CHAT, messages=MESSAGES)
    ask(entry, CHAT, messages=[{"role": "user", "content": "Hello!"}], text_2="x" * 16384)
    ask(entry, CHAT, "127.0.0.2", messages=MESSAGES)
    await_learned(entry, 2, MESSAGES)


def test_a_stream_without_usage_teaches_nothing(entry: WorkStack) -> None:
    assert "usage" not in ask(entry, CHAT, messages=MESSAGES, stream=True)
    ask(entry, CHAT, messages=MESSAGES)
    await_learned(entry, 1, MESSAGES)


def test_a_model_that_the_pool_does_not_name_is_no_label(entry: WorkStack) -> None:
    content = json.loads(entry.upstream.read_text())
    del content["pools"][0]["models"]
    entry.write(json.dumps(content | {"generation": "0b"}))
    entry.await_generation("0b")
    ask(entry, CHAT, messages=MESSAGES)
    await_learned(entry, 1, MESSAGES, model="")
