"""The answers of /v1/responses, whole and as the events of a stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from simulator.openai_answers import WORD, Answer

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.openai_requests import Call


class Response(Answer):
    """Builds the JSON of one response, and the events of a stream. Its first events come before any token."""

    def __init__(self, call: Call, answer_id: str, node: Node) -> None:
        """Prepare the fields that all events share."""
        super().__init__(call, answer_id, node)
        self._events = 0
        self._item = f"msg_{answer_id.removeprefix('resp_')}"

    def complete(self) -> dict[str, object]:
        """Return the whole response."""
        return self._response("completed", [self._message("completed", WORD * self.made)])

    def greeting(self) -> bytes:
        """Return the events that come at once, before the engine has begun."""
        begun: dict[str, object] = {"response": self._response("in_progress", [])}
        return self._say("response.created", begun) + self._say("response.in_progress", begun)

    def opening(self) -> bytes:
        """Return the events that come with the first token."""
        part: dict[str, object] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        added = self._say("response.output_item.added", {"output_index": 0, "item": self._message("in_progress")})
        return added + self._say("response.content_part.added", self._place() | {"part": part})

    def tokens(self, count: int) -> bytes:
        """Return the event of further tokens: several of them are one event."""
        delta = {"delta": WORD * count, "logprobs": []}
        return self._say("response.output_text.delta", self._place() | delta) if count else b""

    def closing(self) -> bytes:
        """Return the event of the last token, and those after it."""
        text = WORD * self.made
        last = self.tokens(1)
        done = self._say("response.output_text.done", self._place() | {"text": text, "logprobs": []})
        message = self._message("completed", text)
        item = self._say("response.output_item.done", {"output_index": 0, "item": message})
        return (
            last + done + item + self._say("response.completed", {"response": self._response("completed", [message])})
        )

    def cut_off(self) -> bytes:
        """Return the event that ends a stream early."""
        output = [self._message("completed", WORD * self.made)] if self.made else []
        return self._say("response.completed", {"response": self._response("completed", output)})

    def _response(self, status: str, output: list[dict[str, object]]) -> dict[str, object]:
        done = status == "completed"
        tokens = {
            "input_tokens": self.call.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.call.prompt_tokens + self.made,
        }
        return {
            "id": self.common["id"],
            "object": "response",
            "created_at": self.common["created"],
            "model": self.common["model"],
            "status": status,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "none",
            "tools": [],
            "usage": tokens if done else None,
        }

    def _message(self, status: str, text: str | None = None) -> dict[str, object]:
        part: dict[str, object] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
        content = [] if text is None else [part]
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _say(self, kind: str, content: dict[str, object]) -> bytes:
        event = content | {"type": kind, "sequence_number": self._events}
        self._events += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps(event, separators=(",", ":")).encode())
