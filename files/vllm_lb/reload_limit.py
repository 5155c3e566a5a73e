# SPDX-License-Identifier: Apache-2.0
"""When a change that only changes weights may go out: deadband, cooldown, and old workers that still drain."""

from vllm_lb.causes import DeferredCause
from vllm_lb.data import data
from vllm_lb.published import Record, largest_change
from vllm_lb.settings import NginxSettings

LONGEST_WAIT_SECONDS = 600  # some streams never end, and a weight must not wait for ever


@data(kw_only=True)
class Workers:
    """nginx's workers, sorted by the reload that started them; the last ones serve."""

    group: int = 0  # nginx's process group: another one means that nginx was started anew
    generations: tuple[tuple[int, ...], ...] = ()  # process ids; the name of this field is a contract of workers.json

    @property
    def draining(self) -> int:
        """How many reloads have left workers behind that only finish what they have begun."""
        return max(0, len(self.generations) - 1)


@data()
class Deferral:
    """Why a change waits."""

    cause: DeferredCause
    reason: str


def sort_workers(known: Workers, group: int, alive: set[int], serving: int) -> Workers:
    """Sort the processes of nginx that are alive by the reload that started them; `serving` takes requests now."""
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
    """Return why a change that only changes weights waits, or None if it may go out.

    `age_seconds` is how long ago the current file was written, `draining` of how many reloads old workers are left.
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
