"""The engines of the benchmark: today's, a fast one and a slow one, and variants of each.

The fast and the slow one compute as Llama 2 70B was measured to do in Splitwise (perf_model.csv of
https://github.com/Mutinifni/splitwise-sim): prompts of 2,048 and 8,192 tokens in 137 and 848 ms on 8 H100, in 687 and
2,990 ms on 2 A100; a step in which 1 and 64 sequences continue in 30 and 50 ms on 8 H100, in 54 and 67 to 72 ms on
2 A100. The cost per prompt token is that of the long prompts: there it is larger, and the benchmark's prompts are long.
A step there takes as long after 8,192 tokens as after 128, so a step costs nothing for the length of a context here.
Beyond 8,192 tokens nothing was measured: a real engine's attention costs more the longer the context.

The size of the KV cache is what is left of nine tenths of the GPUs' memory, 80 GB each, after 138 GB of weights, at
320 KiB a token (80 layers x 8 heads x 128 x 2 x 2 bytes): 1,330,000 tokens on 8 H100. On 2 A100 it would be 18,000; the
slow engine has 65,536, which is chosen so that it can hold a long prompt.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.engine_config import EngineConfig

# Four of these engines serve Azure's 5.5 requests per second at three quarters of their knee. One computes about 4,500
# prompt tokens per second, takes 30 ms and more for a step, and has room for 49,000 tokens.
ENGINE = EngineConfig(
    step_seconds=0.030,
    prefill_token_seconds=0.00022,
    decode_sequence_seconds=0.0003,
    num_blocks=3072,
    prefix_caching=True,
)
FAST = EngineConfig(
    max_num_batched_tokens=8192,  # vLLM's default for a server on H100; on A100 it is 2,048
    step_seconds=0.030,
    prefill_token_seconds=0.0001,
    decode_sequence_seconds=0.0003,
    num_blocks=83_000,
    max_model_len=262_144,
    prefix_caching=True,
    reserve_whole_prompt=True,
)
SLOW = EngineConfig(
    step_seconds=0.054,
    prefill_token_seconds=0.00036,
    decode_sequence_seconds=0.0003,
    num_blocks=4096,
    max_model_len=65_536,
    prefix_caching=True,
    reserve_whole_prompt=True,
)
SMALL_KV = replace(ENGINE, num_blocks=1536, reserve_whole_prompt=True)  # 24,576 tokens
FEW_SEQUENCES = replace(ENGINE, max_num_seqs=16)
LARGE_CHUNKS = replace(ENGINE, max_num_batched_tokens=8192)
