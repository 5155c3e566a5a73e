"""Ticks that systemd runs on the ingress, their log lines and their results."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import stack

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

SERVICE, TIMER = "vllm-nginx-lb.service", "vllm-nginx-lb.timer"
WARNING = "4"
INVENTORY = stack.EPHEMERAL / "edited-inventory"
VAULT = f"--vault-password-file={stack.EPHEMERAL / 'vault_password'}"
# The options with which an operator runs a playbook here.
OPERATOR = (f"--inventory={INVENTORY / 'hosts.yml'}", VAULT)
# Tags that skip the installation.
QUICKLY = ("--tags=vllm_nginx_lb_configure,vllm_nginx_lb_run",)


def shell(script: str) -> str:
    """Run a shell script on the ingress, which must succeed, and return what it printed."""
    return stack.on_ingress("sh", "-euc", script)


def balancer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the balancer's command on the ingress as root."""
    return stack.attempt("ingress-1", "vllm-nginx-lb", *arguments)


def property_of(unit: str, name: str) -> str:
    """Return a property of a systemd unit."""
    return stack.on_ingress("systemctl", "show", "--value", f"--property={name}", unit).strip()


def await_end() -> None:
    """Wait until no tick is under way."""
    # The service's two commands may take nine seconds each.
    stack.wait_until(
        lambda: property_of(SERVICE, "ActiveState") in ("inactive", "failed"),
        within_seconds=25,
        what="the tick is over",
    )


def tick() -> bool:
    """Run a tick that begins now, and tell whether it succeeded."""
    await_end()  # a tick that somebody else started may have read an earlier state
    return stack.attempt("ingress-1", "systemctl", "start", SERVICE).returncode == 0


def stop_timer() -> None:
    """Stop the timer: on a slow machine a tick could start between any two steps of a test."""
    stack.on_ingress("systemctl", "stop", TIMER)
    await_end()


def start_timer() -> None:
    """Start the timer. It starts a tick at once if the last one was long ago."""
    # Without reset-failed systemd would refuse the sixth start within ten seconds.
    shell(f"systemctl reset-failed {TIMER}; systemctl start {TIMER}")


def journal(since: float, *options: str) -> list[str]:
    """Return the lines of the service since a time, in Unix seconds."""
    stack.on_ingress("journalctl", "--sync")
    lines = stack.on_ingress(
        "journalctl", "--quiet", "--output=cat", f"--since=@{since:.6f}", f"--unit={SERVICE}", *options
    )
    return lines.splitlines()


def complaints(since: float) -> list[str]:
    """Return the warnings and errors of the script itself since a time."""
    return journal(since, "--identifier=vllm-nginx-lb", f"--priority={WARNING}")


def await_live(*servers: str, within_seconds: float = 10) -> None:
    """Wait until nginx serves the last decision, with servers in the upstream file that begin with these texts.

    After a reload, old workers may accept connections for a moment.
    """

    def is_live() -> bool:
        live, upstream = stack.generation(), stack.published()
        as_decided = live == stack.status()["generation"] and f'"{live}"' in upstream
        return as_decided and all(f"server {server} " in upstream for server in servers)

    stack.wait_until(is_live, within_seconds, f"what was decided is live: {' '.join(servers)}")


def await_out(node: str, within_seconds: float = 10) -> None:
    """Wait until nginx serves an upstream in which a node gets no requests."""
    await_live(f"{stack.ADDRESSES[node]} down", within_seconds=within_seconds)


def failing_tick() -> str:
    """Run a tick that must fail, and return the one line it says."""
    stack.on_ingress("journalctl", "--sync")
    began = time.time()
    assert not tick()
    lines = complaints(began)
    assert len(lines) == 1, lines
    return lines[0]


@contextmanager
def drained(node: str) -> Iterator[None]:
    """Drain a node, and undrain it afterwards. A tick makes each of them live."""
    stack.on_ingress("vllm-nginx-lb", "drain", node)
    try:
        yield
    finally:
        stack.on_ingress("vllm-nginx-lb", "undrain", node)
