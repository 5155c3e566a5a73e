"""The product in front of two real engines, with both balancers: clients that stay, clients that leave, a drain."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.integration.conftest import wait_for
from tests.vllm.engines import MODEL, Engine, open_stream
from tests.vllm.sites import Clients, start_site, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.soak.simulated_site import Site

ABORT_SECONDS = 10  # a busy machine; on an idle one it is 0.2


@pytest.fixture(params=["work", "upstream"])
def site(request: pytest.FixtureRequest, tmp_path: Path, engines: list[Engine]) -> Iterator[Site]:
    """Start the product in front of the engines."""
    with start_site(tmp_path / request.param, engines, request.param) as it:
        yield it


def unfinished(engines: list[Engine]) -> float:
    """Return how many requests the engines have."""
    return sum(engine.unfinished() for engine in engines)


def tokens_of(answer: Any) -> int:
    """Return how many tokens an answer says it has."""
    return int(answer.usage.completion_tokens)


def test_the_openai_client(site: Site, engines: list[Engine], record_property: Callable[[str, object], None]) -> None:
    def ask(number: int) -> int:
        # How many characters there are is chance: special tokens have none.
        more: Any = {"ignore_eos": True}
        usage: Any = {"include_usage": True}
        chat: Any = [{"role": "user", "content": f"hello {number}"}]
        with openai.OpenAI(base_url=f"{url(site)}/v1", api_key="none", max_retries=0, timeout=60) as client:
            plain = client.completions.create(model=MODEL, prompt="hello", max_tokens=9, extra_body=more)
            assert tokens_of(plain) == 9
            *_, last = client.completions.create(
                model=MODEL, prompt="hello", max_tokens=9, stream=True, stream_options=usage, extra_body=more
            )
            assert tokens_of(last) == 9
            *_, end = client.chat.completions.create(
                model=MODEL, messages=chat, max_tokens=9, stream=True, stream_options=usage, extra_body=more
            )
            assert tokens_of(end) == 9
            events = client.responses.create(model=MODEL, input="hello", max_output_tokens=9, stream=True)
            assert [event.type for event in events][-1] == "response.completed"
            assert [model.id for model in client.models.list()] == [MODEL]
        return 5

    before = [engine.samples("vllm:generation_tokens_total")[0] for engine in engines]
    with ThreadPoolExecutor(4) as clients:
        asked = sum(clients.map(ask, range(40)))
    shares = [engine.samples("vllm:generation_tokens_total")[0] - b for engine, b in zip(engines, before, strict=True)]
    record_property("requests without a failure", asked)
    record_property("tokens by engine", shares)
    assert sum(shares) > 40 * 3 * 9
    assert min(shares) > 0


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
def test_a_client_that_leaves_frees_its_place(
    site: Site, engines: list[Engine], record_property: Callable[[str, object], None], *, stream: bool
) -> None:
    wait_for(lambda: unfinished(engines) == 0, 60)
    with openai.OpenAI(base_url=f"{url(site)}/v1", api_key="none", max_retries=0, timeout=1) as client:
        request: Any = {"model": MODEL, "prompt": "hello", "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
        if stream:
            pieces = client.completions.create(**request, stream=True)
            next(iter(pieces))
            wait_for(lambda: unfinished(engines) == 1)
            pieces.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(**request)
    left = time.monotonic()
    wait_for(lambda: unfinished(engines) == 0, ABORT_SECONDS)
    record_property("seconds until the engines knew", round(time.monotonic() - left, 2))


def test_a_drain_cuts_nothing(
    site: Site, engines: list[Engine], record_property: Callable[[str, object], None]
) -> None:
    drained, other = engines
    clients = Clients(site)
    try:
        with clients.asking(), open_stream(url(site), 900) as one, open_stream(url(site), 900) as two:
            assert site.script("drain", drained.name).returncode == 0
            wait_for(lambda: site.rotation() == {f"127.0.0.1:{other.port}"}, 30)
            clients.await_good(20)
            assert all(b"".join(pieces).endswith(b"data: [DONE]\n\n") for pieces in (one, two))
            wait_for(lambda: drained.unfinished() == 0)
            tokens = drained.samples("vllm:generation_tokens_total")
            clients.await_good(20)
            assert drained.samples("vllm:generation_tokens_total") == tokens
            assert site.script("undrain", drained.name).returncode == 0
            wait_for(lambda: drained.samples("vllm:generation_tokens_total") != tokens, 60)
    finally:
        record_property("drain", clients.told())
    assert clients.failed() == []
