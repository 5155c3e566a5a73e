# SPDX-License-Identifier: Apache-2.0
"""Every setting of config.yml, with its type, its range and its default."""

import itertools
import re

from vllm_lb.addresses import is_host, is_ip
from vllm_lb.data import data
from vllm_lb.schema import absolute_path, at_least_one, choice, number, setting, text

NAME = r"[A-Za-z0-9._-]{1,63}"
POOL_NAME = r"[A-Za-z][A-Za-z0-9_]{0,62}"
MODEL = r"[^\x00-\x1f\x7f\"\\]{1,256}"  # needs no escapes in JSON and in nginx
URL = r"https?://[!-~]+"
MAX_WEIGHT = 100
MAX_ENGINES = 4096  # of one node
CONFIG_FILE = "/etc/vllm-nginx-lb/config.yml"
BALANCERS = ("upstream", "work")
METHODS = ("least_conn", "round_robin", "random_two_least_conn", "consistent_hash")
POLICIES = ("capacity", "stepped", "static")


@data(kw_only=True)
class Scrape:
    """How /metrics is read. timeout_seconds bounds one whole response."""

    path: str = text(r"/[!-~]*", "a path that starts with /", "/metrics")
    timeout_seconds: float = number(0.1, 60, 5.0)
    max_bytes: int = number(1024, 2**28, 4 * 2**20)
    workers: int = number(1, 1024, 32)
    api_key_file: str | None = absolute_path(None)
    former_api_key_file: str | None = absolute_path(None)
    ca_file: str | None = absolute_path(None)


@data(kw_only=True)
class NginxSettings:
    """Where the published file goes, and how nginx is tested, reloaded and asked what is live.

    With the balancer "upstream" nginx itself chooses nodes: it reads a new upstream in a reload. With "work" our Lua
    chooses: it reads weights.json by itself, so nothing is tested and reloaded. The last three settings limit reloads
    that change weights alone, because each reload leaves old workers behind that finish their streams.
    """

    balancer: str = choice(*BALANCERS, default="upstream")
    upstream_file: str = text(
        r"/([^/\0\n]+/)*[^/\0\n]+", "an absolute path of a file", "/etc/nginx/vllm-nginx-lb/upstream.conf"
    )
    upstream_template: str | None = absolute_path(None)
    test_command: tuple[str, ...] = at_least_one("word", ("nginx", "-t"))
    reload_command: tuple[str, ...] = at_least_one("word", ("nginx", "-s", "reload"))
    pid_file: str | None = absolute_path(None)
    confirm_url: str | None = text(URL, "an http(s) URL, or null", None)
    confirm_timeout_seconds: float = number(0.1, 60, 5.0)
    min_reload_interval_seconds: float = number(0, 86400, 30.0)
    min_weight_change_ratio: float = number(0, 1, 0.1)
    slow_start_seconds: float = number(0, 86400, 30.0)  # of the Lua: until a node that returns has its whole weight
    max_draining_generations: int = number(1, 1000, 5)


@data(kw_only=True)
class Health:
    """When a node goes down (fall), when it comes back (rise), and when its last reading is too old."""

    fall: int = number(1, 1000, 3)
    rise: int = number(1, 1000, 2)
    stale_after_seconds: float = number(1, 86400, 180.0)


@data(kw_only=True)
class Node:
    """One vLLM server. max_conns limits the requests that nginx has there at once; 0 is no limit."""

    name: str = text(NAME, "1 to 63 of A-Z a-z 0-9 . _ -")
    host: str = setting("an IP address or a host name", is_host)
    port: int = number(1, 65535, 18090)
    scheme: str = choice("http", "https", default="http")
    capacity: float = number(0.01, 100, 1.0)
    max_conns: int = number(0, 65535, 0)
    drain: bool = False


