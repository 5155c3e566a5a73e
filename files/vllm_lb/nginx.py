# SPDX-License-Identifier: Apache-2.0
"""The running nginx: its published file, its test, its reload, and the proof that a reload took."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lb.backups import Backups
from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import decoded
from vllm_lb.live import Live, ask, processes_of_group
from vllm_lb.reload_limit import Workers, sort_workers
from vllm_lb.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from vllm_lb.settings import NginxSettings

COMMAND_TIMEOUT_SECONDS = 30


@data()
class Nginx:
    """The running nginx, and the one file of its configuration that is ours."""

    settings: NginxSettings

    @property
    def file(self) -> Path:
        """The published file."""
        return Path(self.settings.upstream_file)

    @property
    def backups(self) -> Backups:
        """The records and backups beside the published file."""
        return Backups(self.file)

    @property
    def reloads(self) -> bool:
        """Whether nginx needs a reload, with new workers, to use a new file."""
        return self.settings.balancer == "upstream"

    @property
    def lock(self) -> Path:
        """The lock file of all that write the published file, in a directory where only root can hold it."""
        return self.file.with_name(".lock")

    def read(self) -> str:
        """Return the content of the published file, or an empty text where there is none yet."""
        try:
            return decoded(self.file.read_bytes())
        except FileNotFoundError:
            return ""
        except OSError as error:
            problem = f"{self.file} cannot be read: {error.strerror}"
            raise FailureError(FailureCause.FILE_UNREADABLE, problem) from error

    def command(self, words: Sequence[str]) -> str | None:
        """Run a command; return None if it succeeded, else the line of its output that says why it failed."""
        import subprocess  # a tick that changes nothing runs no command

        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # Debian's nginx is not in every user's PATH
        try:
            done = subprocess.run(  # noqa: S603 - the words come from the root-owned configuration
                words,
                env={"PATH": path, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{words[0]} cannot be run: {printable(str(error))}"
        if done.returncode == 0:
            return None
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no output"]
        telling = next((line for line in lines if "[emerg]" in line), lines[-1])
        telling = re.sub(r"^.*?\[emerg\]( \d+#\d+:)?", "[emerg]", telling)  # without time and process
        return f"{' '.join(words)}: {re.sub(r'[^ -~]', '?', telling)}"

    def test(self) -> str | None:
        """Run nginx's test of its whole configuration; return its complaint, or None."""
        return self.command(self.settings.test_command) if self.reloads else None

    def live(self) -> Live:
        """Ask nginx what it serves; without confirm_url, return what was last made live.

        Raises:
            FailureError: nginx does not answer.
        """
        if self.settings.confirm_url:
            return ask(self.settings.confirm_url, self.settings.confirm_timeout_seconds)
        newest = self.backups.newest()
        return Live(newest.record.generation if newest else None)

    def reload(self, generation: str | None, *, anew: bool) -> str | None:
        """Make nginx use the published file; return None when its workers serve that file, else what went wrong.

        `generation` is that of the file, None if the file has none. `anew` waits for workers that did not exist before:
        a file that was edited by hand may have the same generation.
        """
        former: AbstractSet[int] = set()
        if anew and self.reloads:
            with contextlib.suppress(FailureError):
                former = processes_of_group(self.live().worker)[1]
        fault = self.command(self.settings.reload_command) if self.reloads else None
        if fault or not generation or not self.settings.confirm_url:
            return fault
        return self.await_generation(generation, former)

    def await_generation(self, wanted: str, former: AbstractSet[int]) -> str | None:
        """Wait until a worker that is not in `former` serves `wanted`; return None, or what is served instead."""
        deadline = time.monotonic() + self.settings.confirm_timeout_seconds
        while True:
            try:
                live = self.live()
                said = f"generation {live.generation} is still live"
            except FailureError as failure:  # between old and new workers a connection may be refused
                live, said = Live(None), str(failure)
            if live.generation == wanted and live.worker not in former:
                return None
            if time.monotonic() > deadline:
                return f"{'the reload' if self.reloads else 'the new file'} did not take: {printable(said)}"
            time.sleep(0.02)

    def workers(self, known: Workers, live: Live) -> Workers:
        """Return nginx's workers; none if the answer of confirm_url has no process id."""
        if not live.worker:
            return Workers()
        group, alive = processes_of_group(live.worker)
        return sort_workers(known, group, alive - {self.master()}, live.worker)

    def master(self) -> int | None:
        """Return the process id of nginx's master, if pid_file has it.

        After an upgrade of the binary in place, the master does not lead its process group.
        """
        with contextlib.suppress(OSError, ValueError):
            return int(Path(self.settings.pid_file).read_text("ascii")) if self.settings.pid_file else None
        return None
