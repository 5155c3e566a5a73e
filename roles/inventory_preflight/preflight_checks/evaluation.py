"""Values of variables without templates, and a line for each that has none, such as an undefined vault variable."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

NODES = "inventory_preflight_nodes"
NODE = "vllm_node"  # the example inventory makes the nodes of this variable of each host


class Evaluator:
    """Evaluates variables of one host."""

    def __init__(self, template: Callable[[Any], Any], error: type[Exception]) -> None:
        """Take the function that evaluates a value, and what it raises."""
        self.template, self.error = template, error

    def values(self, variables: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
        """Return those of some variables that are set, by name, and a line for each that cannot be evaluated."""
        found: dict[str, Any] = {}
        lines = []
        for name in names:
            if name in variables:
                try:
                    found[name] = self.template(variables[name])
                except self.error as error:
                    lines.append(f"{name}{fault(error)}")
        return found, lines

    def nodes(self, variables: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the nodes of inventory_preflight_nodes, and lines if they cannot be evaluated.

        Then the list has the nodes that can be evaluated, because the checks report their faults too.
        """
        found, lines = self.values(variables, [NODES])
        if not lines:
            return list(found.get(NODES, [])), []
        readable = []
        told = []
        hostvars = variables["hostvars"]
        for host in hostvars:
            if NODE in hostvars.raw_get(host):
                try:
                    readable.append(self.template(hostvars[host][NODE]))
                except self.error as error:
                    told.append(f"{host}: {NODE}{fault(error)}")
        return readable, told or lines


def fault(error: Exception) -> str:
    """Return what is wrong with a variable that cannot be evaluated. The text has no value, which may be a secret."""
    said = " ".join(str(error).split())
    undefined = re.search(r"'([^' ]+)' is undefined", said)
    if undefined:
        return (
            f" needs {undefined[1]}, which is not defined; define it (a vault variable: in a file of group_vars, with "
            "--ask-vault-pass or --vault-password-file), or correct its name"
        )
    if "vault" in said.lower():
        return " cannot be decrypted; give the password with --ask-vault-pass or --vault-password-file"
    return f" cannot be evaluated: {said[:160]}; correct it"
