"""The floating address: one host has it, and when that dies the other one serves."""

from __future__ import annotations

import sys
import time

import entries
import openai
import pytest
import stack


def holders() -> list[str]:
    """Return the ingress hosts that have the address."""
    addresses = {host: stack.attempt(host, "ip", "-oneline", "address").stdout for host in entries.HOSTS}
    return [host for host, found in addresses.items() if f" {entries.FLOATING}/" in found]


def is_served() -> bool:
    """Tell whether a new request through the floating address is answered."""
    try:
        with entries.client(entries.FLOATING, timeout=1) as user:
            return bool(entries.complete(user).choices)
    except openai.APIError:
        return False


def seconds_without_service() -> float:
    """Wait until new requests are answered, and return how long that took. For people: no test depends on it."""
    began = time.monotonic()
    stack.wait_until(is_served, 60, "requests through the floating address")
    return time.monotonic() - began


def test_one_host_has_the_address_and_serves() -> None:
    assert len(holders()) == 1
    assert is_served()


@pytest.mark.parametrize("death", ["the host dies", "nginx dies"])
def test_the_address_moves(death: str, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = holders()
    (second,) = set(entries.HOSTS) - {first}
    if death == "the host dies":
        stack.podman("kill", stack.container(first))
    else:
        stack.run(first, "systemctl", "kill", "--signal=KILL", "nginx.service")
        stack.run(first, "systemctl", "stop", "nginx.service")
    try:
        took = seconds_without_service()
        assert holders() == [second]
    finally:
        if death == "the host dies":
            stack.podman("start", stack.container(first))
        else:
            stack.run(first, "systemctl", "start", "nginx.service")
    with capsys.disabled():
        sys.stdout.write(f"\n{death}: served again after {took:.1f} s\n")
    stack.wait_until(
        lambda: stack.attempt(first, "curl", "--fail", "http://127.0.0.1/health").returncode == 0, 60, first
    )
    assert holders() == [second], "what comes back does not take the address"
