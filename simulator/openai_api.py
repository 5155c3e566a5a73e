"""The OpenAI-compatible part of the node: completions, chat completions, embeddings and the list of models."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simulator.engine import Request
from simulator.faults import POLL_SECONDS, Faults, is_connected

if TYPE_CHECKING:
    from simulator.node import Generation, Node

DEFAULT_MAX_TOKENS = 16
CHARACTERS_PER_TOKEN = 4
# An image costs the same however many bytes its base64 has.
IMAGE_TOKENS = 256
# Every token reads the same, so that a piece of a stream is encoded once per request.
WORD = "word "


class ApiError(Exception):
    """A request that is answered with an OpenAI error body."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        """Keep the HTTP status, what is wrong, and with which field."""
        super().__init__(message)
        self.status = status
        self.param = param

    def response(self) -> web.Response:
        """Return the error as vLLM words it."""
        kind = "NotFoundError" if self.status == web.HTTPNotFound.status_code else "BadRequestError"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.status}
        return web.json_response({"error": error}, status=self.status)


@dataclass(frozen=True, slots=True)
class Call:
    """What a client asked for."""

    chat: bool
    prompt_tokens: int
    max_tokens: int
    stream: bool
    include_usage: bool
    prompt: object  # as it came


def count_text_tokens(text: str) -> int:
    """Estimate the tokens of a text."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def count_prompt_tokens(prompt: object) -> int:
    """Count a completion's prompt: a text, a list of token ids, or a list holding one of these.

    Raises:
        ApiError: it is none of them.
    """
    if isinstance(prompt, str):
        return max(1, count_text_tokens(prompt))
    if isinstance(prompt, list) and prompt:
        if all(type(token) is int for token in prompt):
            return len(prompt)
        if len(prompt) == 1:
            return count_prompt_tokens(prompt[0])
    raise ApiError(400, "prompt: must be one text or one list of token ids", "prompt")


def count_message_tokens(messages: object) -> int:
    """Count a conversation's prompt.

    Raises:
        ApiError: it is not a list of messages.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: must be a list of at least one message", "messages")
    total = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, "messages: each must be an object with a role", "messages")
        content = message.get("content") or ""
        if isinstance(content, str):
            total += count_text_tokens(content)
        elif isinstance(content, list) and all(isinstance(part, dict) for part in content):
            total += sum(_count_part_tokens(part) for part in content)
        else:
            raise ApiError(400, "messages: content must be a text or a list of parts", "messages")
    return max(1, total)


def _count_part_tokens(part: dict[str, Any]) -> int:
    return count_text_tokens(str(part.get("text", ""))) if part.get("type") == "text" else IMAGE_TOKENS


def parse_call(body: object, *, chat: bool, model: str) -> Call:
    """Check a request body.

    Raises:
        ApiError: 404 for a model that is not served, 400 for anything else that is wrong.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    if body.get("model") not in (None, model):
        raise ApiError(404, f"The model `{body['model']}` does not exist.", "model")
    count, prompt = (count_message_tokens, "messages") if chat else (count_prompt_tokens, "prompt")
    prompt_tokens = count(body.get(prompt))
    limit = body.get("max_completion_tokens") if chat else None
    limit = body.get("max_tokens") if limit is None else limit
    limit = DEFAULT_MAX_TOKENS if limit is None else limit
    if type(limit) is not int or limit < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {limit!r}.", "max_tokens")
    if body.get("n") not in (None, 1):
        raise ApiError(400, "n: this simulator gives one choice", "n")
    stream = body.get("stream") or False
    options = body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict) or (options and not stream):
        raise ApiError(400, "Stream options can only be defined when `stream=True`.", "stream_options")
    return Call(chat, prompt_tokens, limit, stream, bool(options.get("include_usage")), body.get(prompt))


def prefix_hashes(prompt: object, block_size: int) -> list[int]:
    """Hash a prompt up to the end of each of its whole blocks.

    Prompts of token ids are never taken to be alike, and what a node answered is not in its prefix cache.
    """
    text = prompt_text(prompt)
    size, chain, hashes = block_size * CHARACTERS_PER_TOKEN, 0, []
    for end in range(size, len(text) + 1, size):
        chain = hash((chain, text[end - size : end]))
        hashes.append(chain)
    return hashes


