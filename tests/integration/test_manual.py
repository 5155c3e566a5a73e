"""The manual page vllm-nginx-lb(8) has the commands and options of the script, and no other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lb import __version__
from vllm_lb.cli import make_parser
from vllm_lb.errors import EXIT_FAILED, EXIT_LOCKED, EXIT_USAGE

if TYPE_CHECKING:
    import argparse

PAGE = Path(__file__).resolve().parents[2] / "files" / "vllm-nginx-lb.8"


def mandoc(*arguments: str) -> str:
    command = ["mandoc", *arguments, str(PAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def tags(section: str) -> list[str]:
    """Return what the items of a section's list are called, as they are read."""
    shown = re.sub(".\b", "", mandoc("-T", "ascii", "-O", "width=200"))  # bold is overstruck
    _, _, text = shown.partition(f"\n{section}\n")
    text = re.split(r"\n(?=[A-Z])", text)[0]
    return [line.strip().partition("  ")[0] for line in text.splitlines() if re.match(r" {5}\S", line)]


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action.choices, dict))  # noqa: SLF001


def test_mandoc_has_nothing_against_it() -> None:
    assert mandoc("-T", "lint", "-W", "warning") == ""


def test_every_command_stands_there_as_its_help_has_it() -> None:
    usages = [" ".join(each.format_usage().split()) for each in commands(make_parser()).values()]
    expected = {usage.removeprefix("usage: vllm-nginx-lb ").replace("[-h]", "").replace("  ", " ") for usage in usages}
    assert {tag.replace(", ", ",") for tag in tags("COMMANDS")} == {usage.strip() for usage in expected}


def test_every_option_before_the_command_stands_there() -> None:
    options = [action for action in make_parser()._actions if action.option_strings]  # noqa: SLF001
    expected = {f"{', '.join(each.option_strings)} {each.metavar or ''}".strip() for each in options}
    assert set(tags("OPTIONS")) == expected


def test_its_version_is_that_of_the_script() -> None:
    assert f".Os vllm-nginx-lb {__version__}\n" in PAGE.read_text(encoding="utf-8")


def test_every_exit_code_stands_there() -> None:
    assert tags("EXIT STATUS") == [str(code) for code in (0, EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED)]
