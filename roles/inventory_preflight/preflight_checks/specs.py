"""What the roles declare of their variables: meta/argument_specs.yml, and meta/limits.yml with ranges and forms."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROLES_DIRECTORY = Path(__file__).resolve().parents[2]
ROLES = ("debian_host", "inventory_preflight", "keepalived", "nginx_ingress", "vllm_nginx_lb")
# The entry point that has all variables of a role. No tasks have its name, so Ansible itself does not validate it.
# Ansible's validation would print the whole of it, hundreds of lines, and stop at the first fault.
VARIABLES = "variables"


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def read(role: str, name: str) -> Any:
    """Return what a YAML file in the meta directory of a role has, or an empty dict."""
    file = ROLES_DIRECTORY / role / "meta" / name
    return yaml.load(file.read_bytes(), Loader=LOADER) if file.exists() else {}  # noqa: S506 - both are safe


@cache
def entry_points(role: str) -> dict[str, Any]:
    """Return the entry points of a role."""
    return dict(read(role, "argument_specs.yml")["argument_specs"])


def every_option(role: str) -> dict[str, Any]:
    """Return the options of all entry points of a role, by name."""
    return {name: option for spec in entry_points(role).values() for name, option in spec.get("options", {}).items()}


def variables(role: str) -> dict[str, Any]:
    """Return the variables that a role is configured with, by name."""
    return dict(entry_points(role).get(VARIABLES, {}).get("options", {}))


@cache
def limits(role: str) -> dict[str, Any]:
    """Return the range or the form of each variable of a role that has one; see values.py."""
    return dict(read(role, "limits.yml"))
