# ruff: noqa: INP001 - Ansible loads filter plugins from plain folders, not packages
"""Filters of the role nginx_ingress for its clients' keys and the grace time: problems, times of expiry, notices.

Only nginx_ingress_keys returns texts with keys.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Settings = dict[str, Any]

# In a map of nginx, a text that begins with ~ is a regular expression.
KEY = re.compile(r"[A-Za-z0-9._+/=-][A-Za-z0-9._~+/=-]{15,127}")
# RFC 3339, with a space in place of T, too
MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?([Zz]|[+-]\d{2}:\d{2})?)?")
UTC = dt.timezone.utc  # noqa: UP017 - Python 3.10 has no datetime.UTC, and ansible-core 2.16 runs there
# Unix seconds with ten digits, from 2001 to 2286: nginx_ingress_digits_below compares them digit by digit.
FIRST, LAST = 10**9, 10**10 - 1
DAY_SECONDS = 86400
SOON_DAYS = 30  # a run announces an expiry this many days before


def seconds_of(value: object) -> int:
    """Return the Unix seconds of a time, or of the beginning of a date. Without a zone it is UTC.

    YAML turns texts that look like dates and times into dates and times.

    Raises:
        ValueError: it is no date and no time from 2001 to 2286.
    """
    if isinstance(value, str) and MOMENT.fullmatch(value):
        moment = dt.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value.replace("t", "T")))
    elif isinstance(value, dt.datetime):
        moment = value
    elif isinstance(value, dt.date):
        moment = dt.datetime(value.year, value.month, value.day, tzinfo=UTC)
    else:
        raise ValueError(value)
    seconds = math.ceil((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not FIRST <= seconds <= LAST:
        raise ValueError(value)
    return seconds


def nginx_ingress_moment_of(seconds: int) -> str:
    """Return Unix seconds as RFC 3339 in UTC."""
    return dt.datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def has_shape(clients: object) -> bool:
    """Tell whether clients are what the other functions can read. nginx_ingress_problems says so if they are not."""
    return isinstance(clients, list) and all(isinstance(client, dict) for client in clients)


def named_keys(client: Settings) -> list[tuple[str, Any]]:
    """Return the keys of a client, as dicts with ``key`` and ``expires``, each with its name below the client."""
    keys = client.get("keys") or []
    own = [(".", {"key": client.get("key"), "expires": client.get("expires")})] if "key" in client else []
    named = own + [(f".keys[{index}].", key) for index, key in enumerate(keys if isinstance(keys, list) else [keys])]
    return [(name, decrypted(key) if isinstance(key, dict) else key) for name, key in named]


def decrypted(key: Settings) -> Settings:
    """Return a key as a text, if Ansible Vault has encrypted it: before ansible-core 2.19 that is no text of Python."""
    is_encrypted = type(key.get("key")).__name__ == "AnsibleVaultEncryptedUnicode"
    return {**key, "key": str(key["key"])} if is_encrypted else key


def expiry_problems(name: str, value: object) -> Iterator[str]:
    """Yield a problem if a variable has a value that is neither a date nor a time."""
    try:
        _ = value in (None, "") or seconds_of(value)
    except ValueError:
        yield (
            f"{name} is {str(value)!r}; allowed is a date such as 2027-01-31, which means its beginning in UTC, or a "
            "time such as 2027-01-31T18:00:00+01:00; correct it"
        )


def key_problems(where: str, key: object) -> Iterator[str]:
    """Yield the problems of one key."""
    if not isinstance(key, dict):
        yield f"{where.rstrip('.')} (not shown): allowed is a dict with key and expires; correct it"
        return
    for name in key:
        if name not in ("key", "expires"):
            yield f"{where.rstrip('.')} has {name!r}; allowed is key, expires; correct or remove it"
    text = key.get("key")
    if isinstance(text, str) and text != text.rstrip("\r\n"):
        yield (
            f"{where}key (not shown) has a line break at its end; encrypt it again without one, as in "
            "docs/operations.md#keep-keys-in-ansible-vault"
        )
    elif not isinstance(text, str) or not KEY.fullmatch(text):
        yield (
            f"{where}key (not shown): allowed is a text of 16 to 128 of A-Z a-z 0-9 . _ ~ + / = -, "
            "without ~ at its beginning; correct it, or make a new one"
        )
    yield from expiry_problems(f"{where}expires", key.get("expires"))


def client_problems(where: str, client: Settings) -> Iterator[str]:
    """Yield the problems of one client's keys."""
    keys = named_keys(client)
    if not keys:
        yield f"{where} has no key; add key, or add keys, a list of dicts with key and expires"
    if "expires" in client and "key" not in client:
        yield f"{where} has expires without key; in keys, put expires beside its key"
    for below, key in keys:
        yield from key_problems(where + below, key)


def duplicates(clients: Sequence[Settings]) -> Iterator[str]:
    """Yield a problem for each client with a key that occurs twice, ignoring case as nginx's maps do."""
    keys = [
        (client.get("name"), str(key.get("key")).lower())
        for client in clients
        for _, key in named_keys(client)
        if isinstance(key, dict)
    ]
    counts = Counter(text for _, text in keys)
    for name in dict.fromkeys(name for name, text in keys if counts[text] > 1):
        yield f"nginx_ingress_clients: {name} has a key that occurs twice (case does not count); make a new key"


