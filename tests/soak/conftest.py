"""The seed of a soak, chosen once for all processes of a run, and what the tests counted."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.faults import heard, told

__all__ = ["heard", "told"]  # fixtures
SEED_VARIABLE = "SOAK_SEED"


def pytest_configure() -> None:
    """Choose a seed unless one is given; processes that pytest starts inherit it."""
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(2**32)))


def pytest_report_header() -> str:
    """Show the seed before anything runs."""
    return f"{SEED_VARIABLE}={os.environ[SEED_VARIABLE]} (set it to repeat the same faults)"


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed of this run."""
    return int(os.environ[SEED_VARIABLE])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests counted."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                terminalreporter.write_line(f"{name}: {value}")
