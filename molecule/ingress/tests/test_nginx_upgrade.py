"""An upgrade of Debian's nginx packages with the recipe of docs/operations.md costs no stream."""

from __future__ import annotations

import re
import threading
from typing import Any

import entries
import pytest
import stack

PACKAGES = ("nginx-common", "nginx", "libnginx-mod-http-lua")
POLICY = "/usr/sbin/policy-rc.d"
TOKENS = 6000  # two minutes at the speed of the simulated nodes


def recipe() -> str:
    """Return the script that the page shows."""
    page = (stack.PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```sh\n(#!/bin/sh\n# /usr/sbin/policy-rc\.d.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(script)


def master(host: str) -> str:
    """Return the process id of nginx's master."""
    return stack.run(host, "cat", "/run/nginx.pid").strip()


@pytest.mark.parametrize("host", entries.HOSTS)
def test_a_stream_survives_an_upgrade_of_all_packages_of_nginx(host: str) -> None:
    stack.run(host, "sh", "-c", 'printf %s "$0" >"$1" && chmod 755 "$1"', recipe(), POLICY)
    before = master(host)
    pieces: list[Any] = []
    with entries.client(entries.HOSTS[host], timeout=300) as user:
        stream = user.chat.completions.create(
            model="sim", max_tokens=TOKENS, stream=True, messages=[{"role": "user", "content": "a long one"}]
        )
        node = next(iter(stream)).system_fingerprint
        assert node
        reader = threading.Thread(target=lambda: pieces.extend(stream))
        reader.start()
        try:
            # It runs the same scripts as an upgrade.
            stack.run(
                host,
                *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--reinstall"),
                *PACKAGES,
            )
            assert reader.is_alive(), "the stream must be longer than the upgrade"
            assert master(host) != before, "another program runs"
            entries.complete(user)
        finally:
            stack.control(node.replace("sim", "node"), speed=100)
            reader.join()
            stack.control(node.replace("sim", "node"), speed=1)
            stack.run(host, "rm", "-f", POLICY)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert sum(bool(piece.choices and piece.choices[0].delta.content) for piece in pieces) >= TOKENS - 1
    assert stack.run(host, "systemctl", "is-active", "nginx.service").strip() == "active"