def grace_problems(clients: Sequence[Settings], grace: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the grace time."""
    yield from expiry_problems("nginx_ingress_grace_until", grace["until"])
    if grace["clients"] and not clients:
        yield "nginx_ingress_clients_grace_enabled is true without nginx_ingress_clients; name clients, or remove it"
    if grace["tls"] and not grace["tls_enabled"]:
        yield "nginx_ingress_tls_grace_enabled is true without nginx_ingress_tls_enabled; switch that on, or remove it"


def nginx_ingress_key_problems(clients: Sequence[Settings], grace: Mapping[str, Any]) -> list[str]:
    """Return one line per problem of the clients' keys and of the grace time. No line shows a key.

    Args:
        clients: dicts with ``name``, and with ``key`` and ``expires``, or ``keys`` with dicts of these two.
        grace: ``clients``, ``tls`` and ``tls_enabled`` as bools, and ``until``.
    """
    if not has_shape(clients):
        return []
    found = [p for i, client in enumerate(clients) for p in client_problems(f"nginx_ingress_clients[{i}]", client)]
    return [*found, *duplicates(clients), *grace_problems(clients, grace)]


def nginx_ingress_keys(clients: Sequence[Settings]) -> list[dict[str, Any]]:
    """Return all keys of sound clients: ``client``, the name; ``key``; ``expires``, in Unix seconds, 0 for never."""
    return [
        {"client": client["name"], "key": key["key"], "expires": nginx_ingress_seconds(key.get("expires"))}
        for client in clients
        for _, key in named_keys(client)
    ]


def nginx_ingress_seconds(value: object) -> int:
    """Return the Unix seconds of a date or a time (see seconds_of), 0 for none."""
    return 0 if value in (None, "") else seconds_of(value)


def nginx_ingress_moment(value: object) -> str:
    """Return a date or a time as RFC 3339 in UTC, an empty text for none."""
    seconds = nginx_ingress_seconds(value)
    return nginx_ingress_moment_of(seconds) if seconds else ""


def nginx_ingress_digits_below(seconds: int) -> str:
    """Return a regular expression for the numbers of ten digits that are below one of them.

    nginx has no comparison of numbers. ``$msec``, the Unix seconds with a fraction, is compared with this.
    """
    digits = str(seconds)
    lower = [f"{digits[:i]}[0-{int(digit) - 1}]" for i, digit in enumerate(digits) if digit != "0"]
    return f"^(?:{'|'.join(lower)})"


def expiry_notice(what: str, seconds: int, now: float) -> str:
    """Return what to say about a key that has expired or expires soon, an empty text for a later one."""
    days, moment = (seconds - now) / DAY_SECONDS, nginx_ingress_moment_of(seconds)
    if days <= 0:
        return f"{what} has expired ({moment}), and nginx refuses it; remove it"
    if days <= SOON_DAYS:
        return f"{what} expires within {math.ceil(days)} days ({moment}); give the client a new one before"
    return ""


def grace_notices(grace: Mapping[str, Any], now: float) -> Iterator[str]:
    """Yield what to say about the grace time."""
    until = nginx_ingress_seconds(grace["until"])
    kinds = [
        (grace["clients"], "nginx_ingress_clients_grace_enabled", "requests without a good key are served"),
        (grace["tls"], "nginx_ingress_tls_grace_enabled", "requests without TLS are served"),
    ]
    for is_on, name, what in kinds:
        if is_on and until and until <= now:
            yield f"GRACE: {name} has ended ({nginx_ingress_moment_of(until)}), and nginx refuses again; remove it"
        elif is_on:
            end = f"until {nginx_ingress_moment_of(until)}" if until else "without an end (nginx_ingress_grace_until)"
            yield f"GRACE: {what}, {end} ({name})"


def nginx_ingress_notices(clients: Sequence[Settings], grace: Mapping[str, Any], now: float = 0) -> list[str]:
    """Return lines that an operator must see: a grace time, and keys that have expired or expire within 30 days.

    Args:
        clients: sound ones.
        grace: see nginx_ingress_key_problems.
        now: Unix seconds; 0 for the present.
    """
    now = now or dt.datetime.now(UTC).timestamp()
    found = list(grace_notices(grace, now))
    for client in clients:
        keys = named_keys(client)
        for number, (_, key) in enumerate(keys, 1):
            seconds = nginx_ingress_seconds(key.get("expires"))
            what = f"client {client['name']}: its key" + (f" {number} of {len(keys)}" if len(keys) > 1 else "")
            found += [line for line in [seconds and expiry_notice(what, seconds, now)] if line]
    return found


class FilterModule:
    """The class that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        filters = (
            nginx_ingress_digits_below,
            nginx_ingress_key_problems,
            nginx_ingress_keys,
            nginx_ingress_moment,
            nginx_ingress_moment_of,
            nginx_ingress_notices,
            nginx_ingress_seconds,
        )
        return {each.__name__: each for each in filters}
