"""Size and speed of a simulated engine."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Size and speed of an engine; the defaults resemble an 8-billion-parameter model on one 48 GB GPU.

    Attributes:
        max_num_batched_tokens: token budget of one step, >= 1.
        max_num_seqs: most requests running at once, >= 1.
        num_blocks: size of the KV cache in blocks, >= 1.
        block_size: tokens per block, >= 1.
        max_model_len: most tokens of one request, prompt and output together, >= 2.
        step_seconds: cost of any step, > 0.
        prefill_token_seconds: added cost per prompt token of a step, >= 0.
        decode_sequence_seconds: added cost per sequence of a step that only continues, >= 0.
        prefix_caching: whether prompts with equal prefixes share blocks, which are computed once.
        reserve_whole_prompt: whether a request begins only when its whole prompt has room in the cache, as vLLM does by
            default since it has `--scheduler-reserve-full-isl`; else when its first chunk has.
    """

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    num_blocks: int = 8192
    block_size: int = 16
    max_model_len: int = 32768
    step_seconds: float = 0.020
    prefill_token_seconds: float = 0.0001
    decode_sequence_seconds: float = 0.0002
    prefix_caching: bool = False
    reserve_whole_prompt: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no engine can have.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        lowest = {
            "max_model_len": 2,
            **dict.fromkeys(("prefill_token_seconds", "decode_sequence_seconds"), 0),
            **dict.fromkeys(("prefix_caching", "reserve_whole_prompt"), 0),
        }
        for option in fields(self):
            value, least = getattr(self, option.name), lowest.get(option.name, 1)
            if option.name == "step_seconds":
                if value <= 0:
                    raise ValueError(f"step_seconds: {value}: must be above 0")
            elif value < least:
                raise ValueError(f"{option.name}: {value}: must be at least {least}")

    @property
    def longest_request(self) -> int:
        """Most prompt and output tokens of one request: it must fit the empty cache.

        The last output token is never an input, so it needs no cache.
        """
        return min(self.max_model_len, self.num_blocks * self.block_size + 1)

    def check_size(self, prompt_tokens: int, output_tokens: int) -> None:
        """Refuse a request that the engine can never hold.

        Raises:
            ValueError: it has no tokens, or is longer than longest_request.
        """
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        total = prompt_tokens + output_tokens
        if total > self.longest_request:
            raise ValueError(
                f"{prompt_tokens} prompt tokens and {output_tokens} output tokens make {total}, "
                f"above this model's maximum context length of {self.longest_request} tokens"
            )

    def seconds_of_step(self, prefill_tokens: int, decodes: int) -> float:
        """Return how long a step takes that computes prompt tokens and continues sequences."""
        return self.step_seconds + prefill_tokens * self.prefill_token_seconds + decodes * self.decode_sequence_seconds
