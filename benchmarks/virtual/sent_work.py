"""What the balancer `work` in virtual time keeps of a request under way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class SentWork:
    """The work of a request at its node.

    Attributes:
        node: its index.
        pending: bytes of the prompt that still count as pending.
        cost: all its bytes that the node has to compute.
        streamed: tokens of the answer that the ingress sees one by one.
        ahead: bytes that were pending at the node when the request was sent, its own included.
        sent_at: seconds.
    """

    node: int
    pending: float
    cost: float
    streamed: int
    ahead: float
    sent_at: float
