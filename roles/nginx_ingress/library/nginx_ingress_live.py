#!/usr/bin/python
# ruff: noqa: EXE001 - Ansible needs the first line, and runs a copy
"""Tells which set of parts is on disk, which one the running nginx has, and how nginx answers. Changes nothing."""

from __future__ import annotations

import hashlib
import http.client
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]

DOCUMENTATION = r"""
module: nginx_ingress_live
short_description: Compare the set of parts on disk with the one that the running nginx has
description:
  - Each set of parts has a name of its own in C(set.conf), and the status server answers the name of the set that
    nginx has read. The module compares the two, and asks further questions over HTTP. It changes nothing.
  - C(set.conf) also has the URL of that answer, so a change of the port does not matter.
options:
  parts: {description: "The link to the live set of parts.", type: path, required: true}
  questions:
    description: Further requests, and what a good answer is.
    type: list
    elements: dict
    default: []
    suboptions:
      url: {description: "An address with http.", type: str, required: true}
      headers: {description: "Headers of the request.", type: dict, default: {}}
      status: {description: "The good status.", type: int, default: 200}
      content: {description: "A regular expression of a good body.", type: str, default: ""}
      location: {description: "A regular expression of a good Location.", type: str, default: ""}
  answering: {description: "URLs at which a server must give any answer.", type: list, elements: str, default: []}
  silent: {description: "URLs at which no server may answer.", type: list, elements: str, default: []}
  ports: {description: "The ports of nginx's servers.", type: list, elements: int, default: []}
  within_seconds: {description: "How long to ask until all is good.", type: float, default: 0}
  list_files: {description: "Whether to list the files of the live set.", type: bool, default: false}
author: vllm-nginx-lb
"""

EXAMPLES = r"""
- name: Ask nginx what it runs
  nginx_ingress_live:
    parts: /etc/nginx/vllm-nginx-lb/parts
    within_seconds: 10
"""

RETURN = r"""
problem: {description: "What is in place of the link; empty for a link or nothing.", type: str, returned: always}
live: {description: "The directory that the link names; empty if there is no link.", type: str, returned: always}
runs: {description: "The directory whose set nginx runs; empty if it runs neither.", type: str, returned: always}
answers: {description: "Whether nginx answers for a set on disk.", type: bool, returned: always}
left: {description: "Whether an interrupted run has left another set.", type: bool, returned: always}
nginx_runs: {description: "Whether nginx itself runs.", type: bool, returned: always}
wrong: {description: "What is not as it should be, one sentence each.", type: list, returned: always}
holders: {description: "Other programs that hold a port of nginx.", type: list, returned: always}
files: {description: "Name and SHA-1 of each file of the set.", type: list, returned: always}
"""

SETS = ("parts.1", "parts.2")
NAME = re.compile(r'return 200 "([^"\\]+)\\n";')
URL = re.compile(r"http://127\.0\.0\.1:[0-9]+/configuration")
PID_FILE = Path("/run/nginx.pid")
REQUEST_SECONDS = 5
PAUSE_SECONDS = 0.1
# nginx tries to bind a port five times, half a second apart. Then it gives up, if another program holds the port.
BIND_SECONDS = 3
MAX_ANSWER_BYTES = 1_000_000


@dataclass(frozen=True)
class Named:
    """The name of a set, and where nginx answers it."""

    name: str
    url: str


