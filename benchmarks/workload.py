"""Requests to send: when, how long their prompts and answers are, and what their prompts share.

Lengths and arrivals follow the statistics of the conversation trace of Azure's LLM inference traces of 2023
(https://github.com/Azure/AzurePublicDataset, CC-BY-4.0): 19,366 requests, 5.5 per second; prompts of 1155 tokens in
the mean and 4142 at p99, outputs of 211 and 601; arrivals with a coefficient of variation (CV) of 1.09. read_trace()
replays the trace itself.
"""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHARACTERS_PER_TOKEN = 4  # as the simulated node counts
MAX_TOKENS = 14050  # the longest prompt of the trace
SYSTEM_PROMPT_TOKENS = 208  # 13 blocks of 16


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        at: seconds since the start.
        prompt_tokens: >= 1.
        output_tokens: >= 1.
        conversation: calls of one conversation share the beginnings of their prompts.
        system_prompt: whether the prompt begins with the one that all such calls share.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    conversation: int
    system_prompt: bool = False

    def prefix(self, block_size: int) -> tuple[int, ...]:
        """Return a name for each whole block of the prompt, equal where prompts are equal up to its end."""
        common = SYSTEM_PROMPT_TOKENS // block_size if self.system_prompt else 0
        blocks = range(self.prompt_tokens // block_size)
        return tuple(-1 - i if i < common else (self.conversation << 20) + i for i in blocks)

    def prompt(self) -> str:
        """Return a text of that length, equal to that of other calls as far as their prefixes are."""
        common = SYSTEM_PROMPT_TOKENS if self.system_prompt else 0
        own = max(0, self.prompt_tokens - common)
        chance = random.Random(self.conversation)
        # One random piece a block: enough for prompts to differ, and cheap to make.
        pieces = (f"{chance.getrandbits(64):016x}" * 4 for _ in range(-(-own // 16)))
        text = ("system prompt of all conversations " * 40)[: common * CHARACTERS_PER_TOKEN] + "".join(pieces)
        return text[: self.prompt_tokens * CHARACTERS_PER_TOKEN]


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal distribution of token counts by its mean and 99th percentile."""

    mean: float
    p99: float

    def draw(self, chance: random.Random) -> int:
        """Draw a count from 1 to MAX_TOKENS.

        With ln X ~ N(mu, sigma²): mean = exp(mu + sigma²/2) and p99 = exp(mu + z sigma), z the 99th percentile of the
        standard normal distribution. So ln(p99 / mean) = z sigma - sigma²/2, and the smaller solution for sigma is
        used.
        """
        z = 2.3263479
        sigma = z - math.sqrt(z * z - 2 * math.log(self.p99 / self.mean))
        mu = math.log(self.mean) - sigma * sigma / 2
        return min(MAX_TOKENS, max(1, round(chance.lognormvariate(mu, sigma))))


AZURE_PROMPT, AZURE_OUTPUT = LogNormal(1155, 4142), LogNormal(211, 601)
AZURE_RATE, AZURE_CV = 5.5, 1.09


def arrivals(rate: float, cv: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """Yield arrival times: gamma-distributed gaps, as vLLM's own benchmark draws them (its burstiness is 1 / cv²)."""
    shape = 1 / cv**2
    at = chance.gammavariate(shape, 1 / (rate * shape))
    while at < seconds:
        yield at
        at += chance.gammavariate(shape, 1 / (rate * shape))


LONG_PROMPT, LONG_OUTPUT = LogNormal(300, 1200), LogNormal(1500, 4000)  # answers of a minute and more
LONG_SHARE = 0.25  # of the trace's rate; with 0.3 one slow node fills the KV caches of all


def azure(rate: float, seconds: float, seed: int, cv: float = AZURE_CV) -> list[Call]:
    """Draw independent requests with the trace's lengths; `rate` a second for `seconds`."""
    chance = random.Random(f"azure {seed}")
    return [
        Call(at, AZURE_PROMPT.draw(chance), AZURE_OUTPUT.draw(chance), number)
        for number, at in enumerate(arrivals(rate, cv, seconds, chance))
    ]


def long_streams(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw requests with long answers, as many as make about as much work as `rate` requests of the trace."""
    chance = random.Random(f"long streams {seed}")
    return [
        Call(at, LONG_PROMPT.draw(chance), LONG_OUTPUT.draw(chance), number)
        for number, at in enumerate(arrivals(rate * LONG_SHARE, AZURE_CV, seconds, chance))
    ]


TURNS = range(2, 9)
FIRST_TURN, LATER_TURN = LogNormal(400, 1600), LogNormal(120, 500)
PAUSE_SECONDS = 15  # mean, from an answer to the next question


def multi_turn(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw conversations: a turn's prompt is all earlier prompts and answers, and a new question.

    A turn follows its predecessor after the time of an answer at 20 tokens per second and a pause. Conversations that
    begin before the start are drawn too, so that the rate is constant.
    """
    chance = random.Random(f"multi turn {seed}")
    calls: list[Call] = []
    turns = (TURNS.start + TURNS.stop - 1) / 2
    lead = TURNS.stop * (PAUSE_SECONDS + AZURE_OUTPUT.mean / 20)
    for number, begin in enumerate(arrivals(rate / turns, AZURE_CV, seconds + lead, chance)):
        at, prompt = begin - lead, SYSTEM_PROMPT_TOKENS + FIRST_TURN.draw(chance)
        for _ in range(chance.choice(TURNS)):
            output = AZURE_OUTPUT.draw(chance)
            if 0 <= at < seconds:
                calls.append(Call(at, prompt, output, number, system_prompt=True))
            at += output / 20 + chance.expovariate(1 / PAUSE_SECONDS)
            prompt = min(MAX_TOKENS, prompt + output + LATER_TURN.draw(chance))
    return sorted(calls, key=lambda call: call.at)


def read_trace(path: Path, rate: float, seconds: float) -> list[Call]:
    """Replay a trace in Azure's CSV format, its clock stretched to give `rate` requests a second.

    Raises:
        ValueError: it is not of that format, or holds fewer than two requests.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        # Seven digits of a second in the file, six in Python.
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        lengths = [(max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"]))) for row in rows]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected columns TIMESTAMP, ContextTokens, GeneratedTokens: {error}") from error
    if len(rows) < 2 or times[-1] <= times[0]:  # noqa: PLR2004 - a rate needs two
        raise ValueError(f"{path}: expected at least two requests in order of time")
    stretch = (len(rows) - 1) / (times[-1] - times[0]) / rate
    calls = [
        Call((at - times[0]) * stretch, prompt, output, number)
        for number, (at, (prompt, output)) in enumerate(zip(times, lengths, strict=True))
    ]
    return [call for call in calls if call.at < seconds]
