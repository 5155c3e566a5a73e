"""/v1 of the simulated node, by the openai client and by plain HTTP."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import openai
import pytest
import requests

from tests.integration.simulated_node.node_process import DEADLINE_SECONDS, FOREVER, open_stream, start_node, wait_until

if TYPE_CHECKING:
    from tests.integration.simulated_node.node_process import SimulatedNode

pytestmark = pytest.mark.unmeasured
HELLO: Any = [{"role": "user", "content": "hello there"}]


def test_chat_completion(node: SimulatedNode) -> None:
    with node.client() as client:
        answer = client.chat.completions.create(model="sim", messages=HELLO, max_completion_tokens=5)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.model, answer.system_fingerprint) == ("sim", "node-a")
    assert answer.choices[0].finish_reason == "length"
    assert len((answer.choices[0].message.content or "").split()) == 5
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)


def test_streamed_chat_completion(node: SimulatedNode) -> None:
    with node.client() as client:
        stream = client.chat.completions.create(
            model="sim", messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
        pieces = list(stream)
    *spoken, usage = pieces
    assert {piece.system_fingerprint for piece in pieces} == {"node-a"}
    assert spoken[0].choices[0].delta.role == "assistant"
    assert len("".join(piece.choices[0].delta.content or "" for piece in spoken).split()) == 7
    assert [piece.choices[0].finish_reason for piece in spoken] == [None] * 7 + ["length"]
    assert usage.usage
    assert not usage.choices
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (3, 7)


def test_completion_generates_sixteen_tokens_unless_told(node: SimulatedNode) -> None:
    with node.client() as client:
        answer = client.completions.create(model="sim", prompt=[1, 2, 3, 4, 5])
    assert answer.id.startswith("cmpl-")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 16)


def test_streamed_completion(node: SimulatedNode) -> None:
    with node.client() as client:
        pieces = list(client.completions.create(model="sim", prompt="hello", max_tokens=4, stream=True))
    assert len("".join(piece.choices[0].text for piece in pieces).split()) == 4
    assert pieces[-1].choices[0].finish_reason == "length"


def test_models_health_and_version(node: SimulatedNode) -> None:
    with node.client() as client:
        assert [model.id for model in client.models.list()] == ["sim"]
    assert node.get("/health").content == b""
    assert node.get("/version").json() == {"version": "0.32.0"}
    unknown = node.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})


def test_prompts_that_begin_alike_are_found_in_the_prefix_cache() -> None:
    beginning, hits = "a prompt of many words " * 40, "vllm:prefix_cache_hits_total"
    with start_node("--prefix-caching", "--block-size", "16") as node, node.client() as client:
        client.completions.create(model="sim", prompt=beginning + "one", max_tokens=1)
        assert node.samples(hits) == [0]
        client.completions.create(model="sim", prompt=beginning + "another", max_tokens=1)
        assert node.samples(hits) == [len(beginning) // 64 * 16]
        client.completions.create(model="sim", prompt="x" + beginning, max_tokens=1)
        assert node.samples(hits) == [len(beginning) // 64 * 16]


def test_a_stream_comes_in_pieces_of_several_tokens_after_the_first() -> None:
    with start_node("--stream-interval", "4") as node:
        body = {"prompt": "a", "max_tokens": 10, "stream": True}
        answer = requests.post(f"{node.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS, stream=True)
        pieces = [piece.count(b"word ") for piece in answer.iter_content(None) if b"word " in piece]
    assert pieces == [1, 3, 4, 2]


def test_tokens_of_prompts_that_begin_alike_begin_alike(node: SimulatedNode) -> None:
    def tokens(prompt: object) -> list[int]:
        answer = requests.post(f"{node.url}/tokenize", json=prompt, timeout=DEADLINE_SECONDS).json()
        assert answer["count"] == len(answer["tokens"])
        return list(answer["tokens"])

    one, other = tokens({"prompt": "hello, world"}), tokens({"prompt": "hello, moon"})
    assert (len(one), one[0], one[1] == other[1]) == (3, other[0], False)
    assert tokens({"messages": [{"role": "user", "content": "hello, world"}]}) == one


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("completions", "{", 400, "the body is not JSON"),
        ("completions", "[]", 400, "must be a JSON object"),
        ("completions", "{}", 400, "prompt: must be"),
        ("completions", '{"prompt": ["a", "b"]}', 400, "prompt: must be one text"),
        ("completions", '{"prompt": "a", "max_tokens": 0}', 400, "max_tokens must be at least 1"),
        ("completions", '{"prompt": "a", "n": 2}', 400, "one choice"),
        ("completions", '{"prompt": "a", "stream_options": {"include_usage": true}}', 400, "when `stream=True`"),
        ("completions", '{"prompt": "a", "max_tokens": 99999}', 400, "maximum context length of 32768 tokens"),
        ("completions", '{"prompt": "a", "model": "other"}', 404, "The model `other` does not exist."),
        ("chat/completions", "{}", 400, "messages: must be a list"),
        ("chat/completions", '{"messages": [{"content": "a"}]}', 400, "with a role"),
        ("chat/completions", '{"messages": [{"role": "user", "content": 1}]}', 400, "content must be"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    node: SimulatedNode, path: str, body: str, status: int, message: str
) -> None:
    answer = requests.post(f"{node.url}/v1/{path}", data=body, timeout=DEADLINE_SECONDS)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status)
    assert message in error["message"]
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def test_the_client_sees_an_unknown_model_as_not_found(node: SimulatedNode) -> None:
    with node.client() as client, pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        client.completions.create(model="other", prompt="a")


def test_a_client_that_leaves_frees_its_place(node: SimulatedNode) -> None:
    aborted = sum(node.samples("vllm:request_success_total"))
    with open_stream(node):
        assert node.running() == [1]
    waiter = socket.create_connection(("127.0.0.1", node.port), DEADLINE_SECONDS)
    body = b'{"prompt":"a","max_tokens":%d}' % FOREVER
    waiter.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    wait_until(lambda: node.running() == [1], "only the second, unstreamed request runs")
    waiter.close()
    wait_until(lambda: node.running() == [0], "both requests are aborted")
    assert node.control()["engines"][0]["kv_cache_usage"] == 0
    assert sum(node.samples("vllm:request_success_total")) == aborted + 2
