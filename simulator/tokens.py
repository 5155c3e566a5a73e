"""How the simulated node counts and hashes the tokens of a prompt: one for every four characters."""

from __future__ import annotations

import zlib

CHARACTERS_PER_TOKEN = 4


def count_text_tokens(text: str) -> int:
    """Return the tokens of a text, the last one perhaps of fewer characters."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def prefix_hashes(prompt: object, block_size: int) -> list[int]:
    """Hash a prompt up to the end of each of its whole blocks.

    Prompts of token ids have no hashes, so they share nothing. Answers are not in the prefix cache.
    """
    text = prompt_text(prompt)
    size, chain, hashes = block_size * CHARACTERS_PER_TOKEN, 0, []
    for end in range(size, len(text) + 1, size):
        chain = hash((chain, text[end - size : end]))
        hashes.append(chain)
    return hashes


def prompt_text(prompt: object) -> str:
    """Return a prompt's text: of a conversation all of its texts, one after the other, of token ids none."""
    if isinstance(prompt, list):
        return "".join(str(m.get("content")) for m in prompt if isinstance(m, dict))
    return prompt if isinstance(prompt, str) else ""


def token_ids(text: str) -> list[int]:
    """Return an id for each token of a text, the same for the same characters."""
    pieces = (text[at : at + CHARACTERS_PER_TOKEN] for at in range(0, len(text), CHARACTERS_PER_TOKEN))
    return [zlib.crc32(piece.encode()) for piece in pieces]
