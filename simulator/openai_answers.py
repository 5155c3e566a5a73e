"""The answers of /v1: the JSON of completions, whole and in pieces, and of embeddings."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from typing import TYPE_CHECKING

from simulator.openai_requests import ApiError
from simulator.tokens import count_text_tokens

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.openai_requests import Call

# The text of every token, so that a piece of a stream is encoded once per request.
WORD = "word "


class Answer:
    """Builds the JSON of one answer, and the events of a stream."""

    def __init__(self, call: Call, answer_id: str, node: Node) -> None:
        """Prepare the fields that all pieces of the answer share."""
        self.call = call
        self.made, self.finish_reason = call.max_tokens, "length"
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
        self._token = self._event([self._choice({"content": WORD})])

    def cut(self, tokens: int) -> None:
        """End the answer after so many tokens, as vLLM does when it is shut down."""
        self.made, self.finish_reason = tokens, "abort"
        self.usage |= {"completion_tokens": tokens, "total_tokens": self.call.prompt_tokens + tokens}

    def complete(self) -> dict[str, object]:
        """Return the whole answer."""
        text = WORD * self.made
        choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": self.finish_reason}
        if self.call.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.call.chat else "text_completion"
        return self.common | {"object": kind, "choices": [choice], "usage": self.usage}

    def greeting(self) -> bytes:
        """Return the events that come at once, before the engine has begun: none."""
        return b""

    def opening(self) -> bytes:
        """Return the events that come with the first token."""
        return self._event([self._choice({"role": "assistant", "content": ""})]) if self.call.chat else b""

    def tokens(self, count: int) -> bytes:
        """Return the events of further tokens, of which none is the last."""
        return self._token * count

    def closing(self) -> bytes:
        """Return the event of the last token, and those after it."""
        usage = self._event([], self.usage) if self.call.include_usage else b""
        return self._event([self._choice({"content": WORD}, self.finish_reason)]) + usage + b"data: [DONE]\n\n"

    def cut_off(self) -> bytes:
        """Return the events that end a stream early: of one that had no token yet, the end alone."""
        last = self._event([self._choice({"content": ""}, "abort")]) if self.made else b""
        return last + b"data: [DONE]\n\n"

    def _choice(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
        content = {"delta": delta} if self.call.chat else {"text": delta["content"]}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _event(self, choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.call.chat else "text_completion"
        piece: dict[str, object] = self.common | {"object": kind, "choices": choices}
        if self.call.include_usage:
            piece["usage"] = usage
        return b"data: %b\n\n" % json.dumps(piece, separators=(",", ":")).encode()


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
