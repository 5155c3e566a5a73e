# SPDX-License-Identifier: Apache-2.0
"""The codes that say why: stable words for programs, beside the sentences for people.

status.json, the history and the journal have a code for each reason, error and outcome. Programs decide by the code
alone; a sentence may be reworded at any time. docs/monitoring.md lists all codes.
"""

from enum import StrEnum


class NodeCause(StrEnum):
    """Why a node has its state and weight."""

    KV_LEVEL = "kv_level"  # stepped: the usage of its KV cache alone
    DOWNGRADED = "downgraded"  # stepped: lowered for waiting requests, preemptions or too many running
    CONFIGURED_CAPACITY = "configured_capacity"  # static
    LEARNED = "learned"  # capacity: from the measured speeds of the nodes
    SLOW_START = "slow_start"  # the weight rises in steps to what the node had before
    RETURNED = "returned"  # up again with its full weight: nginx's Lua does the slow start
    RECOVERING = "recovering"  # down: the node answers again, and needs more good scrapes in a row
    FROZEN = "frozen"  # the node has requests, and none of its metrics changes
    HELD = "held"  # no reading in this tick: the last weight stays
    NEVER_READ = "never_read"
    STALE = "stale"  # no reading for longer than health.stale_after_seconds
    UNREACHABLE = "unreachable"  # down: the node does not answer
    UNREADABLE = "unreadable"  # down: the node answers, and the answer cannot be used
    NO_STATISTICS = "no_statistics"  # vLLM runs with --disable-log-stats: the configured share
    IMPLAUSIBLE = "implausible"  # capacity: the node claims a speed that no engine has, and its weight stays
    BOUNDED = "bounded"  # capacity: the most that a node may get beside the others, whatever it says
    ASLEEP = "asleep"
    DRAINED_IN_INVENTORY = "drained_in_inventory"
    DRAINED_BY_OPERATOR = "drained_by_operator"
    SAME_ADDRESS = "same_address"  # another node of the pool has the same address and port


class ScrapeCause(StrEnum):
    """Why a scrape brought no reading, or a part of one."""

    CONNECTION_REFUSED = "connection_refused"
    TIMEOUT = "timeout"
    UNRESOLVED = "unresolved"  # the node's name has no address
    CERTIFICATE = "certificate"
    NOT_HTTP = "not_http"
    CLOSED = "closed"  # the node closed the connection without an answer
    NETWORK = "network"  # any other fault of a connection
    OWN_LIMIT = "own_limit"  # a limit of this host, not a fault of the node
    HTTP_STATUS = "http_status"
    UNAUTHORIZED = "unauthorized"
    CONTENT_TYPE = "content_type"
    COMPRESSED = "compressed"
    TOO_LARGE = "too_large"
    BROKEN_OFF = "broken_off"
    NOT_METRICS = "not_metrics"
    METRIC_MISSING = "metric_missing"
    METRIC_IMPLAUSIBLE = "metric_implausible"
    NO_STATISTICS = "no_statistics"  # vLLM's page has no metric of vLLM: --disable-log-stats
    UNEXPECTED = "unexpected"


class HeldCause(StrEnum):
    """Why a pool does not get the weights that follow from its readings."""

    NO_NODE_READABLE = "no_node_readable"
    NO_NODE_LEFT = "no_node_left"
    NO_ADDRESS = "no_address"


class DeferredCause(StrEnum):
    """Why a change of weights waits."""

    DEADBAND = "deadband"  # nginx.min_weight_change_ratio
    COOLDOWN = "cooldown"  # nginx.min_reload_interval_seconds
    OLD_WORKERS = "old_workers"  # nginx.max_draining_generations


class FailureCause(StrEnum):
    """Why a command failed."""

    CONFIG_INVALID = "config_invalid"
    CONFIG_UNREADABLE = "config_unreadable"
    SECRET_UNREADABLE = "secret_unreadable"  # noqa: S105 - a key or certificate file, not a secret
    TEMPLATE_FAULTY = "template_faulty"
    USAGE = "usage"
    LOCKED = "locked"
    FILE_UNREADABLE = "file_unreadable"
    FILE_UNWRITABLE = "file_unwritable"
    PLAN_MISSING = "plan_missing"
    PLAN_REFUSED = "plan_refused"
    STATUS_MISSING = "status_missing"
    STATUS_UNREADABLE = "status_unreadable"
    TICK_OVERDUE = "tick_overdue"
    POOL_HELD = "pool_held"
    OTHER_BALANCER = "other_balancer"  # nginx runs another one than config.yml has
    NGINX_SILENT = "nginx_silent"
    TEST_FAILED_BEFORE = "test_failed_before"  # nginx -t, before anything was changed
    TEST_FAILED = "test_failed"
    RELOAD_NOT_TAKEN = "reload_not_taken"
    RETRY_LATER = "retry_later"
    GOING_BACK_FAILED = "going_back_failed"
    NO_BACKUP = "no_backup"
    NODE_UNKNOWN = "node_unknown"
    LAST_NODE = "last_node"
    NOTHING_TO_REPLAY = "nothing_to_replay"
    ROLLED_BACK_BY_OPERATOR = "rolled_back_by_operator"
