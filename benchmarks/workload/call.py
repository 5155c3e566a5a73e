"""One request of a workload, and what its prompt shares with those of others."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.workload.block_names import BlockNames

if TYPE_CHECKING:
    from collections.abc import Iterator

CHARACTERS_PER_TOKEN = 4  # as the simulated node counts
SYSTEM_PROMPT_TOKENS = 208  # 13 blocks of 16
TOKENS_PER_PIECE = 16  # of a prompt's text: one random piece, enough for prompts to differ, and cheap to make
# The names of the blocks of one stretch of text are consecutive, and fewer than this.
NAMES_OF_A_STRETCH = 1 << 20
HASH_BITS = 42  # with those 20 bits a name fits 64; two of 10,000 stretches get the same names once in 90,000 runs


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text at the beginning of prompts.

    Attributes:
        name: >= 0, equal for the same text; two spans with one name begin alike, and the shorter ends earlier.
        tokens: >= 1.
    """

    name: int
    tokens: int


SYSTEM_PROMPT = Span(0, SYSTEM_PROMPT_TOKENS)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Its prompt is the spans of `beginning`, then the text of its conversation.

    Attributes:
        at: seconds since the start.
        prompt_tokens: >= 1.
        output_tokens: >= 1.
        conversation: calls of one conversation with the same beginning share the beginnings of their prompts. The text
            of a conversation holds its earlier answers too.
        system_prompt: whether the prompt begins with the one that all such calls share.
        beginning: spans that other conversations may share, after the system prompt.
        streamed: whether the answer comes token by token, or whole at its end.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    conversation: int
    system_prompt: bool = False
    beginning: tuple[Span, ...] = ()
    streamed: bool = True

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans that other conversations may share."""
        return (SYSTEM_PROMPT, *self.beginning) if self.system_prompt else self.beginning

    def prefix(self, block_size: int) -> BlockNames:
        """Return a name for each whole block of the prompt, equal where prompts are equal up to its end."""
        return self._names(self.prompt_tokens, block_size)

    def blocks(self, block_size: int) -> BlockNames:
        """Return the names of the whole blocks of prompt and answer: what the node that answers has in its cache."""
        return self._names(self.prompt_tokens + self.output_tokens, block_size)

    def _names(self, tokens: int, block_size: int) -> BlockNames:
        return BlockNames(self._runs(tokens // block_size, block_size))

    def _runs(self, blocks: int, block_size: int) -> Iterator[range]:
        """Yield the names as ranges. A block belongs to the stretch of text in which it ends.

        A name is a hash of all stretches from the first on, and the block's number. Only numbers are hashed: Python's
        hash of a string differs from process to process.
        """
        text, done, begin = 0, 0, 0
        for span in self.spans:
            end = min(blocks, (begin + span.tokens) // block_size)
            yield _names_of(hash((text, span.name)), done, end)
            begin, done, text = begin + span.tokens, end, hash((text, span.name, span.tokens))
        yield _names_of(hash((text, self.conversation, 0, 0)), done, blocks)  # four numbers: no span's hash

    def prompt(self) -> str:
        """Return a text of that length, equal to that of other calls as far as their prefixes are."""
        parts, tokens = [], 0
        for span in self.spans:
            parts.append(_text(f"span {span.name}", span.tokens))
            tokens += span.tokens
        parts.append(_text(f"conversation {self.conversation}", max(0, self.prompt_tokens - tokens)))
        return "".join(parts)[: self.prompt_tokens * CHARACTERS_PER_TOKEN]


def _names_of(stretch: int, first: int, end: int) -> range:
    base = (stretch % (1 << HASH_BITS)) * NAMES_OF_A_STRETCH
    return range(base + first, base + end)


def _text(seed: str, tokens: int) -> str:
    chance = random.Random(seed)
    pieces = (f"{chance.getrandbits(64):016x}" * 4 for _ in range(-(-tokens // TOKENS_PER_PIECE)))
    return "".join(pieces)[: tokens * CHARACTERS_PER_TOKEN]
