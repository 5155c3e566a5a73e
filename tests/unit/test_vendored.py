"""Files copied from other projects are equal to those in their releases."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[2] / "roles" / "nginx_ingress" / "files" / "page" / "vendor"


def test_every_copied_file_has_the_checksum_that_is_written_down() -> None:
    readme = (VENDOR / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([^`]+)` .*\| `([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in VENDOR.iterdir()
        if file.name != "README.md"
    }
    assert found == stated


def test_the_version_that_is_written_down_is_the_one_that_is_there() -> None:
    readme = (VENDOR / "README.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"^\| version \| (\S+) \|$", readme, re.MULTILINE)
    assert f"uPlot (v{version})" in (VENDOR / "uPlot.iife.min.js").read_text(encoding="utf-8")[:100]
