"""Replay of published traces: Azure's CSV and Mooncake's JSONL."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from typing import TYPE_CHECKING

from benchmarks.workload.call import Call, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MOONCAKE_BLOCK = 512  # tokens of a block that one of its hashes stands for


def read_trace(path: Path, rate: float, seconds: float) -> list[Call]:
    """Replay a trace, its clock stretched to give `rate` requests a second.

    A file whose name ends in .jsonl is read in Mooncake's format, any other one in Azure's.

    Raises:
        ValueError: it is not of that format, or holds fewer than two requests.
    """
    read: Callable[[Path], list[Call]] = read_mooncake if path.suffix == ".jsonl" else read_azure
    calls = read(path)
    first, last = (calls[0].at, calls[-1].at) if calls else (0.0, 0.0)
    if last <= first:
        raise ValueError(f"{path}: expected at least two requests in order of time")
    stretch = (len(calls) - 1) / (last - first) / rate
    return [_moved(call, at) for call in calls if (at := (call.at - first) * stretch) < seconds]


def _moved(call: Call, at: float) -> Call:
    return Call(at, call.prompt_tokens, call.output_tokens, call.conversation, beginning=call.beginning)


def read_azure(path: Path) -> list[Call]:
    """Return the requests of a file with the columns TIMESTAMP, ContextTokens and GeneratedTokens.

    Raises:
        ValueError: it has others.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Call(
                # Seven digits of a second in the file, six in Python.
                datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                max(1, int(row["ContextTokens"])),
                max(1, int(row["GeneratedTokens"])),
                number,
            )
            for number, row in enumerate(rows)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected columns TIMESTAMP, ContextTokens, GeneratedTokens: {error}") from error


def read_mooncake(path: Path) -> list[Call]:
    """Return the requests of a file of Mooncake (https://github.com/kvcache-ai/Mooncake, FAST25-release).

    Each line is an object with `timestamp` in milliseconds, `input_length`, `output_length`, and `hash_ids`: for each
    block of MOONCAKE_BLOCK tokens of the prompt, the last one shorter, a number that tells all tokens up to its end.
    The trace does not tell where an answer comes back in a later prompt.

    Raises:
        ValueError: a line is not of that kind; the message has its number.
    """
    calls = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt, output = int(row["input_length"]), int(row["output_length"])
                beginning = tuple(_spans(row["hash_ids"], prompt))
                calls.append(
                    Call(float(row["timestamp"]) / 1000, max(1, prompt), max(1, output), number, beginning=beginning)
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {number + 1}: expected timestamp, input_length, output_length, hash_ids: {error}"
                ) from error
    return calls


def _spans(hashes: Iterable[int], tokens: int) -> Iterable[Span]:
    for each in hashes:
        if tokens <= 0:
            return
        yield Span(int(each), min(tokens, MOONCAKE_BLOCK))
        tokens -= MOONCAKE_BLOCK
