# SPDX-License-Identifier: Apache-2.0
"""The command line: commands, options, and their help."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from vllm_lb import __version__
from vllm_lb.plan import STATES
from vllm_lb.settings import CONFIG_FILE, POLICIES

STATES_SHOWN = (*STATES, "ejected", "gone")  # those of view/fleet.py
SINCE = "since when: 30m, 6h, 2d, or a time such as 2026-11-26T10:00 (%(default)s)"
EXAMPLE = "a setting of config.yml, such as policies.stepped.max_running=16; may come several times"


def whole_number(text: str) -> int:
    """Return a number of at least 1 from a command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def make_parser(description: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="vllm-nginx-lb", description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--config", type=Path, default=Path(CONFIG_FILE), metavar="PATH")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="one tick: collect, decide, apply")
    run.add_argument("--dry-run", action="store_true", help="print the decision and the diff, change nothing")
    commands.add_parser("collect", help="scrape the nodes and write the plan (unprivileged)")
    commands.add_parser("apply", help="validate the plan and make it live (root)")
    status = commands.add_parser("status", help="show the last decision; exit code 1 when it is too old")
    status.add_argument("nodes", nargs="*", metavar="NODE", help="only these: names, or patterns such as 'gpu-1*'")
    status.add_argument("--pool", action="append", default=[], metavar="POOL", help="only nodes of this pool")
    status.add_argument("--state", action="append", default=[], choices=STATES_SHOWN, help="only nodes in this state")
    limits = status.add_mutually_exclusive_group()
    limits.add_argument("--limit", type=whole_number, metavar="NUMBER", help="at most this many nodes, the worst first")
    limits.add_argument("--all", action="store_true", help="all nodes, however many")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--watch", action="store_true", help="repeat until interrupted")
    explain = commands.add_parser("explain", help="show what changed a node's weight, and when")
    explain.add_argument("node", metavar="NODE")
    explain.add_argument("--since", default="1h", metavar="WHEN", help=SINCE)
    replay = commands.add_parser("replay", help="show what other settings would have made of recorded ticks")
    replay.add_argument("files", nargs="*", type=Path, metavar="FILE", help="history files (all of this host's)")
    replay.add_argument("--policy", choices=sorted(POLICIES), help="the policy of all pools")
    replay.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=EXAMPLE)
    commands.add_parser("check-config", help="validate and print the effective configuration")
    for name, words in (("drain", "take a node out of rotation"), ("undrain", "put it back")):
        drain = commands.add_parser(name, help=words)
        drain.add_argument("node", nargs="+", metavar="NODE")
        drain.add_argument("--reason", metavar="TEXT", help="why, for status, explain and other people")
        drain.add_argument("--by", metavar="TEXT", help="who, instead of the user who runs this")
        drain.add_argument("--at", metavar="TIME", help="since when (RFC 3339), instead of now")
        drain.add_argument("--json", action="store_true", help="say as JSON which nodes changed")
    drains = commands.add_parser("drains", help="show which nodes are drained, since when, by whom and why")
    drains.add_argument(
        "--merge", action="store_true", help="first take newer entries of other hosts from standard input"
    )
    drains.add_argument("--json", action="store_true", help="as JSON, which --merge on other hosts takes")
    rollback = commands.add_parser("rollback", help="make the previous upstream file live again")
    rollback.add_argument("--json", action="store_true", help="say as JSON which generation is live")
    return parser
