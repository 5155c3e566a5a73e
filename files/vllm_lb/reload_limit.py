# SPDX-License-Identifier: Apache-2.0
"""When a change of weights alone may go out: deadband, cooldown, and old workers that still drain."""

from vllm_lb.causes import DeferredCause
from vllm_lb.data import data
from vllm_lb.published import Record, largest_change
from vllm_lb.settings import NginxSettings

LONGEST_WAIT_SECONDS = 600  # some streams never end, and a weight must not wait for ever


@data(kw_only=True)
class Workers:
    """nginx's workers, grouped by the reload that started them. The last group takes new requests."""

    group: int = 0  # nginx's process group; another number means that nginx was restarted
    generations: tuple[tuple[int, ...], ...] = ()  # process ids; the name of this field is a contract of workers.json

    @property
    def draining(self) -> int:
        """How many reloads have left old workers behind, which only finish their requests."""
        return max(0, len(self.generations) - 1)


@data()
class Deferral:
    """Why a change waits."""

    cause: DeferredCause
    reason: str


def sort_workers(known: Workers, group: int, alive: set[int], serving: int) -> Workers:
    """Group the living processes of nginx by the reload that started them; the process `serving` takes new requests."""
    before = [set(each) for each in known.generations] if known.group == group else []
    new = alive.difference(*before)
    died = len(before[-1] - alive) if before else 0
    if before and (serving not in new or len(new) <= died):  # nginx replaced workers that died
        before[-1] |= new
    else:
        before.append(set(new))
    generations = [tuple(sorted(each & alive)) for each in before]
    return Workers(group=group, generations=tuple(each for each in generations if each))


def reason_to_wait(
    settings: NginxSettings, current: Record, wanted: Record, age_seconds: float, draining: int
) -> Deferral | None:
    """Return why a change of weights alone waits, or None if it may go out.

    `age_seconds` is how long ago the current file was written. `draining` is how many reloads have left old workers.
    """
    least, cooldown = settings.min_weight_change_ratio, settings.min_reload_interval_seconds
    if largest_change(current, wanted) < least:
        return Deferral(DeferredCause.DEADBAND, f"no weight changes by {least:.0%} or more")
    if age_seconds < cooldown:
        reason = f"the last reload was {int(age_seconds)} s ago, the cooldown is {cooldown:g} s"
        return Deferral(DeferredCause.COOLDOWN, reason)
    if draining >= settings.max_draining_generations and age_seconds < LONGEST_WAIT_SECONDS:
        reason = f"old workers of {draining} reloads still drain, the limit is {settings.max_draining_generations}"
        return Deferral(DeferredCause.OLD_WORKERS, reason)
    return None
