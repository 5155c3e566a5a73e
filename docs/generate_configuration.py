#!/usr/bin/env python3
"""Write docs/configuration.md, the list of all variables, from the roles' argument specs and limits.

python3 docs/generate_configuration.py           writes the page
python3 docs/generate_configuration.py --check   exits 1 when the page is out of date, and changes nothing
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
ROLES = ("nginx_ingress", "vllm_nginx_lb", "keepalived", "inventory_preflight")

INTRODUCTION = """\
<!-- Made by docs/generate_configuration.py from roles/*/meta/argument_specs.yml. Do not edit it. -->

# Configuration

## A vLLM node

Set these variables on a host of the group `vllm` in the inventory, or for all of its hosts in `group_vars/vllm`.

| Variable | Type | Default | Meaning |
| --- | --- | --- | --- |
| `ansible_host` | text | required | IP address or host name of the node, as nginx reaches it |
| `vllm_port` | 1 to 65535 | `18090` | TCP port of vLLM's HTTP server |
| `vllm_scheme` | `http`, `https` | `http` | protocol for requests and scrapes; the same for all nodes of a pool |
| `vllm_capacity` | 0.01 to 100 | `1.0` | speed relative to the other nodes |
| `vllm_max_conns` | 0 to 65535 | `0` | most requests that each ingress sends to the node at one time; 0 is no limit |
| `vllm_pool` | text | `llm_cluster` | pool of the node |
| `vllm_drain` | bool | `false` | keeps the node out of rotation while it is `true` |

Set the variables below in `group_vars/ingress`, or on one host of the group `ingress`.
"""


def markdown(text: str) -> str:
    """Turn Ansible's markup into Markdown that fits into a cell of a table."""
    text = re.sub(r"C\(((?:[^()]|\([^()]*\))*)\)", r"`\1`", text)
    return text.replace("|", "\\|")


def sentences(description: str | Sequence[str]) -> str:
    """Return a description, which is a text or a list of them, as one line."""
    return markdown(description if isinstance(description, str) else " ".join(description))


def shown_type(option: dict[str, Any], limit: dict[str, Any] | None = None) -> str:
    """Return the type of an option with its range, or its choices if it has any."""
    if "choices" in option:
        return ", ".join(f"`{choice}`" for choice in option["choices"])
    kind = str(option.get("type", "str"))
    if limit and "most" in limit:
        return f"{kind}, {limit['least']} to {limit['most']}"
    return f"{kind} of {option['elements']}" if "elements" in option else kind


def shown_default(option: dict[str, Any]) -> str:
    """Return the default of an option as it would be written in YAML."""
    if option.get("required"):
        return "required"
    if "default" not in option:
        return "none"
    default = option["default"]
    return f"`{default}`" if isinstance(default, str) and default else f"`{json.dumps(default)}`"


def rows(options: dict[str, dict[str, Any]], limits: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield one row per option; the keys of a dict or of a list's dicts follow it."""
    for name, option in options.items():
        meaning = sentences(option["description"])
        kind = shown_type(option, limits.get(prefix + name))
        default = shown_default(option).replace("|", r"\|")  # a | alone would end the cell
        yield f"| `{prefix}{name}` | {kind} | {default} | {meaning} |"
        yield from rows(option.get("options", {}), limits, f"{prefix}{name}{'[]' if 'elements' in option else ''}.")


def page(root: Path = ROOT) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for role in ROLES:
        spec = yaml.safe_load((root / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        main = spec["argument_specs"]["variables"]
        limits_file = root / "roles" / role / "meta" / "limits.yml"
        limits = yaml.safe_load(limits_file.read_text(encoding="utf-8")) if limits_file.exists() else {}
        table = ["| Variable | Type | Default | Meaning |", "| --- | --- | --- | --- |", *rows(main["options"], limits)]
        parts.append(f"## {role}\n\n{sentences(main['description'])}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or with --check compare it; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md from the roles' argument specs.")
    parser.add_argument("--check", action="store_true", help="exit 1 when the page is out of date, change nothing")
    options = parser.parse_args(arguments)
    wanted = page()
    if not options.check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    sys.stderr.write(f"{PAGE.relative_to(ROOT)} is out of date: run python3 docs/generate_configuration.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