@data(kw_only=True)
class Pool:
    """One upstream block: its nodes, its balancing method and the policy that weighs them.

    The method "consistent_hash" keeps requests with the same value of hash_header on one node.
    """

    name: str = text(POOL_NAME, "a letter, then up to 62 of A-Z a-z 0-9 _")
    method: str = choice(*METHODS, default="least_conn")
    hash_header: str = text(r"[A-Za-z0-9-]{1,63}", "a header's name, of A-Z a-z 0-9 -", "X-Session-Id")
    keepalive: int = number(0, 65535, 0)
    keepalive_timeout_seconds: int = number(1, 3600, 2)
    max_fails: int = number(0, 10**6, 10)
    fail_timeout_seconds: int = number(1, 86400, 5)
    policy: str = choice(*POLICIES, default="capacity")
    models: tuple[str, ...] = setting(
        "names of models: 1 to 256 printable characters without quotes and backslashes",
        lambda v: all(re.fullmatch(MODEL, name) for name in v),
        (),
    )
    nodes: tuple[Node, ...] = at_least_one("node")


@data(kw_only=True)
class KvStep:
    """One step of the ladder: from this usage of the KV cache on (a ratio), this weight."""

    at_least: float = number(0, 1)
    weight: int = number(1, MAX_WEIGHT)


@data(kw_only=True)
class Stepped:
    """The policy `stepped`: KV usage picks a level, and each further sign of load moves it one level down."""

    levels: tuple[int, ...] = setting(
        f"weights from {MAX_WEIGHT} to 1, falling",
        lambda v: len(v) > 0 and all(0 < w <= MAX_WEIGHT for w in v) and all(a > b for a, b in itertools.pairwise(v)),
        (100, 60, 30, 10),
    )
    kv_cache: tuple[KvStep, ...] = (
        KvStep(at_least=0.92, weight=10),
        KvStep(at_least=0.85, weight=30),
        KvStep(at_least=0.75, weight=60),
    )
    max_waiting: int = number(0, 10**6, 0)
    max_running: int = number(0, 10**6, 8)
    downgrade_on_preemption: bool = True


@data(kw_only=True)
class Capacity:
    """The policy `capacity`, which learns what each node can do.

    A weight changes at once when the last readings ask for a change of sudden_change_ratio. A smaller change, down to
    min_change_ratio, has to be asked for by more readings. Relative to its configured capacity, no node counts for more
    than max_learned_ratio times the median of its pool, whatever it reports.
    """

    lowest_weight: int = number(1, MAX_WEIGHT, 10)
    speed_exponent: float = number(0, 4, 1.5)
    max_kv_cache_usage: float = number(0.01, 1, 0.7)
    sudden_change_ratio: float = number(0.01, 10, 0.5)
    min_change_ratio: float = number(0.01, 10, 0.15)
    max_learned_ratio: float = number(1.5, 100, 4.0)


@data(kw_only=True)
class Policies:
    """The settings of each policy that has any."""

    stepped: Stepped = Stepped()
    capacity: Capacity = Capacity()


@data(kw_only=True)
class OwnHostSettings:
    """What Prometheus learns of this host besides the tick: the certificate for clients, the floating address."""

    tls_port: int | None = number(1, 65535, None)
    tls_name: str | None = setting("a host name, or null", is_host, None)
    floating_address: str | None = setting("an IP address, or null", is_ip, None)
    keepalived_pid_file: str = absolute_path("/run/keepalived.pid")


@data(kw_only=True)
class Config:
    """config.yml as a whole."""

    state_directory: str = absolute_path("/var/lib/vllm-nginx-lb")
    interval_seconds: float = number(0.1, 86400, 10.0)  # between two ticks; a status of three intervals ago is too old
    history_max_bytes: int = number(0, 2**40, 20 * 10**6)  # 0 keeps no history
    scrape: Scrape = Scrape()
    nginx: NginxSettings = NginxSettings()
    health: Health = Health()
    own_host: OwnHostSettings = OwnHostSettings()
    pools: tuple[Pool, ...] = at_least_one("pool")
    policies: Policies = Policies()