def read_name(directory: Path) -> Named | None:
    """Return the name of the set in a directory; None if it has none, as those of former versions."""
    try:
        text = (directory / "set.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, url = NAME.search(text), URL.search(text)
    return Named(name[1], url[0]) if name and url else None


def fetch(url: str, headers: dict[str, str]) -> tuple[int, str, str]:
    """Ask for a URL, without proxies and redirects.

    Returns:
        The status, or 0 if the connection is refused; the body; the header Location.

    Raises:
        OSError: the server gives no answer in time, or breaks off.
        http.client.HTTPException: it answers something else than HTTP.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=REQUEST_SECONDS)
    try:
        connection.request("GET", parts.path or "/", headers=headers)
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
        return answer.status, body, answer.getheader("Location") or ""
    except ConnectionRefusedError:
        return 0, "", ""
    finally:
        connection.close()


def problem_of(question: dict[str, Any]) -> str:
    """Ask a question; return what is wrong with the answer, or nothing."""
    try:
        status, body, location = fetch(question["url"], question["headers"])
    except (OSError, http.client.HTTPException) as error:
        return f"{question['url']} gives no answer ({error or type(error).__name__})"
    if status != question["status"]:
        return f"{question['url']} answers {status}" if status else f"nobody answers at {question['url']}"
    if not re.search(question["content"], body) or not re.search(question["location"], location):
        return f"{question['url']} answers {status} with an unexpected text"
    return ""


def answers(url: str) -> bool:
    """Tell whether a server accepts a connection for a URL."""
    try:
        return fetch(url, {})[0] != 0
    except TimeoutError:
        return False
    except (OSError, http.client.HTTPException):
        return True


def listeners(ports: list[int]) -> list[str]:
    """Return the programs other than nginx that listen on one of the ports, as far as ss can tell."""
    try:
        done = subprocess.run(
            ["ss", "--listening", "--tcp", "--numeric", "--processes", "--no-header"],  # noqa: S607 - where PATH has it
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return []
    found = []
    for line in done.stdout.splitlines():
        _, _, _, address, _, *users = line.split(None, 5)
        port = address.rpartition(":")[2]
        if not port.isdigit() or int(port) not in ports:
            continue
        programs = re.findall(r'\("([^"]*)",pid=([0-9]+)', " ".join(users))
        found += [f"{name} (process {pid}) listens on {address}" for name, pid in programs if name != "nginx"]
        if not programs:
            found.append(f"a program that ss cannot name listens on {address}")
    return sorted(set(found))


def nginx_runs() -> bool:
    """Tell whether the process in nginx's file of its process id is there."""
    try:
        process = PID_FILE.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return False
    return process.isdigit() and Path("/proc", process).exists()


def files_of(directory: Path) -> list[dict[str, str]]:
    """Return the name and the SHA-1 of each file below a directory. The parts are small."""
    return [
        {"name": str(path.relative_to(directory)), "checksum": hashlib.sha1(path.read_bytes()).hexdigest()}  # noqa: S324
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]


def running_name(url: str) -> str | None:
    """Ask nginx for the name of the set that it runs; None if nobody answers, empty if the answer is no name."""
    try:
        status, body, _ = fetch(url, {})
    except (OSError, http.client.HTTPException):
        return ""
    return body.strip() if status == http.HTTPStatus.OK else "" if status else None


def look(parts: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Compare the live set with the one that nginx runs, and ask everything once."""
    live = parts.readlink().name if parts.is_symlink() else ""
    # The live set first: a copy of it may have its name.
    order = sorted(SETS, key=lambda directory: directory != live)
    named = {directory: read_name(parts.parent / directory) for directory in order}
    running = {directory: running_name(it.url) for directory, it in named.items() if it}
    runs = next((directory for directory, it in named.items() if it and running[directory] == it.name), "")
    wrong = []
    if not live or runs != live:
        others = " or ".join(dict.fromkeys(filter(None, running.values()))) or "another set"
        wrong.append(f"nginx does not run the parts in {parts}, but {others}")
    wrong += filter(None, map(problem_of, given["questions"]))
    wrong += [f"nobody answers at {where}" for where in given["answering"] if not answers(where)]
    wrong += [f"the status server answers at {where}" for where in given["silent"] if answers(where)]
    return {
        "live": live,
        "runs": runs,
        "answers": any(name is not None for name in running.values()) or bool(live and not named.get(live)),
        "wrong": wrong,
    }


def main() -> None:
    """Compare and ask until all is as it should be, or the time is over."""
    question = {
        "url": {"type": "str", "required": True},
        "headers": {"type": "dict", "default": {}},
        "status": {"type": "int", "default": http.HTTPStatus.OK.value},
        "content": {"type": "str", "default": ""},
        "location": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "parts": {"type": "path", "required": True},
            "questions": {"type": "list", "elements": "dict", "options": question, "default": []},
            "answering": {"type": "list", "elements": "str", "default": []},
            "silent": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "within_seconds": {"type": "float", "default": 0},
            "list_files": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    parts = Path(given["parts"])
    began = time.monotonic()
    while True:
        found = look(parts, given)
        holders = listeners(given["ports"]) if found["wrong"] else []
        within = min(BIND_SECONDS, given["within_seconds"]) if holders else given["within_seconds"]
        if not found["wrong"] or time.monotonic() - began >= within:
            break
        time.sleep(PAUSE_SECONDS)
    there = parts.exists() and not parts.is_symlink()
    begin = found["runs"] or found["live"]
    module.exit_json(
        changed=False,
        problem=("a directory" if parts.is_dir() else "a file") if there else "",
        left=any((parts.parent / name).exists() for name in SETS if name != begin),
        nginx_runs=nginx_runs(),
        holders=holders,
        files=files_of(parts.parent / begin) if given["list_files"] and begin else [],
        **found,
    )


if __name__ == "__main__":
    main()
