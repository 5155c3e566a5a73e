"""The faults that there are, and the settings that switch them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS, API, BOTH = "metrics", "api", "both"


class SettingError(ValueError):
    """A setting of the control endpoint that is not allowed; the message says which, and what is."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The settings of a fault: its scopes, the first one the default, and an optional number."""

    scopes: tuple[str, ...]
    parameter: str = ""
    default: int = 0
    allowed: range = range(0)


_ANY_SCOPE = (BOTH, METRICS, API)
KINDS: Final[Mapping[str, Kind]] = {
    "hang": Kind(_ANY_SCOPE),
    "slow_drip": Kind(_ANY_SCOPE, "bytes_per_second", 200, range(1, 10**9)),
    "status": Kind(_ANY_SCOPE, "code", 500, range(200, 600)),
    "wrong_content": Kind(_ANY_SCOPE),
    "close": Kind(_ANY_SCOPE),
    "refuse": Kind((BOTH,)),
    "nan": Kind((METRICS,)),
    "frozen": Kind((METRICS,)),
    "counter_reset": Kind((METRICS,)),
    "unset_gauges": Kind((METRICS,)),
    "no_stats": Kind((METRICS,)),
    "openmetrics": Kind((METRICS,)),
    "admission_limit": Kind((API,), "requests", 8, range(10**6)),
    "draining": Kind((API,)),
    "engine_hang": Kind((API,)),
    "engine_dead": Kind((API,)),
    "abort_all": Kind((API,)),
    "sse_keep_alive": Kind((API,), "milliseconds", 1000, range(1, 10**6)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that is on: its scope, and its number if it has one."""

    scope: str
    number: int = 0


def parse_fault(name: str, settings: object) -> Fault:
    """Check a fault's settings, `{}` for the defaults.

    Raises:
        SettingError: unknown fault, setting or scope, or a number out of range; the message names what is allowed.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise SettingError(f"faults.{name}: unknown; allowed: {', '.join(KINDS)}")
    if not isinstance(settings, dict):
        raise SettingError(f"faults.{name}: must be an object, or null to end it")
    unknown = settings.keys() - {"scope", kind.parameter}
    if unknown:
        raise SettingError(f"faults.{name}.{min(unknown)}: unknown setting")
    scope = settings.get("scope", kind.scopes[0])
    if scope not in kind.scopes:
        raise SettingError(f"faults.{name}.scope: {scope!r}: allowed: {', '.join(kind.scopes)}")
    number = settings.get(kind.parameter, kind.default)
    if kind.parameter and (type(number) is not int or number not in kind.allowed):
        allowed = f"{kind.allowed.start} to {kind.allowed.stop - 1}"
        raise SettingError(f"faults.{name}.{kind.parameter}: {number!r}: allowed: {allowed}")
    return Fault(scope, number)


def parse_option(text: str) -> tuple[str, Fault]:
    """Check a fault of the command line: NAME, or NAME=NUMBER.

    Raises:
        SettingError: see parse_fault.
    """
    name, equals, number = text.partition("=")
    kind = KINDS.get(name)
    if not equals or kind is None:
        return name, parse_fault(name, {})
    if not kind.parameter:
        raise SettingError(f"faults.{name}: takes no number")
    return name, parse_fault(name, {kind.parameter: int(number) if number.isdecimal() else number})


def fault_as_json(name: str, fault: Fault) -> dict[str, object]:
    """Return the settings that would switch the fault on."""
    parameter = KINDS[name].parameter
    return {"scope": fault.scope} | ({parameter: fault.number} if parameter else {})
