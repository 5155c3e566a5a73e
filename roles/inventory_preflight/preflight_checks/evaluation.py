"""Values of variables without templates, and a line for each that has none, such as an undefined vault variable."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

NODES = "inventory_preflight_nodes"
NODE = "vllm_node"  # the example inventory makes the nodes of this variable of each host


class Evaluator:
    """Evaluates variables of one host."""

    def __init__(self, template: Callable[[Any], Any], error: type[Exception]) -> None:
        """Take the function that evaluates a value, and what it raises."""
        self.template, self.error = template, error

    def values(
        self, variables: Mapping[str, Any], names: Iterable[str], secrets: Collection[str] = ()
    ) -> tuple[dict[str, Any], list[str]]:
        """Return those of some variables that are set, by name, and a line for each that cannot be evaluated.

        Args:
            variables: with templates.
            names: of the variables that are wanted.
            secrets: the names of those of which no message may show anything.
        """
        found: dict[str, Any] = {}
        lines = []
        for name in names:
            if name in variables:
                try:
                    found[name] = decrypted(self.template(variables[name]))
                except self.error as error:
                    lines.append(f"{name}{fault(error, is_secret=name in secrets)}")
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


def decrypted(value: Any) -> Any:
    """Return a value with its parts that Ansible Vault has encrypted as texts; before 2.19 they are no texts of Python.

    Raises:
        Exception: Ansible's, if a part cannot be decrypted.
    """
    if isinstance(value, dict):
        return {key: decrypted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [decrypted(each) for each in value]
    return str(value) if type(value).__name__ == "AnsibleVaultEncryptedUnicode" else value


def fault(error: Exception, *, is_secret: bool = False) -> str:
    """Return what is wrong with a variable that cannot be evaluated. Ansible's own words may have the value."""
    said = " ".join(str(error).split())
    undefined = re.search(r"'([^' ]+)' is undefined", said)
    if undefined:
        return (
            f" needs {undefined[1]}, which is not defined; define it (a vault variable: in a file of group_vars, with "
            "--ask-vault-pass or --vault-password-file), or correct its name"
        )
    if "vault" in said.lower():
        return " cannot be decrypted; give the password with --ask-vault-pass or --vault-password-file"
    if is_secret:
        return " (not shown) cannot be evaluated; a value that has {{ or {% is a template: write !unsafe before it"
    return f" cannot be evaluated: {said[:160]}; correct it"
