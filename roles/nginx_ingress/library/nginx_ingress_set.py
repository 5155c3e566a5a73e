#!/usr/bin/python
# ruff: noqa: EXE001 - Ansible needs the first line, and runs a copy
"""Writes a set of parts beside the live set, if the two differ."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]

DOCUMENTATION = r"""
module: nginx_ingress_set
short_description: Write a set of parts of nginx's configuration
description:
  - Fills a directory with the files of a set, if they differ from those of the live set. A file that is in the live set
    and not among the names is left out. This is one task, because a task for each file takes a minute on a busy host.
  - The set gets a name of its own in C(set.conf), which the status server answers. It says nothing about keys.
options:
  live: {description: "The directory of the live set; it need not exist.", type: path, required: true}
  next: {description: "The directory to fill. What it has is removed.", type: path, required: true}
  names: {description: "The names of all files of the set.", type: list, elements: str, required: true}
  texts: {description: "The texts of files that everybody may read, by name.", type: dict, required: true}
  secrets: {description: "The texts of files that only root may read, by name.", type: dict, default: {}}
  url: {description: "Where the status server answers the name of the set.", type: str, required: true}
  force: {description: "Whether to make a set also if its files are those of the live one.", type: bool, default: false}
author: vllm-nginx-lb
"""

EXAMPLES = r"""
- name: Write a set of parts
  nginx_ingress_set:
    live: /etc/nginx/vllm-nginx-lb/parts.1
    next: /etc/nginx/vllm-nginx-lb/parts.2
    names: [http.conf]
    texts: {http.conf: "# nothing\n"}
    url: http://127.0.0.1:18091/configuration
"""

RETURN = r"""
files: {description: "The names of the files that differ from the live set.", type: list, returned: always}
"""

NAME_FILE = "set.conf"
PUBLIC, SECRET = 0o644, 0o600


def mode_of(path: Path) -> int:
    """Return the permissions of a file."""
    return path.stat().st_mode & 0o7777


def read(path: Path) -> str:
    """Return the text of a file; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def is_there(path: Path, text: str, mode: int) -> bool:
    """Tell whether a file has a text and permissions."""
    return path.is_file() and mode_of(path) == mode and path.read_bytes() == text.encode()


def write(path: Path, text: str, mode: int) -> None:
    """Write a new file with its permissions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=SECRET)
    path.write_bytes(text.encode())
    path.chmod(mode)


def remove(path: Path) -> None:
    """Remove whatever has a name. Of a link that somebody has made, nothing but the link goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fill(given: dict[str, Any], changed: dict[str, tuple[str, int]]) -> None:
    """Fill the next directory: the changed files, the others of the live set, and the name."""
    live, target = Path(given["live"]), Path(given["next"])
    remove(target)
    # A copied file gets its permissions after its text. So only root may enter the directory until the set is complete.
    target.mkdir(mode=0o700)
    for name in given["names"]:
        if name in changed:
            write(target / name, *changed[name])
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(live / name, target / name)
    # After a power cut, no link may name files whose texts were not on the disk yet. Other file systems of the host may
    # hang.
    subprocess.run(["sync", "--file-system", target], check=False)  # noqa: S603, S607 - where PATH has it
    # The name comes last: a set that an interrupted run leaves has none.
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    comment = f"# {given['url']} answers the name of the set that nginx runs."
    write(target / NAME_FILE, f'{comment}\nreturn 200 "{name}\\n";\n', PUBLIC)
    target.chmod(0o755)


def main() -> None:
    """Compare the files with the live set, and fill the next one if they differ."""
    module = AnsibleModule(
        argument_spec={
            "live": {"type": "path", "required": True},
            "next": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "texts": {"type": "dict", "required": True},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "url": {"type": "str", "required": True},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # nginx's workers read Lua
    given = module.params
    live = Path(given["live"])
    wanted = {name: (text, PUBLIC) for name, text in given["texts"].items()}
    wanted |= {name: (text, SECRET) for name, text in given["secrets"].items()}
    changed = {name: it for name, it in wanted.items() if not is_there(live / name, *it)}
    there = [str(path.relative_to(live)) for path in live.rglob("*") if path.is_file()] if live.exists() else []
    surplus = sorted(set(there) - set(given["names"]) - {NAME_FILE})
    differs = bool(changed or surplus or given["force"] or NAME_FILE not in there)
    if differs and not module.check_mode:
        try:
            fill(given, changed)
        except OSError as error:
            with contextlib.suppress(OSError):
                remove(Path(given["next"]))
            where = error.filename2 or error.filename or given["next"]
            module.fail_json(msg=f"{where} cannot be written: {error.strerror}; nginx keeps the set that it has")
    shown = {name: text for name, (text, mode) in changed.items() if mode == PUBLIC} | dict.fromkeys(surplus, "")
    module.exit_json(
        changed=differs,
        files=sorted([*changed, *surplus]),
        # A diff of a secret file would show keys, also if the file is removed.
        diff=[
            {"before_header": name, "after_header": name, "before": read(live / name), "after": text}
            for name, text in sorted(shown.items())
            if not (live / name).is_file() or mode_of(live / name) == PUBLIC
        ],
    )


if __name__ == "__main__":
    main()
