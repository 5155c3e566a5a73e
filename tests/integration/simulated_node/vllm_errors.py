"""The errors of vLLM's API server. Tests expect them of real engines (make test-vllm) and of the simulated node."""

from __future__ import annotations

import json

# Message, type and code.
FULL = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
    "Service Unavailable",
    503,
)
DRAINING = ("cannot schedule new futures after shutdown", "InternalServerError", 500)
DEAD = (
    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "InternalServerError",
    500,
)


def error_of(text: str) -> tuple[str, str, int]:
    """Return message, type and code of an error, whether it is an answer or the end of a stream."""
    if text.startswith("data:"):
        assert text.endswith("\n\ndata: [DONE]\n\n")
        text = text.split("\n\n")[-3].removeprefix("data: ")
    error = json.loads(text)["error"]
    assert error["param"] is None
    return error["message"], error["type"], error["code"]
