"""Long prompts: questions about shared documents (RAG), and a mix of lengths up to 128 K.

Documents are as long as those of LooGLE (https://github.com/bigai-nlco/LooGLE): "over 24k tokens per document"; the
spread is chosen. How often a document is asked about follows Zipf's law, which is chosen too. The long-context mix
follows the conversation trace of Mooncake (https://github.com/kvcache-ai/Mooncake, FAST25-release), as measured in its
file: 12,031 requests; prompts of 12,035 tokens in the mean, 6,909 at the median, 27,367 at p90, 85,401 at p99 and
126,195 at most; answers of 343 in the mean and 1,120 at p99. The log-normal distribution used here has 6,540 at the
median and 26,900 at p90.
"""

from __future__ import annotations

import random

from benchmarks.workload.call import SYSTEM_PROMPT_TOKENS, Call, Span
from benchmarks.workload.chats import AZURE_CV, AZURE_OUTPUT
from benchmarks.workload.draws import LogNormal, arrivals

DOCUMENTS = 64
DOCUMENT = LogNormal(24_000, 60_000, most=100_000)
APPEARING_SHARE = 1 / 3  # of the time; then all documents are there
QUESTION = LogNormal(120, 500)


def rag(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw questions about documents: a system prompt, a document that many requests share, and a question.

    Documents are the same for all seeds. They appear one after the other in the first third of the time, the most
    popular ones first: if all were there at the start, no node would have any, and queues of minutes would be all
    there is to see.
    """
    lengths = random.Random("documents")
    documents = [Span(1 + number, DOCUMENT.draw(lengths)) for number in range(DOCUMENTS)]
    popularity = [1 / (1 + number) for number in range(DOCUMENTS)]
    chance = random.Random(f"rag {seed}")
    calls = []
    for number, at in enumerate(arrivals(rate, AZURE_CV, seconds, chance)):
        there = min(DOCUMENTS, 1 + int(DOCUMENTS * at / (seconds * APPEARING_SHARE)))
        (document,) = chance.choices(documents[:there], popularity[:there])
        prompt = SYSTEM_PROMPT_TOKENS + document.tokens + QUESTION.draw(chance)
        output = AZURE_OUTPUT.draw(chance)
        calls.append(Call(at, prompt, output, number, system_prompt=True, beginning=(document,)))
    return calls


LONGEST_PROMPT = 126_195
MOONCAKE_PROMPT, MOONCAKE_OUTPUT = LogNormal(12_035, 85_401, most=LONGEST_PROMPT), LogNormal(343, 1120, most=2000)


def long_context(rate: float, seconds: float, seed: int) -> list[Call]:
    """Draw independent requests with the lengths of Mooncake's conversations: half below 7,000, some up to 128 K."""
    chance = random.Random(f"long context {seed}")
    return [
        Call(at, MOONCAKE_PROMPT.draw(chance), MOONCAKE_OUTPUT.draw(chance), number)
        for number, at in enumerate(arrivals(rate, AZURE_CV, seconds, chance))
    ]
