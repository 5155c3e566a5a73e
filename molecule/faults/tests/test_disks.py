"""Group 2: disks that are full or read-only, and a directory that is gone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import stack
import ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

UPSTREAM_DIRECTORY = "/etc/nginx/vllm-nginx-lb"
STATE_DIRECTORY = "/var/lib/vllm-nginx-lb"


@contextmanager
def on_a_small_disk(directory: str) -> Iterator[None]:
    """Put a directory with all it holds on a file system of 256 KiB, and back."""
    ticks.shell(f"""mkdir -p /run/disk; mount -t tmpfs -o size=256k small /run/disk
        cp -a {directory}/. /run/disk; mount --bind /run/disk {directory}""")
    try:
        yield
    finally:
        ticks.shell(f"umount {directory}; cp -a /run/disk/. {directory}; umount /run/disk")


@contextmanager
def filled_up(directory: str) -> Iterator[None]:
    """Leave no byte free on the file system of a directory."""
    ticks.shell(
        f"cat /dev/zero >{directory}/filler 2>/dev/null || true; test $(df --output=avail {directory} | tail -1) = 0"
    )
    try:
        yield
    finally:
        ticks.shell(f"rm {directory}/filler")


@contextmanager
def read_only(directory: str) -> Iterator[None]:
    """Make the file system of a directory read-only."""
    ticks.shell(f"mount --bind {directory} {directory}; mount -o remount,bind,ro {directory}")
    try:
        yield
    finally:
        ticks.shell(f"umount {directory}")


@contextmanager
def moved_away(path: str) -> Iterator[None]:
    """Let a file or directory be missing."""
    ticks.shell(f"mv {path} {path}.away")
    try:
        yield
    finally:
        ticks.shell(f"mv {path}.away {path}")


@pytest.mark.fault(
    2,
    "the disk of the upstream file is full",
    sees="cannot be written: No space left on device",
    keeps="the last upstream serves; the first tick with room again makes the change",
)
def test_the_upstream_disk_is_full() -> None:
    with on_a_small_disk(UPSTREAM_DIRECTORY), ticks.drained("node-c"):
        before = (stack.generation(), stack.published())
        with filled_up(UPSTREAM_DIRECTORY):
            for _ in range(2):
                assert "cannot be written: No space left on device" in ticks.failing_tick()
            assert (stack.generation(), stack.published()) == before
        assert ticks.tick()
        ticks.await_out("node-c")


@pytest.mark.fault(
    2,
    "the file system of the upstream file becomes read-only",
    sees="cannot be written: Read-only file system",
    keeps="the last upstream serves; the first tick that can write makes the change",
)
def test_the_upstream_disk_is_read_only() -> None:
    with ticks.drained("node-c"):
        before = (stack.generation(), stack.published())
        with read_only(UPSTREAM_DIRECTORY):
            for _ in range(2):
                assert "Read-only file system" in ticks.failing_tick()
            assert (stack.generation(), stack.published()) == before
        assert ticks.tick()
        ticks.await_out("node-c")


@pytest.mark.fault(
    2,
    "the directory of the upstream file is gone",
    sees="/etc/nginx/vllm-nginx-lb: No such file or directory: expected a writable directory",
    keeps="nginx serves what it has in memory; the first tick with the directory makes the change",
)
def test_the_upstream_directory_is_missing() -> None:
    with ticks.drained("node-c"):
        before = stack.generation()
        with moved_away(UPSTREAM_DIRECTORY):
            for _ in range(2):
                assert "No such file or directory" in ticks.failing_tick()
            assert stack.generation() == before
        assert ticks.tick()
        ticks.await_out("node-c")


@pytest.mark.fault(
    2,
    "the disk of the state directory is full",
    sees="/var/lib/vllm-nginx-lb/plan.json cannot be written: No space left on device",
    keeps="the last upstream serves; the first tick with room again makes the change",
)
def test_the_state_disk_is_full() -> None:
    with on_a_small_disk(STATE_DIRECTORY), ticks.drained("node-c"):
        before = stack.generation()
        with filled_up(STATE_DIRECTORY):
            for _ in range(2):
                assert "cannot be written: No space left on device" in ticks.failing_tick()
            assert stack.generation() == before
        assert ticks.tick()
        ticks.await_out("node-c")
