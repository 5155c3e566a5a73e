"""Two real engines for all tests, and the figures that the tests measured."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.faults import heard, told
from tests.vllm.engines import MOST_REQUESTS, Engine
from tests.vllm.tiny_model import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["heard", "told"]  # fixtures


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the model, for the logs of all engines."""
    it = tmp_path_factory.mktemp("vllm")
    (it / "model").mkdir()
    write_model(it / "model")
    return it


@pytest.fixture(scope="session")
def started(folder: Path) -> Iterator[list[Engine]]:
    """Start two engines, and end them at the end of the run."""
    options = ("--max-num-queued-reqs", str(MOST_REQUESTS))
    engines = [Engine(name, folder, options) for name in ("node-a", "node-b")]
    with contextlib.ExitStack() as running:
        for engine in engines:
            running.callback(engine.stop)
            engine.start()
        yield engines


@pytest.fixture
def engines(started: list[Engine]) -> list[Engine]:
    """Return the two engines, which serve."""
    for engine in started:
        engine.ensure_ready()
    return started


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests counted."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {name}: {value}")
