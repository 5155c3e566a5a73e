"""Chats: independent requests, conversations, and long answers.

Lengths and arrivals follow the statistics of the conversation trace of Azure's LLM inference traces of 2023
(https://github.com/Azure/AzurePublicDataset, CC-BY-4.0): 19,366 requests, 5.5 per second; prompts of 1155 tokens in
the mean and 4142 at p99, outputs of 211 and 601; arrivals with a coefficient of variation (CV) of 1.09. traces.py
replays the trace itself.
"""

from __future__ import annotations

import random

from benchmarks.workload.call import SYSTEM_PROMPT_TOKENS, Call
from benchmarks.workload.draws import MAX_TOKENS, LogNormal, arrivals

AZURE_PROMPT, AZURE_OUTPUT = LogNormal(1155, 4142), LogNormal(211, 601)
AZURE_RATE, AZURE_CV = 5.5, 1.09


def azure(rate: float, seconds: float, seed: int, cv: float = AZURE_CV) -> list[Call]:
    """Draw independent requests with the trace's lengths; `rate` a second for `seconds`."""
    chance = random.Random(f"azure {seed}")
    return [
        Call(at, AZURE_PROMPT.draw(chance), AZURE_OUTPUT.draw(chance), number)
        for number, at in enumerate(arrivals(rate, cv, seconds, chance))
    ]


BURSTY_CV = 13


def bursty(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw requests with the trace's lengths whose arrivals come in bursts."""
    return azure(rate, seconds, seed, BURSTY_CV)


NOT_STREAMED_SHARE = 0.5


def not_streamed(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw requests with the trace's lengths, half of whose answers come whole at their end.

    No published trace tells which answers are streamed; the half is chosen.
    """
    chance = random.Random(f"not streamed {seed}")
    return [
        Call(
            at,
            AZURE_PROMPT.draw(chance),
            AZURE_OUTPUT.draw(chance),
            number,
            streamed=chance.random() >= NOT_STREAMED_SHARE,
        )
        for number, at in enumerate(arrivals(rate, AZURE_CV, seconds, chance))
    ]


LONG_PROMPT, LONG_OUTPUT = LogNormal(300, 1200), LogNormal(1500, 4000)  # answers of a minute and more
LONG_SHARE = 0.25  # of the trace's rate; with 0.3 one slow node fills the KV caches of all


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
