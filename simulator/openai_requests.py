"""What clients ask of /v1: request bodies, checked, and the errors for wrong ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from simulator.tokens import count_text_tokens

DEFAULT_MAX_TOKENS = 16
_KINDS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}  # the type of an error, by status
IMAGE_TOKENS = 256  # of any image, however long its base64 text is


class ApiError(Exception):
    """A request that is answered with an OpenAI error body."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str = "") -> None:
        """Take the HTTP status, the message, the name of the wrong field if there is one, and the type of the error."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.kind = kind or _KINDS[status]

    @property
    def body(self) -> dict[str, object]:
        """The error as vLLM words it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}

    def response(self) -> web.Response:
        """Return the error as an answer."""
        return web.json_response(self.body, status=self.status)

    def events(self) -> bytes:
        """Return the error as the end of a stream whose headers are sent."""
        return b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True)
class Call:
    """A completion request. `prompt` is the value of the body's prompt, messages or input."""

    chat: bool
    prompt_tokens: int
    max_tokens: int
    stream: bool
    include_usage: bool
    prompt: object


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


def parse_response_call(body: object, *, model: str) -> Call:
    """Check the body of a request for a response: the conversation, or the text that a user says, is `input`.

    Raises:
        ApiError: see parse_call.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    said = body.get("input")
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
    names = {"max_output_tokens": "max_tokens", "model": "model", "stream": "stream"}
    wanted = {ours: body[theirs] for theirs, ours in names.items() if theirs in body}
    return parse_call(wanted | {"messages": messages}, chat=True, model=model)


def count_prompt_tokens(prompt: object) -> int:
    """Count a completion's prompt: a text, a list of token ids, or a list holding one of these.

    Raises:
        ApiError: the prompt is none of these.
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
        ApiError: the value is not a list of messages.
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


async def read_json(request: web.Request) -> object:
    """Return the JSON value of a request's body.

    Raises:
        ApiError: the body is not JSON.
    """
    try:
        return await request.json()
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
