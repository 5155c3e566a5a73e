"""Set the weights of HAProxy's servers by the script's decisions, over HAProxy's runtime socket, without a reload.

    python -m benchmarks.haproxy_weights --config config.yml --socket haproxy.sock --interval 10

A tick is the script's `collect`, and one line to HAProxy in place of `apply`. Needs files/ in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lb.collect import collect_command
from vllm_lb.config_file import load_config
from vllm_lb.errors import FailureError
from vllm_lb.state import State

if TYPE_CHECKING:
    from vllm_lb.settings import Config

BACKEND = "be"
ANSWER_SECONDS = 5


class RefusedError(Exception):
    """HAProxy refused the weights; the text is its answer."""


def command(path: Path, line: str) -> str:
    """Give HAProxy's runtime API a line and return its answer, without the empty lines that mean success.

    Raises:
        OSError: HAProxy does not listen at the socket, or does not answer.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(str(path))
        connection.sendall(f"{line}\n".encode())
        with connection.makefile() as answer:
            return answer.read().strip()


def tick(config: Config, config_file: Path, path: Path) -> None:
    """Scrape the nodes, decide, and set the weights; a node that is down has 0.

    Raises:
        FailureError: the state directory cannot be used.
        RefusedError: HAProxy refused a weight.
        OSError: HAProxy cannot be reached.
    """
    state = State(Path(config.state_directory))
    with state.lock():
        collect_command(config, state, config_file)
        plan = state.plan(config)
    nodes = [node for pool in plan.pools for node in pool.nodes]
    refused = command(path, ";".join(f"set server {BACKEND}/{node.name} weight {node.weight}" for node in nodes))
    if refused:
        raise RefusedError(f"HAProxy refused the weights: {' '.join(refused.split())}")


def main() -> int:
    """Run ticks until the process is ended."""
    parser = argparse.ArgumentParser(prog="haproxy_weights", description="Set HAProxy's weights by the script.")
    parser.add_argument("--config", type=Path, required=True, help="the script's configuration")
    parser.add_argument("--socket", type=Path, required=True, help="HAProxy's stats socket, with level admin")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds from tick to tick (10)")
    options = parser.parse_args()
    due = time.monotonic()
    try:
        config = load_config(options.config)
        while True:
            tick(config, options.config, options.socket)
            due += options.interval
            time.sleep(max(0.0, due - time.monotonic()))
    except FailureError as failure:
        print(failure, file=sys.stderr)
        return failure.code
    except RefusedError as refused:
        print(refused, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{options.socket}: {error}: expected the runtime socket of a HAProxy that runs", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
