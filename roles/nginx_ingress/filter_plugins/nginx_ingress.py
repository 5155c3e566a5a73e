# ruff: noqa: INP001 - Ansible loads filter plugins from plain folders, not packages
"""Filters of the role nginx_ingress: problems of its clients, pools, limits and addresses; the limits to enforce."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Settings = dict[str, Any]

POOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
# These words are keywords in nginx's maps, so they cannot be names.
WORDS = r"(?!(default|hostnames|include|volatile)\Z)"
CLIENT = re.compile(WORDS + r"[A-Za-z0-9._-]{1,63}")
PATH_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
SERVER_NAME = re.compile(r"[A-Za-z0-9*._-]{1,253}")
X_MODEL = re.compile(WORDS + r"[A-Za-z0-9._:/@+-]{1,200}")
LIMITS = ("requests_per_minute", "requests_burst", "concurrent_requests")
MOST = 1_000_000


def whole_number(value: object) -> int | None:
    """Return a whole number from 0 given as such or as text (ansible-core 2.16 makes text of it), else None."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return int(value) if re.fullmatch(r"[0-9]{1,9}", str(value)) else None


def unknown_keys(where: str, settings: Settings, allowed: Sequence[str]) -> Iterator[str]:
    """Yield a problem for each key that the role does not know: nothing would use a misspelt key."""
    for key in settings:
        if key not in allowed:
            yield f"{where} has {key!r}; allowed is {', '.join(allowed)}; correct or remove it"


def limit_problems(where: str, settings: Settings) -> Iterator[str]:
    """Yield a problem for each limit that is no whole number in its range."""
    for key in LIMITS:
        value = whole_number(settings.get(key, 0))
        if value is None or value > MOST:
            yield f"{where}{key} is {settings[key]!r}; allowed is a number from 0 (no limit) to {MOST}; correct it"


def duplicates(where: str, what: str, values: Sequence[str]) -> Iterator[str]:
    """Yield a problem for each value that occurs twice, ignoring case: nginx would find only the first one."""
    for value, count in Counter(value.lower() for value in values).items():
        if count > 1:
            yield f"{where} has the {what} {value!r} {count} times, in any case; each must be there once; remove one"


def client_problems(clients: Sequence[Settings]) -> Iterator[str]:
    """Yield the problems of the clients, without those of their keys (nginx_ingress_keys.py has these)."""
    for index, client in enumerate(clients):
        where = f"nginx_ingress_clients[{index}]"
        name = client.get("name")
        yield from unknown_keys(where, client, ("name", "key", "expires", "keys", *LIMITS))
        if not isinstance(name, str) or not CLIENT.fullmatch(name):
            yield f"{where}.name is {name!r}; allowed are 1 to 63 of A-Z a-z 0-9 . _ -; correct it"
        yield from limit_problems(f"{where}.", client)
    yield from duplicates("nginx_ingress_clients", "name", [str(client.get("name")) for client in clients])


SELECTORS = {"server_names": (SERVER_NAME, "host names"), "x_models": (X_MODEL, "names of models")}


def selector_problems(where: str, settings: Settings) -> Iterator[str]:
    """Yield the problems of a pool's selectors: path prefix, server names and values of X-Model."""
    prefix = settings.get("path_prefix", "/v1")
    if not isinstance(prefix, str) or not PATH_PREFIX.fullmatch(prefix):
        yield f"{where}.path_prefix is {prefix!r}; allowed is a path such as /batch, without a last /; correct it"
    for key, (pattern, what) in SELECTORS.items():
        values = settings.get(key, [])
        if not isinstance(values, list) or not all(isinstance(v, str) and pattern.fullmatch(v) for v in values):
            yield f"{where}.{key} is {values!r}; allowed is a list of {what}; correct it"
    if not any(settings.get(key) for key in ("path_prefix", *SELECTORS)):
        yield f"{where}: no request would go there; give it one of path_prefix, {', '.join(SELECTORS)}, or remove it"


