"""Requests to send: when, how long their prompts and answers are, and what their prompts share.

A workload is a function of a rate in requests per second, a duration in seconds and a seed; the same three give the
same calls. Each module names the statistics that it follows.
"""

from benchmarks.workload.agents import coding_agents, tool_loops
from benchmarks.workload.call import CHARACTERS_PER_TOKEN, SYSTEM_PROMPT_TOKENS, Call, Span
from benchmarks.workload.chats import azure, bursty, long_streams, multi_turn, not_streamed
from benchmarks.workload.documents import long_context, rag
from benchmarks.workload.reasoning import reasoning, reasoning_mix
from benchmarks.workload.traces import read_trace

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "SYSTEM_PROMPT_TOKENS",
    "Call",
    "Span",
    "azure",
    "bursty",
    "coding_agents",
    "long_context",
    "long_streams",
    "multi_turn",
    "not_streamed",
    "rag",
    "read_trace",
    "reasoning",
    "reasoning_mix",
    "tool_loops",
]
