# SPDX-License-Identifier: Apache-2.0
"""Running a command. Each command imports its own modules, so that root loads nothing that it does not need."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm_lb.errors import EXIT_FAILED, FailureError
from vllm_lb.journal import ERROR, log
from vllm_lb.settings import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130  # the exit code of shells after Ctrl-C


def options_of(arguments: Sequence[str], description: str) -> Any:
    """Return the options of a command line. A usage error ends the program with code 2.

    systemd runs the two halves of a tick every few seconds. Loading argparse would take a tenth of their time.
    """
    match list(arguments):
        case ["collect" | "apply" as command]:
            return SimpleNamespace(command=command, config=Path(CONFIG_FILE))
        case ["--config", config, "collect" | "apply" as command]:
            return SimpleNamespace(command=command, config=Path(config))
    from vllm_lb.cli import make_parser

    return make_parser(description).parse_args(arguments)


def execute(options: Any) -> None:
    """Run one command."""
    from vllm_lb.config_file import load_config
    from vllm_lb.state import State
    from vllm_lb.under_way import tidy_up, under_way

    config = load_config(options.config)
    state = State(Path(config.state_directory))
    match options.command:
        case "collect":
            from vllm_lb.collect import collect_command

            with state.lock():
                tidy_up(state.directory, config.interval_seconds)
                with under_way(state.directory, "collect"):
                    collect_command(config, state, options.config)
        case "apply":
            from vllm_lb.apply import apply_command

            with under_way(state.directory, "apply"):
                apply_command(config, state)
        case "run" if options.dry_run:
            from vllm_lb.check_config import dry_run

            dry_run(config, state)
        case "run":
            from vllm_lb.apply import apply_command
            from vllm_lb.collect import collect_command

            with state.lock():
                tidy_up(state.directory, config.interval_seconds)
                with under_way(state.directory, "collect"):
                    collect_command(config, state, options.config)
                with under_way(state.directory, "apply"):
                    apply_command(config, state)
        case "status":
            from vllm_lb.view.fleet import Filter
            from vllm_lb.view.status import Wanted, status_command

            shown = Filter(pools=options.pool, states=options.state, names=options.nodes)
            wanted = Wanted(filter=shown, limit=options.limit, all=options.all)
            status_command(config, state, wanted, as_json=options.json, watch=options.watch)
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
        case _:
            from vllm_lb.drain import drain_commands

            drain_commands(config, state, options)


def main(arguments: Sequence[str] | None = None, description: str = "") -> int:
    """Run the program; return its exit code."""
    options = options_of(sys.argv[1:] if arguments is None else arguments, description)
    try:
        execute(options)
        sys.stdout.flush()
    except FailureError as failure:
        # Without fields: the journal finds the unit of a message with fields by its process, which ends now.
        # status.json has the code.
        log(ERROR, str(failure))
        return failure.code
    except BrokenPipeError:  # the program that reads our output has ended
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:  # for instance a full disk that has our output
        log(ERROR, f"{error.filename or 'output'}: {error.strerror}")
        return EXIT_FAILED
    return 0
