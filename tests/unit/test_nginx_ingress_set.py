"""The module nginx_ingress_set: who can read a set of parts while it is filled, and what the set has then."""

from __future__ import annotations

import importlib.util
import shutil
import stat
from typing import TYPE_CHECKING, Any

from tests.playbook import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def the_module() -> Any:
    """Return the module of Ansible as a module of Python."""
    file = ROOT / "roles" / "nginx_ingress" / "library" / "nginx_ingress_set.py"
    spec = importlib.util.spec_from_file_location("nginx_ingress_set", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mode(path: Path) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def test_only_root_comes_into_a_set_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, following = tmp_path / "live", tmp_path / "next"
    (live / "lua").mkdir(parents=True)
    texts = {"clients.conf": "a key", "lua/same.lua": "-- the same", "gone.conf": "# no longer"}
    for name, text in texts.items():
        (live / name).write_text(text)
        (live / name).chmod(0o600 if name == "clients.conf" else 0o644)
    # An editor that is open leaves a link without a target.
    (live / ".#clients.conf").symlink_to("root@ingress-1.1234")
    seen = []
    copy = shutil.copyfile

    def watched(source: Path, target: Path, **options: Any) -> Any:
        seen.append(mode(following))
        return copy(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", watched)
    given = {
        "live": str(live),
        "next": str(following),
        "names": ["clients.conf", "lua/same.lua", "new.conf"],
        "url": "http://127.0.0.1:18091/configuration",
    }
    the_module().fill(given, {"new.conf": ("# new", 0o644)})

    assert seen == [0o700, 0o700]
    assert {str(path.relative_to(following)): mode(path) for path in following.rglob("*") if path.is_file()} == {
        "clients.conf": 0o600,
        "lua/same.lua": 0o644,
        "new.conf": 0o644,
        "set.conf": 0o644,
    }
    assert mode(following) == 0o755


def test_the_files_are_on_the_disk_before_the_set_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = tmp_path / "bin" / "sync"
    sync.parent.mkdir()
    sync.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/seen\nls "$2" >>{tmp_path}/seen\nexec /bin/sync "$@"\n')
    sync.chmod(0o755)
    monkeypatch.setenv("PATH", str(sync.parent), prepend=":")
    following = tmp_path / "next"
    given = {
        "live": str(tmp_path / "none"),
        "next": str(following),
        "names": ["new.conf"],
        "url": "http://127.0.0.1:1/",
    }
    the_module().fill(given, {"new.conf": ("# new", 0o644)})
    assert (tmp_path / "seen").read_text().split() == ["--file-system", "new.conf"]
    assert sorted(path.name for path in following.iterdir()) == ["new.conf", "set.conf"]
