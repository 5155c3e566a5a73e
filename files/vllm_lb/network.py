# SPDX-License-Identifier: Apache-2.0
"""Errors of the network: a code and a few words for each."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from typing import Any

from vllm_lb.causes import ScrapeCause
from vllm_lb.text import printable

# Limits of this host, not faults of the node.
OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
Fault = tuple[ScrapeCause, str]


def fault_of(error: BaseException) -> Fault:
    """Find the cause and its words, such as "connection refused", in an error from requests."""
    faults = [(ScrapeCause.NETWORK, printable(type(error).__name__))]
    todo: list[Any] = [error]
    while todo:
        each = todo.pop()
        if fault := fault_of_one(each):
            faults.append(fault)
        if isinstance(each, BaseException):
            todo += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    cause, words = faults[-1]
    return cause, printable(words).lower()


def fault_of_one(error: Any) -> Fault | None:
    """Return the cause and the words of one error, without the errors behind it; None if it has none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ScrapeCause.CERTIFICATE, f"certificate refused: {error.verify_message}".rstrip(".")
    if type(error).__name__ == "CertificateError":  # urllib3 1.26 (Debian 12) compares names itself
        return ScrapeCause.CERTIFICATE, f"certificate refused: {error}"
    if isinstance(error, OSError) and error.strerror:
        return cause_of(error), error.strerror
    if isinstance(error, http.client.RemoteDisconnected):
        return ScrapeCause.CLOSED, "closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return ScrapeCause.NOT_HTTP, "the answer is not HTTP"
    return None


def cause_of(error: OSError) -> ScrapeCause:
    """Return the code of an error of the operating system."""
    if isinstance(error, socket.gaierror):
        return ScrapeCause.UNRESOLVED
    if error.errno == errno.ECONNREFUSED:
        return ScrapeCause.CONNECTION_REFUSED
    if error.errno == errno.ETIMEDOUT:
        return ScrapeCause.TIMEOUT
    return ScrapeCause.OWN_LIMIT if error.errno in OWN_LIMITS else ScrapeCause.NETWORK


def own_limit(number: int) -> OSError:
    """Return the error of a limit of this host."""
    return OSError(number, os.strerror(number))
