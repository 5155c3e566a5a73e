"""Ansible's hostvars, with the nodes evaluated in a hundredth of the time.

Ansible compiles each template of each host anew. The eight of vllm_node take 6 s for 1,000 nodes, and most of them only
name another variable of the host, which needs no compiler.
"""

from __future__ import annotations

import re
from typing import Any

from ansible.vars.hostvars import HostVars

NODE = "vllm_node"  # the example inventory describes a node in this variable of its host
# A template that names one variable of the host
NAMES_ONE = re.compile(r"\s*{{\s*(?P<name>\w+)\s*(?P<or_empty>\|\s*default\(''\)\s*)?}}\s*")


class QuickHostVars(HostVars):
    """The variables of all hosts. Each host is read once."""

    def __init__(self, hostvars: HostVars) -> None:
        """Read what another object of this kind reads."""
        self.__dict__.update(hostvars.__dict__)
        self.hosts: dict[str, Any] = {}

    def raw_get(self, host_name: str) -> Any:
        """Return the variables of a host with their templates, but those of the node that can be evaluated at once."""
        if host_name not in self.hosts:
            known = super().raw_get(host_name)
            if isinstance(known, dict) and isinstance(known.get(NODE), dict):
                known = {**known, NODE: {key: at_once(value, known) for key, value in known[NODE].items()}}
            self.hosts[host_name] = known
        return self.hosts[host_name]


def at_once(value: Any, known: dict[str, Any]) -> Any:
    """Return the value of a template that only names a variable without a template, or else the template."""
    found = NAMES_ONE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return value
    if found["name"] not in known:
        return "" if found["or_empty"] else value
    named = known[found["name"]]
    # Only these types are as they are read: what Ansible decrypts or must not evaluate has a type of its own.
    simple = isinstance(named, bool | int | float) or (isinstance(named, str) and "{" not in named and bool(named))
    return named if simple and "Vault" not in type(named).__name__ else value
