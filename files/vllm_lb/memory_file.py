# SPDX-License-Identifier: Apache-2.0
"""Reading memory.json. Only `collect` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb.errors import FailureError
from vllm_lb.files import read_json
from vllm_lb.journal import WARNING, log
from vllm_lb.memory import memory_of
from vllm_lb.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_lb.memory import NodeMemory


def read_memory(path: Path) -> dict[str, NodeMemory]:
    """Return what the last tick remembered, or nothing if there is no such file or it is damaged."""
    problems: list[str] = []
    try:
        raw = read_json(path)
    except FileNotFoundError:
        return {}
    except FailureError as failure:
        problems, raw = [str(failure)], {}
    if not isinstance(raw, dict):
        problems, raw = [f"{path.name} is not a mapping"], {}
    memory = {name: each for name in raw if (each := memory_of(raw[name], name, problems))}
    if problems:
        log(WARNING, f"memory of earlier ticks dropped, starting afresh: {printable(problems[0])}")
        return {}
    return memory
