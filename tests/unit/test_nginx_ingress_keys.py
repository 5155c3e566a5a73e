"""Keys and grace times that nginx_ingress refuses, and what it makes and says of good ones."""

from __future__ import annotations

import datetime as dt
import random
import re
from typing import Any

import pytest

from roles.nginx_ingress.filter_plugins.nginx_ingress_keys import (
    nginx_ingress_digits_below,
    nginx_ingress_key_problems,
    nginx_ingress_keys,
    nginx_ingress_moment,
    nginx_ingress_notices,
    nginx_ingress_seconds,
)

KEY = "0123456789abcdef"
OFF = {"clients": False, "tls": False, "tls_enabled": False, "until": ""}
ON = {"clients": True, "tls": True, "tls_enabled": True, "until": ""}
NOON = dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC)


def client(key: Any = KEY, **changes: Any) -> dict[str, Any]:
    """Return a sound client with a key, with changes."""
    return {"name": "team-a", "key": key, **changes}


def with_keys(*keys: Any) -> dict[str, Any]:
    """Return a client with a list of keys."""
    return {"name": "team-a", "keys": list(keys)}


def test_sound_keys_have_no_problem() -> None:
    clients = [
        client(expires="2027-01-31", keys=[{"key": KEY + "1", "expires": NOON}]),
        {"name": "team-b", "keys": [{"key": f"{KEY}.~+/=-_", "expires": dt.date(2027, 1, 31)}, {"key": KEY + "2"}]},
    ]
    assert nginx_ingress_key_problems(clients, OFF) == []
    assert nginx_ingress_key_problems(clients, ON | {"until": "2027-01-31T12:00:00Z"}) == []
    assert nginx_ingress_key_problems([], OFF) == []
    assert [(key["client"], key["key"], key["expires"]) for key in nginx_ingress_keys(clients)] == [
        ("team-a", KEY, 1801353600),
        ("team-a", KEY + "1", 1801396800),
        ("team-b", f"{KEY}.~+/=-_", 1801353600),
        ("team-b", KEY + "2", 0),
    ]


@pytest.mark.parametrize(
    "key", ["short", "~0123456789abcdef", 'quote"0123456789abc', "line\n0123456789abc", "x" * 129, None, 5]
)
@pytest.mark.parametrize("place", ["key", "keys[0].key"])
def test_a_wrong_key_is_never_shown(key: Any, place: str) -> None:
    wrong = client(key) if place == "key" else with_keys({"key": key})
    (line,) = nginx_ingress_key_problems([wrong], OFF)
    assert line.startswith(f"nginx_ingress_clients[0].{place} (not shown): allowed is a text of 16 to 128 of")
    assert not isinstance(key, str) or key not in line


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_break_at_the_end_of_a_key_has_a_line_of_its_own(end: str) -> None:
    (line,) = nginx_ingress_key_problems([client(KEY + end)], OFF)
    assert line == (
        "nginx_ingress_clients[0].key (not shown) has a line break at its end; encrypt it again without one, as in "
        "docs/operations.md#keep-keys-in-ansible-vault"
    )


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"name": "team-a"}, "nginx_ingress_clients[0] has no key; add key, or add keys, a list of dicts with key"),
        (with_keys(KEY), "nginx_ingress_clients[0].keys[0] (not shown): allowed is a dict with key and expires;"),
        ({"name": "a", "keys": KEY}, "nginx_ingress_clients[0].keys[0] (not shown): allowed is a dict with key and"),
        (with_keys({"key": KEY, "until": 1}), "nginx_ingress_clients[0].keys[0] has 'until'; allowed is key, expires;"),
        (
            {**with_keys({"key": KEY}), "expires": "2027-01-31"},
            "nginx_ingress_clients[0] has expires without key; in keys, put expires beside its key",
        ),
        (client(expires="soon"), "nginx_ingress_clients[0].expires is 'soon'; allowed is a date such as 2027-01-31"),
        (client(expires="2027-02-30"), "nginx_ingress_clients[0].expires is '2027-02-30'; allowed is a date such as"),
        (client(expires=20270131), "nginx_ingress_clients[0].expires is '20270131'; allowed is a date such as"),
        (client(expires="0027-01-31"), "nginx_ingress_clients[0].expires is '0027-01-31'; allowed is a date such as"),
        (client(keys=[{"key": KEY.upper()}]), "nginx_ingress_clients: team-a has a key that occurs twice"),
    ],
)
def test_wrong_keys_of_a_client(wrong: dict[str, Any], line: str) -> None:
    (found,) = nginx_ingress_key_problems([wrong], OFF)
    assert found.startswith(line)
    assert KEY not in found