def pool_problems(pools: Mapping[str, Settings]) -> Iterator[str]:
    """Yield the problems of the pools of nginx_ingress_pools."""
    for pool, settings in pools.items():
        where = f"nginx_ingress_pools.{pool}"
        if not POOL.fullmatch(pool):
            yield f"{where}: allowed is a letter, then up to 62 of A-Z a-z 0-9 _; correct it"
        yield from unknown_keys(where, settings, ("path_prefix", *SELECTORS, *LIMITS))
        yield from selector_problems(where, settings)
        yield from limit_problems(f"{where}.", settings)
    for key in SELECTORS:
        values = [str(value) for settings in pools.values() for value in settings.get(key) or []]
        yield from duplicates("nginx_ingress_pools", key, values)
    prefixes = [str(settings["path_prefix"]) for settings in pools.values() if "path_prefix" in settings]
    yield from duplicates("nginx_ingress_pools", "path_prefix", prefixes)
    for one, other in itertools.permutations(prefixes, 2):
        if other.startswith(f"{one}/"):
            yield f"nginx_ingress_pools has path_prefix {other!r} below {one!r}; neither may begin with the other"


def shape_problems(clients: object, pools: object) -> Iterator[str]:
    """Yield problems of types. The other checks need right types."""
    if not isinstance(clients, list) or not all(isinstance(client, dict) for client in clients):
        yield "nginx_ingress_clients: allowed is a list of dicts with name and key; correct it"
    if not isinstance(pools, dict) or not all(isinstance(settings, dict) for settings in pools.values()):
        yield "nginx_ingress_pools: allowed is a dict of dicts, by name of the pool; correct it"


def nginx_ingress_problems(clients: Sequence[Settings], pools: Mapping[str, Settings], limits: Settings) -> list[str]:
    """Return one line per problem of the role's clients, pools and limits; an empty list means that they are sound.

    Args:
        clients: dicts with ``name``, keys and any of LIMITS.
        pools: by name, dicts with ``path_prefix``, ``server_names``, ``x_models`` and any of LIMITS.
        limits: LIMITS of every client that has none of its own.
    """
    return list(shape_problems(clients, pools)) or [
        *client_problems(clients),
        *pool_problems(pools),
        *limit_problems("nginx_ingress_", limits),
    ]


def nginx_ingress_limits(
    limits: Settings, clients: Sequence[Settings], pools: Mapping[str, Settings]
) -> list[dict[str, Any]]:
    """Return the limits to enforce. nginx enforces each limit on every request that the limit counts.

    A limit has LIMITS as numbers (0: no limit) and ``zone``, a part of nginx's names. It counts the requests for which
    the nginx variable ``selector`` has the value ``only``. If ``only`` is empty, it counts the requests for which the
    variable has none of the values ``unlike``.
    """
    own = [client for client in clients if any(key in client for key in LIMITS)]
    by_client = "$vllm_nginx_lb_client" if clients else '""'
    wanted: list[tuple[str, str, str, list[str], Settings]] = [
        ("all", by_client, "", [client["name"] for client in own], limits),
        *((f"client_{i}", by_client, client["name"], [], {**limits, **client}) for i, client in enumerate(own)),
        *((f"pool_{pool}", "$vllm_nginx_lb_pool", pool, [], settings) for pool, settings in pools.items()),
    ]
    found = [
        {"zone": zone, "selector": selector, "only": only, "unlike": unlike}
        | {key: whole_number(settings.get(key, 0)) for key in LIMITS}
        for zone, selector, only, unlike, settings in wanted
    ]
    return [each for each in found if each["requests_per_minute"] or each["concurrent_requests"]]


def nginx_ingress_retry_after(limits: Sequence[Settings], client: str = "") -> int:
    """Return the seconds, at least 1, after which the slowest rate that counts a client allows one more request.

    Args:
        limits: see nginx_ingress_limits.
        client: the name of a client that has limits of its own; empty for all other clients.
    """
    # The limit "all" names no client, so its ``only`` is empty, like ``client`` for clients without own limits.
    counting = [limit for limit in limits if limit["zone"].startswith("pool_") or limit["only"] == client]
    rates = [limit["requests_per_minute"] for limit in counting if limit["requests_per_minute"]]
    return max((math.ceil(60 / rate) for rate in rates), default=1)


