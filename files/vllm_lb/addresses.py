# SPDX-License-Identifier: Apache-2.0
"""IP addresses and host names: which are valid, and the one spelling of each.

Two nodes with the same canonical address and port are two names of one server.
"""

from __future__ import annotations

import ipaddress
import re

HOSTNAME = r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?"


def is_ip(value: str) -> bool:
    """Tell whether a text is an IPv4 or IPv6 address, without a zone."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return "%" not in value  # fe80::1%eth0 means something on one host only; nginx refuses it


def is_host(value: str) -> bool:
    """Tell whether a text is the IP address of one server (not 0.0.0.0, ::, nor a multicast group) or a host name."""
    if is_ip(value):
        address = ipaddress.ip_address(value)
        return not (address.is_unspecified or address.is_multicast)
    return bool(re.fullmatch(HOSTNAME, value) and not re.fullmatch(r"[0-9.]+", value))


def canonical(host: str) -> str:
    """Return the one spelling of an IP address or host name."""
    return str(ipaddress.ip_address(host)) if is_ip(host) else host.lower()


def bracketed(host: str) -> str:
    """Return a host as URLs and nginx write it before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
