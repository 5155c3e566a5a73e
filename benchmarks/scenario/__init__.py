"""The scenarios: a fleet, a workload, and events. The benchmarks in real and in virtual time run the same ones."""

from benchmarks.scenario.catalogue import BY_NAME, GROUPS, SCENARIOS
from benchmarks.scenario.engines import ENGINE
from benchmarks.scenario.kinds import KINDS, KNEE
from benchmarks.scenario.situation import INTERVAL_SECONDS, LUA, NO_RELOAD_LIMITS, Event, Scenario

__all__ = [
    "BY_NAME",
    "ENGINE",
    "GROUPS",
    "INTERVAL_SECONDS",
    "KINDS",
    "KNEE",
    "LUA",
    "NO_RELOAD_LIMITS",
    "SCENARIOS",
    "Event",
    "Scenario",
]
