# SPDX-License-Identifier: Apache-2.0
"""What lies beside the published file: records, backups of what was live, and copies of edits by hand.

    .upstream.conf.000012.4f0c….json    the record of a file that we wrote
    .upstream.conf.000012.4f0c….bak     its content, once it was live
    .upstream.conf.000013.edited        what somebody else wrote into the file

They lie beside the file and not in the state directory: what goes live must come from where only root can write. Their
names begin with a dot, so that no `include *` of nginx loads them. Numbers give their order, because a clock may jump.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import FailureError
from vllm_lb.files import decoded, put_in_place, read_file, read_json, stage
from vllm_lb.published import record_of_json
from vllm_lb.text import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_lb.published import Record
    from vllm_lb.render import Rendered

MAX_COPIES = 10  # of each kind
KINDS = ("json", "bak", "edited")
LEFTOVERS = ("new", "record.new", "copy.new", "back.new", "edited.new", "failed.new", "failed")


@data()
class Backup:
    """A file that was live: its content and its record."""

    content: str
    record: Record


@data()
class Backups:
    """The files beside one published file."""

    file: Path

    def beside(self, name: str) -> Path:
        """Return the path of a hidden file beside the published one."""
        return self.file.with_name(f".{self.file.name}.{name}")

    def stage(self, name: str, content: str) -> Path:
        """Write content into a temporary file beside the published one, ready to be put in place."""
        return stage(self.file, content, 0o644, self.beside(f"{name}.new"))

    def copies(self, kind: str) -> list[Path]:
        """Return the copies of one of KINDS, newest first."""
        return [path for _, path in sorted(self.numbered(kind), reverse=True)]

    def numbered(self, *kinds: str) -> list[tuple[int, Path]]:
        """Return the copies of some kinds with their numbers."""
        pattern = rf"\.{re.escape(self.file.name)}\.(\d{{6,}})\.(?:[0-9a-z]{{1,64}}\.)?(?:{'|'.join(kinds)})"
        name = re.compile(pattern)
        try:
            there = list(self.file.parent.iterdir())
        except OSError as error:
            problem = f"{self.file.parent} cannot be read: {error.strerror}"
            raise FailureError(FailureCause.FILE_UNREADABLE, problem) from error
        return [(int(match[1]), path) for path in there if (match := name.fullmatch(path.name))]

    def next_copy(self, name: str) -> Path:
        """Return the path of a copy that becomes the newest of all."""
        newest = max((number for number, _ in self.numbered(*KINDS)), default=0)
        return self.beside(f"{newest + 1:06d}.{name}")

    def find_record(self, content: str) -> tuple[Path, Record] | None:
        """Return the newest record of a content with its path, or None if there is none."""
        for path in self.copies("json"):
            record = read_record(path)
            if record and record.is_of(content):
                return path, record
        return None

    def record_of(self, content: str) -> Record | None:
        """Return the record of a content, or None if we did not write that content."""
        if found := self.find_record(content):
            return found[1]
        return next((each.record for each in self.all() if each.content == content), None)

    def record_of_generation(self, generation: str | None) -> Record | None:
        """Return the newest record of a generation, or None if there is none."""
        records = (read_record(path) for path in self.copies("json"))
        return next((each for each in records if each and each.generation == generation), None)

    def add_record(self, wanted: Rendered | Backup) -> Path:
        """Write the record of a file that is about to be published, as the newest one; return its path."""
        newest = next(iter(self.copies("json")), None)
        record = read_record(newest) if newest else None
        if newest is None or record is None or not record.is_of(wanted.content):
            newest = self.next_copy(f"{wanted.record.generation}.json")
            put_in_place(stage(newest, wanted.record.to_json(), 0o644, self.beside("record.new")), newest)
        return newest

    def add_backup(self, staged: Path, content: str) -> None:
        """Keep a staged copy of what went live, beside its record."""
        if found := self.find_record(content):
            put_in_place(staged, found[0].with_suffix(".bak"))
        self.drop_old_copies()

    def drop_record(self, path: Path) -> None:
        """Remove the record of a file that did not go live, unless it was live before."""
        if not path.with_suffix(".bak").exists():
            with contextlib.suppress(OSError):
                path.unlink()

    def add_edit(self, content: str) -> Path:
        """Keep a copy of what somebody else wrote into the published file; return its path."""
        newest = next(iter(self.copies("edited")), None)
        if newest is None or newest.is_symlink() or not newest.is_file() or decoded(newest.read_bytes()) != content:
            newest = self.next_copy("edited")
            put_in_place(self.stage("edited", content), newest)
            self.drop_old_copies()
        return newest

    def drop_old_copies(self) -> None:
        """Keep MAX_COPIES backups with their records, and MAX_COPIES edits."""
        backups = self.copies("bak")
        kept = {path.stem for path in backups[:MAX_COPIES]}
        newest = max((number for number, _ in self.numbered("bak")), default=0)
        records = [path for number, path in self.numbered("json") if path.stem not in kept and number < newest]
        for old in [*backups[MAX_COPIES:], *records, *self.copies("edited")[MAX_COPIES:]]:
            with contextlib.suppress(OSError):
                old.unlink()

    def all(self) -> Iterator[Backup]:
        """Yield the backups, newest first; a damaged one is left out."""
        for path in self.copies("bak"):
            with contextlib.suppress(OSError, FailureError):
                content = decoded(read_file(path))
                beside = path.with_suffix(".json")
                record = read_record(beside) if beside.exists() else former_record(path, content)
                if record and record.is_of(content):
                    yield Backup(content, record)

    def newest(self) -> Backup | None:
        """Return the backup of what was live last, or None."""
        return next(self.all(), None)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed, and the note of an earlier failure."""
        for left in LEFTOVERS:
            with contextlib.suppress(OSError):
                self.beside(left).unlink(missing_ok=True)


def read_record(path: Path) -> Record | None:
    """Return a stored record, or None if it is missing or damaged."""
    with contextlib.suppress(OSError, FailureError):
        return record_of_json(read_json(path))
    return None


def former_record(path: Path, content: str) -> Record | None:
    """Return a record of a backup of the release before records. Its name has the generation."""
    *_, generation, _kind = path.name.split(".")
    digest = sha256(content)
    raw = {"generation": generation, "sha256": digest, "membership": digest, "weights": {}}
    return None if generation.isdecimal() else record_of_json(raw)
