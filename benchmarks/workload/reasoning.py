"""Reasoning: short prompts, and answers of thousands of tokens.

Lengths are those of the DeepSeek-R1 requests in ServeGen, which describes Alibaba's production workloads
(https://github.com/alibaba/ServeGen, https://arxiv.org/abs/2505.09999), all its clients weighted by their requests:
prompts of 208 tokens at the median and 2,092 at p90; answers, reasoning included, of 1,527 tokens in the mean, 3,432 at
p90 and 12,607 at p99.
"""

from __future__ import annotations

import random

from benchmarks.workload.call import Call
from benchmarks.workload.chats import AZURE_CV, AZURE_OUTPUT, AZURE_PROMPT
from benchmarks.workload.draws import LogNormal, arrivals

REASONING_PROMPT = LogNormal.through(208, 2092)
REASONING_OUTPUT = LogNormal(1527, 12_607, most=16_000)
MIXED_SHARE = 0.2  # of the requests of the mix; chosen


def reasoning(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw reasoning alone."""
    return _mix(f"reasoning {seed}", 1.0, rate, seconds)


def reasoning_mix(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw reasoning among requests with the lengths of Azure's conversations."""
    return _mix(f"reasoning mix {seed}", MIXED_SHARE, rate, seconds)


def _mix(name: str, share: float, rate: float, seconds: float) -> list[Call]:
    chance = random.Random(name)
    calls = []
    for number, at in enumerate(arrivals(rate, AZURE_CV, seconds, chance)):
        thinks = chance.random() < share
        prompt, output = (REASONING_PROMPT, REASONING_OUTPUT) if thinks else (AZURE_PROMPT, AZURE_OUTPUT)
        calls.append(Call(at, prompt.draw(chance), output.draw(chance), number))
    return calls
