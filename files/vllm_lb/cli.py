# SPDX-License-Identifier: Apache-2.0
"""The command line. Each command imports its own modules: what runs as root loads nothing that it does not need."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lb import __version__
from vllm_lb.errors import EXIT_FAILED, FailureError
from vllm_lb.journal import ERROR, log

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130  # as shells have it
LOCK_WAIT_SECONDS = 15
SINCE = "since when: 30m, 6h, 2d, or a time such as 2026-11-26T10:00 (%(default)s)"
EXAMPLE = "a setting of config.yml, such as policies.stepped.max_running=16; may come several times"


def make_parser(description: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from vllm_lb.settings import POLICIES

    parser = argparse.ArgumentParser(prog="vllm-nginx-lb", description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--config", type=Path, default=Path("/etc/vllm-nginx-lb/config.yml"), metavar="PATH")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="one tick: collect, decide, apply")
    run.add_argument("--dry-run", action="store_true", help="print the decision and the diff, change nothing")
    commands.add_parser("collect", help="scrape the nodes and write the plan (unprivileged)")
    commands.add_parser("apply", help="validate the plan and make it live (root)")
    status = commands.add_parser("status", help="show the last decision; exit code 1 when it is too old")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--watch", action="store_true", help="go on, until interrupted")
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
        drain.add_argument("node", metavar="NODE")
        drain.add_argument("--json", action="store_true", help="say as JSON whether that was a change")
    rollback = commands.add_parser("rollback", help="make the previous upstream file live again")
    rollback.add_argument("--json", action="store_true", help="say as JSON which generation is live")
    return parser


def execute(options: argparse.Namespace) -> None:
    """Run one command."""
    from vllm_lb.config_file import load_config
    from vllm_lb.state import State

    config = load_config(options.config)
    state = State(Path(config.state_directory))
    match options.command:
        case "collect":
            from vllm_lb.collect import collect_command

            with state.lock():
                collect_command(config, state, options.config)
        case "apply":
            from vllm_lb.apply import apply_command

            apply_command(config, state)
        case "run" if options.dry_run:
            from vllm_lb.check_config import dry_run

            dry_run(config, state)
        case "run":
            from vllm_lb.apply import apply_command
            from vllm_lb.collect import collect_command

            with state.lock():
                collect_command(config, state, options.config)
                apply_command(config, state)
        case "status":
            from vllm_lb.view.status import status_command

            status_command(state, as_json=options.json, watch=options.watch)
        case "explain":
            from vllm_lb.view.explain import explain_command

            explain_command(config, state, options.node, options.since)
        case "replay":
            from vllm_lb.view.replay import replay_command

            replay_command(options.config, state, options.files, policy=options.policy, changes=options.set)
        case "check-config":
            from vllm_lb.check_config import check_config_command

            check_config_command(config)
        case "rollback":
            from vllm_lb.rollback import rollback_command

            rollback_command(config, state, as_json=options.json)
        case command:
            from vllm_lb.drain import drain_command

            with state.lock(LOCK_WAIT_SECONDS):
                drain_command(config, state, options.node, drain=command == "drain", as_json=options.json)


def main(arguments: Sequence[str] | None = None, description: str = "") -> int:
    """Run the program; return its exit code."""
    options = make_parser(description).parse_args(arguments)  # which exits with code 2 on a usage error
    try:
        execute(options)
        sys.stdout.flush()
    except FailureError as failure:
        log(ERROR, str(failure), cause=failure.cause)
        return failure.code
    except BrokenPipeError:  # the reader of our output has gone
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:  # a full disk behind our output, say
        log(ERROR, f"{error.filename or 'output'}: {error.strerror}")
        return EXIT_FAILED
    return 0
