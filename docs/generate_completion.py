#!/usr/bin/env python3
"""Write files/completion/, the completion for bash and zsh, from the script's parser of its command line.

python3 docs/generate_completion.py           writes the files
python3 docs/generate_completion.py --check   exits 1 when a file is out of date, and changes nothing
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shtab

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "files" / "completion"
FILES = {"bash": FOLDER / "vllm-nginx-lb.bash", "zsh": FOLDER / "_vllm-nginx-lb"}
MADE = "# Made by docs/generate_completion.py from the script's command line. Do not edit it.\n"

# A shell function that prints the names of the nodes. It reads them from status.json, where a node's name stands before
# its address. It prints only valid names: an unprivileged user can write the file, and root's shell expands them.
NAMES = """\
_vllm_nginx_lb_names() {
  local file=/var/lib/vllm-nginx-lb/status.json
  [ -f $file ] && head -c 16000000 $file | tr -d ' \\n' |
    command grep -o '"name":"[A-Za-z0-9._][A-Za-z0-9._-]*","address"' | cut -d '"' -f 4
}
"""
NODES = {
    "bash": "_vllm_nginx_lb_nodes",
    "zsh": "_vllm_nginx_lb_nodes",
    "preamble": {
        "bash": f'{NAMES}_vllm_nginx_lb_nodes() {{\n  compgen -W "$(_vllm_nginx_lb_names)" -- "$1"\n}}',
        "zsh": f"{NAMES}_vllm_nginx_lb_nodes() {{\n  compadd -- $(_vllm_nginx_lb_names)\n}}",
    },
}
# The completion of an argument, by the argument's name in --help.
COMPLETED = {"NODE": NODES, "FILE": shtab.FILE, "PATH": shtab.FILE}


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every option and argument of a parser and of its commands."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
        yield action
        for command in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from actions(command)


def completion(shell: str) -> str:
    """Return the file for a shell, "bash" or "zsh"."""
    sys.path.insert(0, str(ROOT / "files"))
    from vllm_lb.cli import make_parser  # noqa: PLC0415 - importable only now

    parser = make_parser()
    for action in actions(parser):
        if action.metavar in COMPLETED:
            vars(action)["complete"] = COMPLETED[action.metavar]
    # zsh needs the line with the command's name first. shtab's "(*)" would complete only one of several arguments.
    first, _, rest = shtab.complete(parser, shell).replace('"(*)::', '"*:').partition("\n")
    return f"{first}\n{MADE}{rest.rstrip()}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when a file is out of date, change nothing")
    options = parser.parse_args(arguments)
    code = 0
    for shell, file in FILES.items():
        wanted = completion(shell)
        if not options.check:
            file.parent.mkdir(exist_ok=True)
            file.write_text(wanted, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != wanted:
            sys.stderr.write(f"{file.relative_to(ROOT)} is out of date: run python3 docs/generate_completion.py\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
