"""Command line of the simulated node: `python3 -m simulator --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from simulator.control import is_speed
from simulator.engine_config import EngineConfig
from simulator.fault_settings import Fault, SettingError, parse_option
from simulator.node import Node
from simulator.server import Server, ServerConfig

_ENGINE = EngineConfig()
_MAX_PORT = 65535


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 0 to {_MAX_PORT}, 0 for any free port")
    return port


def _positive(text: str) -> float:
    number = float(text)
    if not is_speed(number):
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and up to 1000")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def _fault(text: str) -> tuple[str, Fault]:
    try:
        return parse_option(text)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    return float(text) / 1000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with 2 on a wrong option."""
    parser = argparse.ArgumentParser(prog="simulator", description="A simulated vLLM node.")
    add = parser.add_argument_group("address and names").add_argument
    add("--name", default="sim", help="name of the node, the system_fingerprint of its answers (sim)")
    add("--model", default="sim", help="name of the served model (sim)")
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=_port, default=18090, help="port, 0 for any free one (18090)")
    add("--control-port", type=_port, help="second port, for the control endpoint alone")
    add(
        "--keep-alive",
        dest="keep_alive_seconds",
        type=_positive,
        default=5.0,
        help="seconds after which idle connections close (5)",
    )
    add("--api-servers", type=_count, default=1, help="API servers that share port and /metrics (1)")
    add(
        "--shutdown-timeout",
        type=float,
        default=0.0,
        help="seconds that SIGTERM lets requests go on while new ones get 500 (0)",
    )
    add(
        "--fault",
        dest="faults",
        type=_fault,
        action="append",
        default=[],
        metavar="NAME[=NUMBER]",
        help="a fault of /control that is on from the start; repeatable",
    )
    add("--api-key", help="bearer token that /v1 requires")
    add("--guard-metrics", action="store_true", help="/metrics requires it too")
    add("--old-metric-names", action="store_true", help="give the cache gauge its name before vLLM 0.9")
    add("--stream-interval", type=_count, default=1, help="tokens in one piece of a stream, after the first (1)")

    add = parser.add_argument_group("engines").add_argument
    add("--engines", type=_count, default=1, help="engines behind this address (1)")
    add("--speed", type=_positive, default=1.0, help="factor on the engines' pace (1.0)")
    add("--prefix-caching", action="store_true", help="share the blocks of prompts that begin alike")
    add("--reserve-whole-prompt", action="store_true", help="begin a request when its whole prompt has room")
    for option, text in {
        "max_num_batched_tokens": "tokens per step",
        "max_num_seqs": "requests running at once",
        "num_blocks": "KV cache of each engine in blocks",
        "block_size": "tokens per block",
        "max_model_len": "tokens of one request, prompt and output",
    }.items():
        default = getattr(_ENGINE, option)
        add(f"--{option.replace('_', '-')}", type=int, default=default, help=f"{text} ({default})")
    for flag, option, text in (
        ("--step-ms", "step_seconds", "cost of any step"),
        ("--prefill-token-ms", "prefill_token_seconds", "added cost per prompt token"),
        ("--decode-sequence-ms", "decode_sequence_seconds", "added cost per continuing sequence"),
    ):
        default = getattr(_ENGINE, option)
        help_text = f"{text} in milliseconds ({default * 1000:g})"
        add(flag, dest=option, type=_seconds, default=default, metavar="MS", help=help_text)

    options = parser.parse_args(arguments)
    if options.guard_metrics and not options.api_key:
        parser.error("--guard-metrics needs --api-key")
    options.faults = dict(options.faults)
    if "refuse" in options.faults and options.control_port is None:
        parser.error("--fault refuse needs --control-port")
    try:
        options.engine_config = EngineConfig(**{name: getattr(options, name) for name in EngineConfig.__slots__})
    except ValueError as error:
        parser.error(str(error))
    return options


async def serve(options: argparse.Namespace) -> None:
    """Run a node until SIGTERM or SIGINT, or until one of its tasks fails.

    Raises:
        OSError: an address cannot be used.
    """
    node = Node(options.name, options.model, options.engine_config, engines=options.engines, speed=options.speed)
    server_options = {name: getattr(options, name) for name in ServerConfig.__slots__}
    server = Server(ServerConfig(**server_options), node)
    await server.start()
    print(f"listening on {options.host}:{server.listener.port}", flush=True)  # noqa: T201 - the caller reads the port
    if server.control_listener:
        print(f"control on {options.host}:{server.control_listener.port}", flush=True)  # noqa: T201 - the caller reads the port
    work = asyncio.create_task(server.run())
    end = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, end.set)
    ending = asyncio.create_task(end.wait())
    try:
        await asyncio.wait({work, ending}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        await server.drain()
    finally:
        work.cancel()
        server.stop()


def main() -> int:
    """Run the command line."""
    options = parse_arguments()
    try:
        asyncio.run(serve(options))
    except OSError as error:
        print(f"simulator: cannot listen: {error}", file=sys.stderr)  # noqa: T201 - a message for the user
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
