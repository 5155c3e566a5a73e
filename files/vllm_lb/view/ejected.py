# SPDX-License-Identifier: Apache-2.0
"""Asking nginx's Lua which nodes it has ejected now: status.json does not know, because ejections last for seconds."""

import json
from typing import Any
from urllib.parse import urljoin

from vllm_lb.data import data
from vllm_lb.live import get
from vllm_lb.schema import build, number, text
from vllm_lb.settings import NAME, POOL_NAME, NginxSettings
from vllm_lb.text import PRINTABLE

MAX_ANSWER_BYTES = 2**20
TIMEOUT_SECONDS = 2  # the status server is on this host


@data(kw_only=True)
class Ejection:
    """A node that is ejected now."""

    pool: str = text(POOL_NAME, "a pool's name")
    node: str = text(NAME, "a node's name")
    cause: str = text(PRINTABLE, "printable text")
    seconds: float = number(0, 2**32)  # until its trial


def ejected_nodes(nginx: NginxSettings) -> dict[tuple[str, str], str] | None:
    """Return the cause of each ejection by pool and node. With the balancer `upstream`, Lua ejects none.

    None: this is not known, because nginx does not answer, or confirm_url is not set.
    """
    if nginx.balancer != "work":
        return {}
    if nginx.confirm_url is None:
        return None
    try:
        _, text = get(urljoin(nginx.confirm_url, "work/ejected"), TIMEOUT_SECONDS, MAX_ANSWER_BYTES)
        return checked(json.loads(text or "null"))
    except (OSError, ValueError, RecursionError):
        return None


def checked(found: Any) -> dict[tuple[str, str], str] | None:
    """Return what an answer says. While nginx is stopped, any user of this host could listen at its port."""
    problems: list[str] = []
    nodes = build(tuple[Ejection, ...], found.get("nodes") if isinstance(found, dict) else None, "nodes", problems)
    return None if problems else {(each.pool, each.node): each.cause for each in nodes}
