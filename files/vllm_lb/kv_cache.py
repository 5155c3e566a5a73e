# SPDX-License-Identifier: Apache-2.0
"""The size of a node's KV cache, from the labels of vllm:cache_config_info. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TOKENS = 2**53  # up to here a float holds every whole number
MAX_LINE_BYTES = 16384  # vLLM 0.33 writes 1,500
# A quote within another label's value has a backslash before it, so it does not match.
LABEL = re.compile(rb'[{,](engine|kv_cache_size_tokens|num_gpu_blocks|block_size)="([^"]*)"')


def tokens_of(lines: Iterable[bytes]) -> int | None:
    """Return how many tokens the KV caches of a node's engines hold together; None if the node does not say.

    `lines` are the samples of the metric, one of each engine. Versions of vLLM without `kv_cache_size_tokens` have
    blocks: in a node with several engines, each sample has the blocks of all of them.
    """
    by_engine = {}
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            return None
        labels = dict(LABEL.findall(line))
        by_engine[labels.get(b"engine")] = labels
    sizes = [whole(labels.get(b"kv_cache_size_tokens")) for labels in by_engine.values()]
    known = [size for size in sizes if size]
    if known and len(known) == len(sizes):
        return believed(sum(known))
    blocks = [whole(labels.get(b"num_gpu_blocks")) * whole(labels.get(b"block_size")) for labels in by_engine.values()]
    return believed(max(blocks)) if blocks and all(blocks) else None


def whole(value: bytes | None) -> int:
    """Return a label's value as a number; 0 for "None" and for anything else that is no count."""
    return int(value) if value and re.fullmatch(rb"[0-9]{1,16}", value) else 0


def believed(tokens: int) -> int | None:
    """Return a number of tokens if a cache can have so many, else None."""
    return tokens if 0 < tokens <= MAX_TOKENS else None
