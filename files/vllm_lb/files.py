# SPDX-License-Identifier: Apache-2.0
"""Files that survive crashes and hostile neighbours: atomic writes, careful reads, locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import stat
import time
from typing import TYPE_CHECKING, Any

from vllm_lb.causes import FailureCause
from vllm_lb.errors import EXIT_LOCKED, FailureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 2**24  # most that is read of a file that somebody else may have written


def write_atomically(path: Path, content: str | bytes, mode: int, *, sync: bool = True) -> None:
    """Replace a file in one step: a reader sees the old content or the new one.

    With `sync` that also holds after a power cut. A file that each tick writes anew goes without: a busy disk takes a
    second for each sync, and a tick has nine seconds.
    """
    put_in_place(stage(path, content, mode, sync=sync), path, sync=sync)


def stage(path: Path, content: str | bytes, mode: int, temporary: Path | None = None, *, sync: bool = True) -> Path:
    """Write the next content of a file into a hidden file beside it; return the hidden file's path.

    This is safe in a directory where others can write: no link is followed, and no existing file is reused.
    """
    temporary = temporary or path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, temporary, error) from error
    return temporary


def put_in_place(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Give a staged file its name; with `sync`, a power cut does not undo that."""
    try:
        temporary.replace(path)
        if sync:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        raise unwritable(path, temporary, error) from error


def unwritable(path: Path, temporary: Path, error: OSError) -> FailureError:
    """Remove what a failed write left behind, and return the failure to raise."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
    return FailureError(FailureCause.FILE_UNWRITABLE, f"{path} cannot be written: {error.strerror}")


def decoded(content: bytes) -> str:
    """Return bytes as text with its line ends; U+FFFD stands for what is not UTF-8."""
    return content.decode(errors="replace")


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file that somebody else may have put there.

    Raises:
        FileNotFoundError: there is no such file.
            FailureError: the file is not a regular one, is too large, or is not JSON.
    """
    try:
        return json.loads(read_file(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise FailureError(FailureCause.FILE_UNREADABLE, f"{path} is not JSON") from error


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file that somebody else may have put there.

    Raises:
        FileNotFoundError: there is no such file.
            FailureError: the file is not a regular one, or is too large.
    """
    try:
        # Follows no link, and does not wait for the other end of a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FailureError(FailureCause.FILE_UNREADABLE, f"{path} is not a regular file: remove it")
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            problem = f"{path} is larger than {max_bytes} bytes: remove it"
            raise FailureError(FailureCause.FILE_UNREADABLE, problem)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FailureError(FailureCause.FILE_UNREADABLE, f"{path} cannot be read: {error.strerror}") from error
    return content


def age_seconds(path: Path) -> float:
    """Return how long ago a file was written; infinity if the clock was set back since."""
    age = time.time() - path.stat().st_mtime
    return age if age >= 0 else math.inf


@contextlib.contextmanager
def locked(path: Path, mode: int, wait_seconds: float = 0) -> Iterator[None]:
    """Hold a lock file. Whoever may open the file, by its `mode`, may hold the lock.

    Raises:
        FailureError: with exit code 75, another run still holds it after `wait_seconds`.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        problem = f"{path.parent}: {error.strerror}: expected a writable directory"
        raise FailureError(FailureCause.FILE_UNWRITABLE, problem) from error
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise FailureError(FailureCause.LOCKED, "another run holds the lock", EXIT_LOCKED) from error
                time.sleep(0.05)
        found = os.fstat(handle)
        # Root and the service's user share the lock of the state directory. A hard link to some other file, planted
        # there by that user, must not get the mode.
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            with contextlib.suppress(OSError):
                os.fchmod(handle, mode)
        yield
    finally:
        os.close(handle)
