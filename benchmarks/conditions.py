"""Under what conditions a benchmark runs: two result files are comparable if these are equal."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
# What is measured: the script and the Lua of the balancer `work`.
SOURCES = ("files/**/*.py", "roles/nginx_ingress/files/lua/**/*.lua")
# The command that prints a program's version.
VERSIONS = {
    "nginx": ("nginx", "-v"),
    "haproxy": ("haproxy", "-v"),
    **{
        name: (f".cache/bench/{name}/bin/pip", "show", name, "--no-color") for name in ("vllm-router", "smg", "litellm")
    },
}


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return the conditions of a run with these options of the command line."""
    return {
        "sources": fingerprint_of_sources(),
        "mode": options.mode,
        "scale": options.scale,
        "shortened": options.shorten,
        "trace": options.trace.name if options.trace else None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "versions": {name: version(words) for name, words in VERSIONS.items()},
    }


def fingerprint_of_sources() -> str:
    """Return 16 hexadecimal digits that change with any file of SOURCES."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def version(words: Sequence[str]) -> str:
    """Return the line of a command's output that tells a version, or "missing"."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}, timeout=60
        )
    except OSError:
        return "missing"
    lines = (done.stdout + done.stderr).splitlines()
    return next((line for line in lines if "ersion" in line), "missing").strip()
