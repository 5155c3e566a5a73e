"""Agents: sessions in which a model calls tools, each turn's prompt being all that came before and a tool's result.

Coding agents follow TraceLab, 4,265 real sessions of Claude Code and Codex with 357,161 calls of a model
(https://arxiv.org/abs/2606.30560, https://tracelab.cs.washington.edu): answers of 523 tokens in the mean (186.9
million in all), and, where a prompt already has 64,000 to 256,000 tokens, 2,160 new ones in the mean (its table of
appended tokens by prefix has 1,600 and 1,400 for Claude, 2,700 and 2,200 for Codex, weighted here by calls), with
medians of 710 to 800. Other figures are chosen: how long the prompts are (those of TraceLab have 154,000 tokens in the
mean), the spread of the answers, and the pauses between turns.

Tool loops follow the tool and agent trace of Mooncake (https://github.com/kvcache-ai/Mooncake, FAST25-release):
prompts of 8,596 tokens and answers of 182 in the mean. Its README gives means alone, so how a loop grows to that mean
is chosen, and the spread of the answers is that of Mooncake's conversation trace.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.workload.call import Call, Span
from benchmarks.workload.chats import AZURE_CV
from benchmarks.workload.draws import LogNormal, arrivals

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = Span(1, 3000)  # the tools and the system prompt of all sessions
TOKENS_PER_SECOND = 30  # of an answer; only when the next turn begins depends on it


@dataclass(frozen=True, slots=True)
class Loop:
    """How a session goes on. Tokens are those of a session alone, without TOOLS.

    Attributes:
        result: tokens that a tool adds, beside the model's own answer.
        output: tokens of an answer.
        pause_seconds: mean, from an answer to the next turn; exponentially distributed.
    """

    result: LogNormal
    output: LogNormal
    pause_seconds: float

    @property
    def cycle_seconds(self) -> float:
        """From one turn to the next, in the mean."""
        return self.output.mean / TOKENS_PER_SECOND + self.pause_seconds

    def turns(self, number: int, begin: float, first: int, chance: random.Random) -> Iterator[Call]:
        """Draw the turns of a session without end; `first` is the length of its first prompt."""
        at, own = begin, first
        while True:
            output = self.output.draw(chance)
            yield Call(at, TOOLS.tokens + own, output, number, beginning=(TOOLS,))
            at += output / TOKENS_PER_SECOND + chance.expovariate(1 / self.pause_seconds)
            own += output + self.result.draw(chance)


# A turn adds 2,000 tokens in the mean: an answer and a tool's result.
CODING = Loop(LogNormal(1477, 16_000, most=30_000), LogNormal(523, 4000, most=16_000), pause_seconds=8.0)
SHORTEST, LONGEST_FIRST, LONGEST = 40_000, 120_000, 160_000
STARTING_SHARE = 0.2  # of the time; all sessions begin in it, so that few of the later requests are new to every node


def coding_agents(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw turns of coding agents: 3,000 shared tokens, then 40,000 to 160,000 that grow by 2,000 a turn.

    There are as many sessions as make `rate` requests a second once all have begun. A session that would pass 160,000
    tokens begins anew with 40,000, in a new conversation.
    """
    chance = random.Random(f"coding agents {seed}")
    sessions = max(1, round(rate * CODING.cycle_seconds))
    calls = []
    for session in range(sessions):
        number, at = session, seconds * STARTING_SHARE * session / sessions
        turns = CODING.turns(number, at, chance.randint(SHORTEST, LONGEST_FIRST), chance)
        while (call := next(turns)).at < seconds:
            if call.prompt_tokens > TOOLS.tokens + LONGEST:
                number += sessions
                turns = CODING.turns(number, call.at, SHORTEST, chance)
                call = next(turns)
            calls.append(call)
    return sorted(calls, key=lambda call: call.at)


# 3,000 + 1,500 + 5.04 earlier turns in the mean (2 to 16 turns) x (182 + 631) = 8,600 tokens.
TOOL_LOOP = Loop(LogNormal(631, 4000), LogNormal(182, 595), pause_seconds=2.0)
FIRST_PROMPT = LogNormal(1500, 6000)
TURNS = range(2, 17)


def tool_loops(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw turns of short loops: a shared prompt, results of tools, and short answers.

    The first loops begin at the start, so the rate rises for the length of a loop. If loops under way were drawn, no
    node would have their beginnings, and the fleet would not recover from computing them.
    """
    chance = random.Random(f"tool loops {seed}")
    calls: list[Call] = []
    turns = (TURNS.start + TURNS.stop - 1) / 2
    for number, begin in enumerate(arrivals(rate / turns, AZURE_CV, seconds, chance)):
        loop = TOOL_LOOP.turns(number, begin, FIRST_PROMPT.draw(chance), chance)
        calls.extend(call for call in itertools.islice(loop, chance.choice(TURNS)) if call.at < seconds)
    return sorted(calls, key=lambda call: call.at)