def prompt_text(prompt: object) -> str:
    """Return a prompt's text: of a conversation all of its texts, one after the other, of token ids none."""
    if isinstance(prompt, list):
        return "".join(str(m.get("content")) for m in prompt if isinstance(m, dict))
    return prompt if isinstance(prompt, str) else ""


def token_ids(text: str) -> list[int]:
    """Return an id for each token of a text, the same for the same characters."""
    pieces = (text[at : at + CHARACTERS_PER_TOKEN] for at in range(0, len(text), CHARACTERS_PER_TOKEN))
    return [zlib.crc32(piece.encode()) for piece in pieces]


def embeddings(body: object, model: str) -> dict[str, object]:
    """Return a short vector for each text of an embeddings request, the same for the same text.

    Raises:
        ApiError: there is no text.
    """
    texts = body.get("input") if isinstance(body, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(body, dict) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "input: must be a text or a list of texts", "input")
    data = []
    for index, text in enumerate(texts):
        vector: list[float] | str = [zlib.crc32(text.encode(), salt) / 2**32 for salt in range(4)]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<4f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(map(count_text_tokens, texts))
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


class Answer:
    """Builds the JSON of one answer."""

    def __init__(self, call: Call, answer_id: str, node: Node) -> None:
        """Fix what all pieces of the answer share."""
        self.call = call
        self.common = {
            "id": answer_id,
            "created": int(time.time()),
            "model": node.model,
            "system_fingerprint": node.name,
        }
        self.usage = {
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.max_tokens,
            "total_tokens": call.prompt_tokens + call.max_tokens,
        }

    def complete(self) -> dict[str, object]:
        """Return the whole answer."""
        text = WORD * self.call.max_tokens
        choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        if self.call.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.call.chat else "text_completion"
        return self.common | {"object": kind, "choices": [choice], "usage": self.usage}

    def opening(self) -> bytes:
        """Return what a stream says before its first token."""
        return self._event([self._choice({"role": "assistant", "content": ""})]) if self.call.chat else b""

    def token(self, finish_reason: str | None = None) -> bytes:
        """Return one token of a stream."""
        return self._event([self._choice({"content": WORD}, finish_reason)])

    def closing(self) -> bytes:
        """Return what a stream says after its last token."""
        usage = self._event([], self.usage) if self.call.include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def _choice(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
        content = {"delta": delta} if self.call.chat else {"text": delta["content"]}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _event(self, choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.call.chat else "text_completion"
        piece: dict[str, object] = self.common | {"object": kind, "choices": choices}
        if self.call.include_usage:
            piece["usage"] = usage
        return b"data: %b\n\n" % json.dumps(piece, separators=(",", ":")).encode()


class OpenAiApi:
    """Handlers of /v1."""

    def __init__(self, node: Node, faults: Faults, stream_interval: int) -> None:
        """Serve this node, through these faults; a piece of a stream holds `stream_interval` tokens."""
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
        """Answer with the tokens of a prompt, which routers ask for to find nodes that have its beginning cached."""
        try:
            body = await _read_json(request)
        except ApiError as error:
            return error.response()
        tokens = token_ids(prompt_text(body.get("prompt", body.get("messages")))) if isinstance(body, dict) else []
        answer = {"count": len(tokens), "max_model_len": self.node.config.longest_request, "tokens": tokens}
        return web.json_response(answer | {"token_strs": None})

    async def embed(self, request: web.Request) -> web.Response:
        """Answer with embeddings, which cost nothing here: vLLM gives them with models that give nothing else."""
        try:
            return web.json_response(embeddings(await _read_json(request), self.node.model))
        except ApiError as error:
            return error.response()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a completion."""
        return await self._answer(request, chat=False)

    async def complete_chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion."""
        return await self._answer(request, chat=True)

    async def abort_abandoned(self) -> None:
        """Abort requests whose client is gone, for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for generation in [g for g, request in self._open.items() if not is_connected(request)]:
                generation.abort()

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            call = parse_call(await _read_json(request), chat=chat, model=self.node.model)
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
        except ConnectionResetError:  # the client is gone: nobody to tell
            pass
        return response


async def _read_json(request: web.Request) -> object:
    try:
        return await request.json()
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
