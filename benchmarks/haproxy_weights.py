"""Let the script weigh the servers of a HAProxy: its decisions, set over HAProxy's runtime socket, without a reload.

    python -m benchmarks.haproxy_weights --config config.yml --socket haproxy.sock --interval 10

What `collect` does each tick, and in place of `apply` one line to HAProxy. Needs files/ in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from pathlib import Path

import vllm_nginx_lb

BACKEND = "be"
ANSWER_SECONDS = 5


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


def tick(config: vllm_nginx_lb.Config, config_file: Path, path: Path) -> None:
    """Scrape the nodes, decide, and set the weights; a node that is down has 0.

    Raises:
        FailureError: the state directory cannot be used, or HAProxy refused a weight.
        OSError: HAProxy cannot be reached.
    """
    state = vllm_nginx_lb.State(Path(config.state_directory))
    with state.lock():
        vllm_nginx_lb.collect_command(config, state, config_file)
        plan = state.plan(config)
    nodes = [node for pool in plan.pools for node in pool.nodes]
    refused = command(path, ";".join(f"set server {BACKEND}/{node.name} weight {node.weight}" for node in nodes))
    if refused:
        raise vllm_nginx_lb.FailureError(f"HAProxy refused the weights: {' '.join(refused.split())}")


def main() -> int:
    """Run ticks until the process is ended."""
    parser = argparse.ArgumentParser(prog="haproxy_weights", description="Set HAProxy's weights by the script.")
    parser.add_argument("--config", type=Path, required=True, help="the script's configuration")
    parser.add_argument("--socket", type=Path, required=True, help="HAProxy's stats socket, with level admin")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds from tick to tick (10)")
    options = parser.parse_args()
    due = time.monotonic()
    try:
        config = vllm_nginx_lb.load_config(options.config)
        while True:
            tick(config, options.config, options.socket)
            due += options.interval
            time.sleep(max(0.0, due - time.monotonic()))
    except vllm_nginx_lb.FailureError as failure:
        print(failure, file=sys.stderr)
        return failure.code
    except OSError as error:
        print(f"{options.socket}: {error}: expected the runtime socket of a HAProxy that runs", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