def test_a_key_belongs_to_one_client() -> None:
    lines = nginx_ingress_key_problems([client(), {"name": "team-b", "keys": [{"key": KEY.upper()}]}], OFF)
    assert lines == [
        f"nginx_ingress_clients: {name} has a key that occurs twice (case does not count); make a new key"
        for name in ("team-a", "team-b")
    ]


@pytest.mark.parametrize("shape", ["x", ["x"], {}])
def test_other_checks_complain_of_a_wrong_shape(shape: Any) -> None:
    assert nginx_ingress_key_problems(shape, OFF) == []


@pytest.mark.parametrize(
    ("clients", "grace", "line"),
    [
        ([], OFF | {"clients": True}, "nginx_ingress_clients_grace_enabled is true without nginx_ingress_clients;"),
        ([], OFF | {"tls": True}, "nginx_ingress_tls_grace_enabled is true without nginx_ingress_tls_enabled;"),
        ([], OFF | {"until": "x"}, "nginx_ingress_grace_until is 'x'; allowed is a date such as 2027-01-31, which"),
    ],
)
def test_a_wrong_grace_time(clients: list[dict[str, Any]], grace: dict[str, Any], line: str) -> None:
    (found,) = nginx_ingress_key_problems(clients, grace)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        (dt.date(2027, 1, 31), "2027-01-31T00:00:00Z"),
        (NOON, "2027-01-31T12:00:00Z"),
        (NOON.replace(tzinfo=None), "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31 12:00:00", "2027-01-31T12:00:00Z"),
        ("2027-01-31t12:00:00.5+02:00", "2027-01-31T10:00:01Z"),
        ("", ""),
        (None, ""),
    ],
)
def test_dates_and_times_are_read_as_utc_or_by_their_zone(value: object, moment: str) -> None:
    assert nginx_ingress_moment(value) == moment


def test_digits_tell_what_is_before_a_time() -> None:
    numbers = random.Random(1)  # noqa: S311 - to be repeated, not to be secret
    for _ in range(2000):
        end = numbers.randrange(10**9, 10**10)
        pattern = re.compile(nginx_ingress_digits_below(end))
        others = [numbers.randrange(10**9, 10**10), end - numbers.randrange(1, 100), end + numbers.randrange(100), end]
        for other in others:
            if 10**9 <= other < 10**10:
                assert bool(pattern.match(f"{other}.{numbers.randrange(1000):03}")) == (other < end), (other, end)


def test_notices_name_what_has_expired_or_will_soon_and_no_key() -> None:
    clients = [
        client(expires="2027-01-31"),
        {"name": "team-b", "keys": [{"key": KEY + "1"}, {"key": KEY + "2", "expires": "2027-02-20"}]},
        {"name": "team-c", "keys": [{"key": KEY + "3", "expires": "2027-04-01"}]},
    ]
    lines = nginx_ingress_notices(clients, OFF, NOON.timestamp())
    assert lines == [
        "client team-a: its key has expired (2027-01-31T00:00:00Z), and nginx refuses it; remove it",
        "client team-b: its key 2 of 2 expires within 20 days (2027-02-20T00:00:00Z); give the client a new one before",
    ]
    assert nginx_ingress_notices([client(expires=dt.date(2024, 1, 1))], OFF), "the present is the default"


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("", "without an end (nginx_ingress_grace_until) ("),
        ("2027-02-01", "until 2027-02-01T00:00:00Z ("),
        ("2027-01-01", "has ended (2027-01-01T00:00:00Z), and nginx refuses again; remove it"),
    ],
)
def test_notices_of_a_grace_time_are_loud(until: str, words: str) -> None:
    lines = nginx_ingress_notices([client()], ON | {"until": until}, NOON.timestamp())
    assert len(lines) == 2
    for line, kind in zip(lines, ("clients", "tls"), strict=True):
        assert line.startswith("GRACE: ")
        assert words in line
        assert f"nginx_ingress_{kind}_grace_enabled" in line
    assert nginx_ingress_notices([client()], OFF | {"until": until}, NOON.timestamp()) == []


def test_no_time_is_zero() -> None:
    assert [nginx_ingress_seconds(nothing) for nothing in ("", None)] == [0, 0]
