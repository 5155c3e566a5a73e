# SPDX-License-Identifier: Apache-2.0
"""The mark of a tick that is under way. A tick that was killed leaves its mark, and the next tick logs it.

systemd ends a tick that takes too long, and says so in its own words. A killed process can log nothing. A tick holds a
lock on its mark, because an operator may run one command while the service runs another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING

from vllm_lb.journal import NOTICE, WARNING, log
from vllm_lb.text import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HALVES = ("collect", "apply")
OLD_SECONDS = 3600  # no run takes so long: a temporary file of that age has no owner


@contextlib.contextmanager
def under_way(directory: Path, half: str) -> Iterator[None]:
    """Keep a mark in the state directory while one of HALVES runs. Every end but a kill removes the mark.

    The mark is an empty file; its time is the beginning. No link is followed, and no existing file is reused.
    """
    mark = mark_of(directory, half)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # without the mark, no later tick logs a kill
            mark.unlink(missing_ok=True)
            handle = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            held.callback(os.close, handle)
            os.fchmod(handle, 0o644)  # whatever the umask: root makes the mark of apply, and collect reads it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)


def mark_of(directory: Path, half: str) -> Path:
    """Return the path of a mark."""
    return directory / f".{half}.began"


def killed(directory: Path) -> dict[str, float]:
    """Return when each half began that did not end, and is not under way, in seconds since 1970."""
    found = {}
    for half in HALVES:
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            handle = os.open(mark_of(directory, half), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found[half] = os.fstat(handle).st_mtime
    return found


def tidy_up(directory: Path, interval_seconds: float) -> None:
    """Log a tick that was killed, and remove what it left. The caller holds the lock of the state directory."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for half, seconds in killed(directory).items():
        began = "an impossible time"  # somebody has set it
        with contextlib.suppress(ValueError, OverflowError, OSError):
            began = timestamp(seconds)
        if seconds < booted:
            log(NOTICE, f"a tick did not end: {half} began at {began}, and the host was started again since")
        else:
            limit = f"systemd ends a tick after {max(0, interval_seconds - 1):g} s: is the host overloaded?"
            log(WARNING, f"a tick was killed: {half} began at {began} and did not end; {limit}")
        with contextlib.suppress(OSError):
            mark_of(directory, half).unlink()
    with contextlib.suppress(OSError):
        for path in directory.glob(".*.new"):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > OLD_SECONDS:
                path.unlink()
