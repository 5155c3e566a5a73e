# ruff: noqa: INP001, S603 - a script outside any package, which starts podman with its own arguments
"""Find out how this host can run a container with systemd in it.

Usage: probe_host.py IMAGE (as root). Prints one JSON object: runtime, ulimits, init_arguments, ipv6.
Version numbers decide nothing: a setting is chosen because a container started with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

PODMAN = "podman"
# A file that only the image has.
MARKER = "/etc/vllm-nginx-lb-test"
RUNTIMES = ("crun", "runc")
# Some hosts forbid podman's own limits: not even root may raise a limit there.
ULIMITS: tuple[list[str], ...] = ([], ["nofile=16384:16384", "nproc=16384:16384"])
# What podman needs beside itself, with the Debian package that has it.
HELPERS = {PODMAN: "podman", "conmon": "conmon", "iptables": "iptables"}


class UnfitHostError(Exception):
    """This host cannot run the containers; the message says what to do about it."""


def podman(*arguments: str) -> str:
    """Run podman and return what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; its stderr says why.
    """
    done = subprocess.run([PODMAN, *arguments], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def is_inside(container: str) -> bool:
    """Tell whether commands for the container run inside it. In a chroot they may not."""
    try:
        podman("exec", container, "test", "-e", MARKER)
    except subprocess.CalledProcessError:
        return False
    return True


def start_once(image: str, runtime: str, ulimits: list[str]) -> str | None:
    """Start a container and remove it; return None, or what is wrong with it."""
    container = f"vllm-nginx-lb-probe-{os.getpid()}"
    options = [f"--name={container}", "--detach", "--systemd=always", *(f"--ulimit={limit}" for limit in ulimits)]
    try:
        podman("--runtime", runtime, "run", *options, image, "sleep", "60")
        return None if is_inside(container) else "commands run outside the container (is this a chroot?)"
    except subprocess.CalledProcessError as problem:
        return str(problem.stderr).strip()
    finally:
        podman("rm", "--force", "--ignore", "--time=0", container)


def choose_runtime(image: str) -> tuple[str, list[str]]:
    """Return the first runtime and limits that start a container.

    Raises:
        UnfitHostError: none did.
    """
    installed = [runtime for runtime in RUNTIMES if shutil.which(runtime)]
    if not installed:
        raise UnfitHostError("neither crun nor runc is installed; on Debian: apt install crun runc")
    complaints = []
    for runtime, ulimits in product(installed, ULIMITS):
        complaint = start_once(image, runtime, ulimits)
        if complaint is None:
            return runtime, ulimits
        complaints.append(f"{runtime} {' '.join(ulimits) or 'with podman limits'}: {complaint}")
    raise UnfitHostError("no container starts on this host:\n  " + "\n  ".join(complaints))


def check_network_backend() -> None:
    """Make sure that podman can make networks here.

    Raises:
        UnfitHostError: a helper is missing, or podman was set up with another backend.
    """
    missing = [package for command, package in HELPERS.items() if not shutil.which(command)]
    if missing:
        raise UnfitHostError(f"missing commands; on Debian: apt install {' '.join(missing)}")
    backend = podman("info", "--format", "{{ .Host.NetworkBackend }}")
    if backend != "netavark":
        raise UnfitHostError(
            f"podman's network backend is '{backend}', not netavark; on Debian: apt install netavark, then"
            " `podman system reset` (this removes every container and image of root)"
        )


def init_arguments() -> list[str]:
    """Return what systemd must be told as PID 1: from 256 on it refuses cgroup v1 unless asked not to."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return [] if unified else ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]


def probe(image: str) -> dict[str, object]:
    """Return the settings that work on this host.

    Raises:
        UnfitHostError: there are none.
    """
    check_network_backend()
    runtime, ulimits = choose_runtime(image)
    return {
        "runtime": runtime,
        "ulimits": ulimits,
        "init_arguments": init_arguments(),
        "ipv6": Path("/proc/net/if_inet6").exists(),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(probe(sys.argv[1])))  # noqa: T201 - its result
    except UnfitHostError as problem:
        sys.exit(f"This host cannot run the test containers: {problem}")