def is_address(value: object) -> bool:
    """Tell whether a text is an IP address as nginx writes it: without brackets and zone."""
    try:
        return isinstance(value, str) and "%" not in value and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def network_problems(name: str, networks: Sequence[object]) -> Iterator[str]:
    """Yield a problem for each value of a variable that is neither an IP address nor a network."""
    for value in networks:
        try:
            good = isinstance(value, str) and (is_address(value) or ("/" in value and ipaddress.ip_network(value)))
            hint = "correct it"
        except ValueError as error:
            good, hint = False, f"correct it ({error})"
        if not good:
            yield f"{name} has {value!r}; allowed is an IP address or a network such as 192.0.2.0/24; {hint}"


def nginx_ingress_address_problems(
    addresses: Sequence[object], allowed: Sequence[object], exempt: Sequence[object]
) -> list[str]:
    """Return one line per problem of the status server's addresses, and of clients that are named by address.

    Args:
        addresses: IP addresses that the status server listens on.
        allowed: IP addresses and networks that may see it.
        exempt: IP addresses and networks without a bound of their own.
    """
    return [
        *(
            f"nginx_ingress_status_addresses has {value!r}; allowed is an IP address of the host, 0.0.0.0 or ::; "
            "correct it"
            for value in addresses
            if not is_address(value)
        ),
        *network_problems("nginx_ingress_status_allowed", allowed),
        *network_problems("nginx_ingress_connections_exempt", exempt),
    ]


def nginx_ingress_networks(networks: Sequence[str], version: int) -> list[str]:
    """Return those of some addresses and networks that are IPv4 (version 4) or IPv6 (version 6)."""
    return [value for value in networks if ipaddress.ip_network(value).version == version]


# Advice on what nginx or tasks/take.yml says. The first pattern that matches counts.
ADVICE = {
    r"listens on": """Another program holds that port. Stop it, or change nginx_ingress_listen_port,
        nginx_ingress_tls_listen_port or nginx_ingress_status_port.""",
    r"does not run the parts|answers at": """/var/log/nginx/error.log says why. If you added 0.0.0.0 to
        nginx_ingress_status_addresses, or removed it, nginx must be stopped and started, which ends streams: run
        systemctl stop nginx, then run the play again.""",
    r"duplicate default server": """Another site is the default server of that port. If it is Debian's example, set
        nginx_ingress_default_site_enabled: false; if another site must be it, set
        nginx_ingress_refuse_unknown_names_enabled: false.""",
    r'directive "[a-z_]*lua|ndk_http|http_lua|not binary compatible|resty\.|cjson': """This nginx has no Lua that works.
        If this is Debian's nginx, install libnginx-mod-http-lua and lua-cjson of the same release, and check that
        /etc/nginx/modules-enabled has the module. If it is not Debian's, for instance nginx.org's, set
        nginx_ingress_balancer: upstream and nginx_ingress_answer_guard_enabled: false.""",
}


def nginx_ingress_advice(said: str) -> str:
    """Return advice on a complaint of nginx; an empty text if there is none."""
    return next((" ".join(advice.split()) for pattern, advice in ADVICE.items() if re.search(pattern, said)), "")


def nginx_ingress_named_files(files: Sequence[Mapping[str, Any]], folder: str) -> list[dict[str, str]]:
    """Return the name below a folder, and the checksum, of each file that ansible.builtin.find has found there."""
    return [{"name": file["path"].removeprefix(f"{folder}/"), "checksum": file["checksum"]} for file in files]


def nginx_ingress_role_files(folder: str) -> list[dict[str, str]]:
    """Return the name below a folder of this machine, and the SHA-1, of each file there. The files are small."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return [
        {"name": str(path.relative_to(folder)), "checksum": hashlib.sha1(path.read_bytes()).hexdigest()}  # noqa: S324
        for path in files
    ]


def nginx_ingress_ipv6_mask(bits: int) -> str:
    """Return the mask of an IPv6 prefix of so many bits, such as ``ffff:ffff:ffff:ffff::`` for 64."""
    return str(ipaddress.IPv6Network(f"::/{bits}").netmask)


class FilterModule:
    """The class that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        filters = (
            nginx_ingress_address_problems,
            nginx_ingress_ipv6_mask,
            nginx_ingress_limits,
            nginx_ingress_advice,
            nginx_ingress_named_files,
            nginx_ingress_networks,
            nginx_ingress_problems,
            nginx_ingress_retry_after,
            nginx_ingress_role_files,
        )
        return {each.__name__: each for each in filters}
