"""Handlers of /v1, the OpenAI-compatible part of the node."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from aiohttp import web

from simulator.engine_records import Request
from simulator.faults import POLL_SECONDS, Faults, is_connected
from simulator.openai_answers import Answer, embeddings
from simulator.openai_requests import ApiError, parse_call, read_json
from simulator.tokens import prefix_hashes, prompt_text, token_ids

if TYPE_CHECKING:
    from simulator.node import Generation, Node
    from simulator.openai_requests import Call


class OpenAiApi:
    """Handlers of /v1."""

    def __init__(self, node: Node, faults: Faults, stream_interval: int) -> None:
        """Answer for a node, with faults; a piece of a stream holds `stream_interval` tokens."""
        self.node = node
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
        return await self._answer(request, chat=False)

    async def complete_chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion."""
        return await self._answer(request, chat=True)

    async def abort_abandoned(self) -> None:
        """Abort requests whose clients have disconnected, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for generation in [g for g, request in self._open.items() if not is_connected(request)]:
                generation.abort()

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            call = parse_call(await read_json(request), chat=chat, model=self.node.model)
            generation = self._submit(request, call)
        except ApiError as error:
            return error.response()
        answer = Answer(call, generation.request.request_id, self.node)
        self._open[generation] = request
        try:
            if call.stream:
                return await self._stream(request, generation, answer)
            await generation.progress()
            return web.json_response(answer.complete())
        finally:
            del self._open[generation]
            generation.abort()

    def _submit(self, request: web.Request, call: Call) -> Generation:
        prefix = "chatcmpl" if call.chat else "cmpl"
        answer_id = f"{prefix}-{request.headers.get('X-Request-Id') or uuid.uuid4().hex}"
        config = self.node.config
        shared = prefix_hashes(call.prompt, config.block_size) if config.prefix_caching else ()
        wanted = Request(answer_id, call.prompt_tokens, call.max_tokens, shared)
        try:
            return self.node.submit(wanted, self.stream_interval if call.stream else 0)
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    async def _stream(self, request: web.Request, generation: Generation, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        token, head = answer.token(), answer.opening()
        sent, total = 0, answer.call.max_tokens
        try:
            while sent < total:
                available = await generation.progress()
                if generation.request.aborted:
                    break
                last = available == total
                data = head + token * (available - sent - last)
                head, sent = b"", available
                if last:
                    data += answer.token("length") + answer.closing()
                await self.faults.write(request, response, data)
        except ConnectionResetError:  # the client has disconnected
            pass
        return response
