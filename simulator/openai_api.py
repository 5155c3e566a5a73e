"""Handlers of /v1, the OpenAI-compatible part of the node."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from aiohttp import web

from simulator.admission import engine_dead
from simulator.engine_records import Request
from simulator.faults import POLL_SECONDS, Faults, is_connected
from simulator.openai_answers import Answer, embeddings
from simulator.openai_requests import ApiError, Call, parse_call, parse_response_call, read_json
from simulator.openai_responses import Response
from simulator.tokens import prefix_hashes, prompt_text, token_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.admission import Admission
    from simulator.node import Generation, Node

KEEP_ALIVE = b": keep-alive\n\n"


class OpenAiApi:
    """Handlers of /v1."""

    def __init__(self, node: Node, faults: Faults, admission: Admission, stream_interval: int) -> None:
        """Answer for a node, with faults; a piece of a stream holds `stream_interval` tokens."""
        self.node = node
        self.admission = admission
        self.stream_interval = stream_interval
        self.faults = faults
        self.started_at = int(time.time())
        self._open: dict[Generation, web.Request] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the handlers."""
        router.add_get("/v1/models", self.list_models)
        router.add_post("/tokenize", self.tokenize)
        router.add_post("/v1/embeddings", self.embed)
        router.add_post("/v1/completions", self.complete)
        router.add_post("/v1/chat/completions", self.complete_chat)
        router.add_post("/v1/responses", self.respond)

    async def list_models(self, _: web.Request) -> web.Response:
        """Answer with the one model."""
        model = {
            "id": self.node.model,
            "object": "model",
            "created": self.started_at,
            "owned_by": "vllm",
            "root": self.node.model,
            "parent": None,
            "max_model_len": self.node.config.longest_request,
            "permission": [],
        }
        return web.json_response({"object": "list", "data": [model]})

    async def tokenize(self, request: web.Request) -> web.Response:
        """Answer with the tokens of a prompt; routers ask for them to find nodes that have its prefix cached."""
        try:
            body = await read_json(request)
        except ApiError as error:
            return error.response()
        tokens = token_ids(prompt_text(body.get("prompt", body.get("messages")))) if isinstance(body, dict) else []
        answer = {"count": len(tokens), "max_model_len": self.node.config.longest_request, "tokens": tokens}
        return web.json_response(answer | {"token_strs": None})

    async def embed(self, request: web.Request) -> web.Response:
        """Answer with embeddings. They take no engine time: in vLLM another kind of model makes them."""
        try:
            return web.json_response(embeddings(await read_json(request), self.node.model))
        except ApiError as error:
            return error.response()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a completion."""
        model = self.node.model
        return await self._answer(request, lambda body: parse_call(body, chat=False, model=model), Answer, "cmpl-")

    async def complete_chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion."""
        model = self.node.model
        return await self._answer(request, lambda body: parse_call(body, chat=True, model=model), Answer, "chatcmpl-")

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a response; none is stored."""
        model = self.node.model
        return await self._answer(request, lambda body: parse_response_call(body, model=model), Response, "resp_")

    async def abort_abandoned(self) -> None:
        """Abort requests whose clients have disconnected, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for generation in [g for g, request in self._open.items() if not is_connected(request)]:
                generation.abort()

    async def _answer(
        self, request: web.Request, parse: Callable[[object], Call], kind: type[Answer], prefix: str
    ) -> web.StreamResponse:
        try:
            call = parse(await read_json(request))
            await self.admission.enter()
        except ApiError as error:
            return error.response()
        try:
            self.admission.check()
        except ApiError as error:
            return await _refuse_stream(request, error) if call.stream else error.response()
        answer_id = prefix + (request.headers.get("X-Request-Id") or uuid.uuid4().hex)
        try:
            generation = self._submit(answer_id, call)
        except ApiError as error:
            return error.response()
        answer = kind(call, answer_id, self.node)
        self._open[generation] = request
        try:
            if call.stream:
                return await self._stream(request, generation, answer)
            await generation.progress()
            if generation.died:
                return engine_dead().response()
            if generation.cut:
                answer.cut(generation.request.generated)
            return web.json_response(answer.complete())
        finally:
            del self._open[generation]
            generation.abort()

    def _submit(self, answer_id: str, call: Call) -> Generation:
        config = self.node.config
        shared = prefix_hashes(call.prompt, config.block_size) if config.prefix_caching else ()
        wanted = Request(answer_id, call.prompt_tokens, call.max_tokens, shared)
        try:
            return self.node.submit(wanted, self.stream_interval if call.stream else 0)
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    async def _stream(self, request: web.Request, generation: Generation, answer: Answer) -> web.StreamResponse:
        response = await _begin_stream(request)
        sent, total = 0, answer.call.max_tokens
        try:
            if greeting := answer.greeting():
                await self.faults.write(request, response, greeting)
            head = answer.opening()
            while sent < total:
                available = await generation.progress(self._patience())
                if available is None:
                    await self.faults.write(request, response, KEEP_ALIVE)
                    continue
                if generation.died:
                    await self.faults.write(request, response, engine_dead().events())
                if generation.cut:
                    answer.cut(available)
                    data = head + answer.tokens(available - sent) + answer.cut_off()
                    await self.faults.write(request, response, data)
                if generation.request.aborted:
                    break
                last = available == total
                data = head + answer.tokens(available - sent - last) + (answer.closing() if last else b"")
                head, sent = b"", available
                await self.faults.write(request, response, data)
        except ConnectionResetError:  # the client has disconnected
            pass
        return response

    def _patience(self) -> float | None:
        """Return after how many seconds without a piece a stream gets a comment; None for never."""
        fault = self.faults.active.get("sse_keep_alive")
        return fault.number / 1000 if fault else None


async def _begin_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


async def _refuse_stream(request: web.Request, error: ApiError) -> web.StreamResponse:
    """Refuse a stream as vLLM does when its second check refuses: after the headers, so with the status 200."""
    response = await _begin_stream(request)
    await response.write(error.events())
    return response
