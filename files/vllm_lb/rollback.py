# SPDX-License-Identifier: Apache-2.0
"""The command `rollback`: the newest backup that differs from what is live becomes live again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING

from vllm_lb.causes import FailureCause
from vllm_lb.errors import FailureError
from vllm_lb.files import locked
from vllm_lb.nginx import Nginx
from vllm_lb.publish import check_balancer, live_or_restored, present_of, publish
from vllm_lb.published import differing_weights
from vllm_lb.state import Result
from vllm_lb.text import timestamp

if TYPE_CHECKING:
    from vllm_lb.settings import Config
    from vllm_lb.state import State

LOCK_WAIT_SECONDS = 15


def rollback_command(config: Config, state: State, *, as_json: bool) -> None:
    """Make the newest backup that differs from what is live, live again."""
    nginx = Nginx(config.nginx)
    with locked(nginx.lock, 0o600, LOCK_WAIT_SECONDS):
        live = live_or_restored(nginx)
        check_balancer(nginx, live)
        present, backups = present_of(nginx, live), list(nginx.backups.all())
        # The generation that nginx runs is skipped, unless the published file has other content.
        running = live.generation if present.is_live(live) else None
        former = next(
            (each for each in backups if each.content != present.content and each.record.generation != running), None
        )
        if former is None:
            damaged = len(nginx.backups.copies("bak")) - len(backups)
            hint = f" ({damaged} damaged)" if damaged else ""
            problem = f"no backup beside {nginx.file}{hint}: nothing to go back to"
            raise FailureError(FailureCause.NO_BACKUP, problem)
        publish(nginx, former, present, live)
        generation = former.record.generation
        with contextlib.suppress(FileNotFoundError, FailureError):
            status = state.status()
            result = Result(
                outcome="rolled_back",
                generation=generation,
                error_cause=FailureCause.ROLLED_BACK_BY_OPERATOR,
                error="rolled back by the operator",
                live_weights=differing_weights(config, status.pools, former.record),
                workers=state.workers(),
            )
            state.record(dataclasses.replace(status, decided_at=timestamp()), result, config.interval_seconds)
    if as_json:
        print(json.dumps({"generation": generation}))
    else:
        print(f"generation {generation} is live; the next tick decides anew, so stop vllm-nginx-lb.timer to keep it")
