# SPDX-License-Identifier: Apache-2.0
"""What alerts need to know of this host besides the tick: its certificate, its floating address, its keepalived.

This module asks as a client or any other program would. So it needs no privileges, and sees what is live: if only the
file of a certificate was renewed, it still sees the former certificate.
"""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllm_lb.data import data

if TYPE_CHECKING:
    from vllm_lb.settings import OwnHostSettings

TIMEOUT_SECONDS = 1  # for the handshake, over loopback
# The two times of a certificate in DER (RFC 5280, 4.1.2.5), until 2049 and from 2050 on. What stands before them is
# names and numbers, which cannot have this form: a text has no control characters.
TIME = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
VALIDITY = re.compile(TIME + TIME)


class Validity(NamedTuple):
    """From when to when a certificate is valid, in Unix seconds."""

    not_before: float
    not_after: float


@data(kw_only=True)
class OwnHost:
    """What was found; None where there is nothing to ask, or no answer."""

    certificate: Validity | None = None
    holds_floating_address: bool | None = None
    keepalived_runs: bool | None = None


def look(settings: OwnHostSettings) -> OwnHost:
    """Ask for all that the settings name. Raises nothing."""
    certificate = holds = runs = None
    if settings.tls_port:
        certificate = served_certificate(settings.tls_port, settings.tls_name)
    if settings.floating_address:
        holds = has_address(settings.floating_address)
        runs = is_running(Path(settings.keepalived_pid_file))
    return OwnHost(certificate=certificate, holds_floating_address=holds, keepalived_runs=runs)


def served_certificate(port: int, name: str | None) -> Validity | None:
    """Return the validity of the certificate that a server on loopback shows for a name; None without a handshake."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # one that has ended must be read too
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=name) as tls,
        ):
            return validity(tls.getpeercert(binary_form=True) or b"")
    except OSError:
        return None


def validity(certificate: bytes) -> Validity | None:
    """Return the validity that a certificate in DER states."""
    found = VALIDITY.search(certificate)
    if not found:
        return None
    try:
        not_before, not_after = (seconds(found[i], found[i + 1]) for i in (1, 3))
    except ValueError:
        return None
    return Validity(not_before, not_after)


def seconds(short: bytes | None, long: bytes | None) -> float:
    """Return a time of a certificate in Unix seconds. Two digits of a year are 1950 to 2049."""
    text = (long or b"").decode()
    if short:
        text = ("19" if short >= b"50" else "20") + short.decode()
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def has_address(address: str) -> bool:
    """Tell whether an interface of this host has an address: the kernel lets a socket have no other.

    With net.ipv4.ip_nonlocal_bind it lets a socket have any address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:  # also where the kernel has no IPv6
        return False
    return True


def is_running(pid_file: Path) -> bool:
    """Tell whether the process of a pid file exists, which may be another user's."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):  # no file, no number, or no such process
        return False
    return pid > 0  # to the kernel, others are groups of processes
