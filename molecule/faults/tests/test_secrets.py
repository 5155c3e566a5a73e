"""Group 14: the key of the nodes, which is in Ansible Vault and in one file of the ingress, and nowhere else."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import stack
import ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_FILE = "/etc/vllm-nginx-lb/api_key"
# Everywhere a file can be written.
PLACES = "/etc /var /run /tmp /root /home /usr/local /opt /srv"
# Reads all command lines and environments over and over, for as long as a tick takes.
WATCH_PROCESSES = """
import glob, subprocess, sys
seen = set()
tick = subprocess.Popen(["systemctl", "start", "vllm-nginx-lb.service"])
while tick.poll() is None:
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            seen.add(open(path, "rb").read().replace(b"\\0", b" "))
        except OSError:
            pass
sys.stdout.buffer.write(b"\\n".join(seen))
"""


def key() -> str:
    """Return the nodes' key."""
    return stack.API_KEY_FILE.read_text(encoding="ascii").strip()


@contextmanager
def wrong_key() -> Iterator[str]:
    """Let the balancer have a key that the nodes do not know, until a play writes the right one."""
    wrong = "a-key-that-no-node-knows"
    ticks.shell(f"echo {wrong} >{KEY_FILE}")
    yield wrong


@pytest.mark.fault(
    14,
    "the nodes' key is changed, with `--diff -vvv`, after a wrong one",
    sees="HTTP 401 (see scrape.api_key_file)",
    keeps="all nodes at their last weights; neither key is in the log of Ansible",
)
def test_no_key_is_in_the_log_of_ansible() -> None:
    with wrong_key() as wrong:
        before = stack.published()
        ticks.tick()
        assert stack.published() == before

        done = stack.play(*ticks.OPERATOR, *ticks.QUICKLY, "--diff", "-vvv", "playbooks/balancer.yml")

    assert done.returncode == 0, done.stdout
    assert "Write the API key" in done.stdout
    assert ticks.shell(f"cat {KEY_FILE}").strip() == key()
    for secret in (key(), wrong):
        assert secret not in done.stdout + done.stderr


@pytest.mark.fault(
    14,
    "somebody looks for the nodes' key on the ingress",
    sees="api_key_file: /etc/vllm-nginx-lb/api_key",
    keeps="the key in that file alone, which root and the balancer read",
)
def test_the_key_is_in_one_file_of_the_ingress(heard: list[str]) -> None:
    shown = [ticks.balancer(*words.split()) for words in ("check-config", "run --dry-run", "status", "status --json")]
    heard += [done.stdout for done in shown]
    assert [done.returncode for done in shown] == [0] * len(shown)
    processes = stack.on_ingress("python3", "-c", WATCH_PROCESSES)
    assert "vllm-nginx-lb apply" in processes
    journal = stack.on_ingress("journalctl", "--all")
    assert "vllm-nginx-lb" in journal
    for text in (*(done.stdout + done.stderr for done in shown), processes, journal):
        assert key() not in text

    holders = ticks.shell(
        f"grep --recursive --files-with-matches --no-messages --fixed-strings --file={KEY_FILE} {PLACES} || true"
    )
    assert holders.split() == [KEY_FILE]
    assert stack.on_ingress("stat", "--format=%a %U %G", KEY_FILE).strip() == "640 root vllm-nginx-lb"


def test_the_key_is_not_in_the_repository() -> None:
    vaulted = (stack.EPHEMERAL / "edited-inventory/group_vars/ingress/vault.yml").read_text(encoding="ascii")
    assert "$ANSIBLE_VAULT;" in vaulted
    assert key() not in vaulted
    found = subprocess.run(
        ["git", "-c", "safe.directory=*", "grep", "--untracked", "--fixed-strings", "-f", stack.API_KEY_FILE],  # noqa: S607
        cwd=stack.PROJECT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.stderr == ""
    assert found.stdout == ""
