# SPDX-License-Identifier: Apache-2.0
"""Making a file live, or putting the last good one back: the only place that writes what nginx reads."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from vllm_lb.backups import Backup
from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError, PublishError, RolledBackError
from vllm_lb.files import age_seconds, put_in_place, read_json, write_atomically
from vllm_lb.journal import WARNING, log
from vllm_lb.published import SEED
from vllm_lb.render import difference
from vllm_lb.text import printable

if TYPE_CHECKING:
    from vllm_lb.live import Live
    from vllm_lb.nginx import Nginx
    from vllm_lb.published import Record
    from vllm_lb.render import Rendered

MAX_DIFF_LINES = 40
LONGEST_RETRY_SECONDS = 60


@data()
class Present:
    """What lies in the published file now."""

    content: str  # empty if there is no file
    record: Record | None  # None: we did not write it
    is_edited: bool = False  # somebody else wrote, changed or removed the file: keep a copy

    def is_live(self, live: Live) -> bool:
        """Tell whether the file is ours and is what nginx serves."""
        return self.record is not None and self.record.generation == live.generation


def present_of(nginx: Nginx, live: Live | None) -> Present:
    """Return what lies in the published file; `live` is None while nginx is down."""
    content, backups = nginx.read(), nginx.backups
    record = backups.record_of(content)
    if record or (live and live.generation == SEED):
        return Present(content, record)
    return Present(content, record, is_edited=bool(content) or backups.newest() is not None)


def check_balancer(nginx: Nginx, live: Live) -> None:
    """Refuse to publish for a balancer that nginx does not run: it would never take the file.

    This happens between the two plays that change the balancer: nginx has the new one, and config.yml the former one.

    Raises:
        FailureError: nothing was changed.
    """
    configured = nginx.settings.balancer
    if live.balancer and live.balancer != configured:
        problem = f"nginx runs the balancer {live.balancer}, and config.yml has {configured}: nothing is published"
        raise FailureError(FailureCause.OTHER_BALANCER, f"{problem} until site.yml has run to its end")


def live_or_restored(nginx: Nginx) -> Live:
    """Ask nginx what it serves. If nginx is down, restore a file with which it can start, but do not start it.

    Raises:
        FailureError: nginx does not answer.
    """
    try:
        return nginx.live()
    except FailureError as failure:
        present, last_good = present_of(nginx, None), nginx.backups.newest()
        if not last_good or present.content == last_good.content:
            raise
        # nginx refuses a file of ours if a run wrote it and was killed before the test.
        if present.record and str(nginx.file) not in (nginx.test() or ""):
            raise
        if not present.record:
            keep_edit(nginx, present.content, last_good.content)
        write_atomically(nginx.file, last_good.content, 0o644)
        restored = f"{nginx.file} could not start it and is generation {last_good.record.generation} again"
        raise FailureError(FailureCause.NGINX_SILENT, f"{failure}; {restored}") from failure


def publish(nginx: Nginx, wanted: Rendered | Backup, present: Present, live: Live) -> None:
    """Make a file live in place of the present one, or put the last good one back.

    Raises:
        RolledBackError: it could not be published; the last good file is back and live.
        PublishError: it could not be published, and going back failed too.
    """
    backups, known = nginx.backups, last_good(nginx, present, live)
    if present.is_edited:
        keep_edit(nginx, present.content, known.content if known else "")
    way_back = known.content if known else present.content  # before our first publication, the file of somebody else
    way_back_generation = known.record.generation if known else live.generation
    # All that a rollback needs is written before anything changes: later the disk may be full.
    record = backups.add_record(wanted)
    try:
        copy, back = backups.stage("copy", wanted.content), backups.stage("back", way_back)
        write_atomically(nginx.file, wanted.content, 0o644)
    except FailureError:
        backups.drop_record(record)
        raise
    refused = nginx.test()
    fault = refused or nginx.reload(wanted.record.generation, anew=True)
    if fault is None:
        backups.add_backup(copy, wanted.content)
        finish(nginx, Backup(wanted.content, wanted.record))
        return
    cause = FailureCause.TEST_FAILED if refused else FailureCause.RELOAD_NOT_TAKEN
    if not way_back:
        nginx.file.unlink(missing_ok=True)
        backups.drop_record(record)
        raise PublishError(cause, f"{fault}; there was no earlier file to go back to", fault)
    if not refused:
        remember_failure(nginx, wanted.record, fault)
    put_in_place(back, nginx.file)
    backups.drop_record(record)
    if not refused or live.generation != way_back_generation:  # else nginx still serves this file
        again = nginx.test() or nginx.reload(way_back_generation, anew=False)
        if again:
            problem = f"{fault}; going back failed too: {again}"
            raise PublishError(FailureCause.GOING_BACK_FAILED, problem, fault)
    raise RolledBackError(cause, f"{fault}; rolled back to generation {way_back_generation}", fault)


def last_good(nginx: Nginx, present: Present, live: Live) -> Backup | None:
    """Return the file to go back to: what nginx runs, as far as that is known, else what was live last."""
    if present.record and present.is_live(live):
        return Backup(present.content, present.record)
    backups = nginx.backups
    return next((each for each in backups.all() if each.record.generation == live.generation), backups.newest())


def finish(nginx: Nginx, live: Backup) -> None:
    """Complete a run that was killed after its file went live: keep the backup, remove temporary files."""
    backups = nginx.backups
    newest = backups.newest()
    if newest is None or newest.content != live.content:
        backups.add_record(live)  # as the newest one: an operator may have copied an old backup back
        backups.add_backup(backups.stage("copy", live.content), live.content)
    backups.remove_leftovers()


def remember_failure(nginx: Nginx, record: Record, error: str) -> None:
    """Note that a reload did not take, and why. Each further try may leave old workers behind."""
    with contextlib.suppress(FailureError):  # without the note, the next tick tries again at once
        note = json.dumps({"membership": record.membership, "error": error})
        put_in_place(nginx.backups.stage("failed", note), nginx.backups.beside("failed"))


def failed_lately(nginx: Nginx, record: Record) -> str | None:
    """Return why a reload with this file, or with other weights in it, did not take, if that was a moment ago."""
    path = nginx.backups.beside("failed")
    with contextlib.suppress(OSError, FailureError, KeyError, TypeError):
        wait = min(nginx.settings.min_reload_interval_seconds, LONGEST_RETRY_SECONDS) - age_seconds(path)
        note = read_json(path)
        if note["membership"] == record.membership and wait > 0:
            return f"{printable(str(note['error']), 2000)}; tried again in {wait:.0f} s"
    return None


def keep_edit(nginx: Nginx, edited: str, pristine: str) -> None:
    """Keep what somebody wrote into the published file, and log what they changed."""
    if not edited:
        log(WARNING, f"{nginx.file} was empty or missing: written again")
        return
    kept = nginx.backups.add_edit(edited)
    log(WARNING, f"{nginx.file} was changed by hand: kept as {kept}, to be replaced")
    changes = [line for line in difference(pristine, edited)[2:] if line.startswith(("+", "-"))]
    for line in changes[:MAX_DIFF_LINES]:
        log(WARNING, f"changed by hand: {printable(line.rstrip())}")
    if len(changes) > MAX_DIFF_LINES:
        log(WARNING, f"changed by hand: ... and {len(changes) - MAX_DIFF_LINES} lines more")
