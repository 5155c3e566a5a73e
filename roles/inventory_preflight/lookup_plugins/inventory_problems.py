# ruff: noqa: INP001 - Ansible loads lookup plugins from plain folders, not packages
"""The lookup `inventory_problems`: problems of the inventory as a whole, or of the names of variables alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

# The checks, and the role's link to the package vllm_lb
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "files"))

from preflight_checks import evaluation, names, nodes, quick_hostvars

INGRESS_HOSTS, INGRESS_POOLS, EXTRA = (
    "inventory_preflight_ingress_hosts",
    "inventory_preflight_ingress_pools",
    "inventory_preflight_extra_host_variables",
)


class LookupModule(LookupBase):
    """The class that Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any], **_: object) -> list[list[str]]:
        """Return one list with one line per problem.

        Args:
            terms: `all`, or `names` for the names of variables alone.
            variables: what Ansible knows, with templates.
        """
        hostvars = quick_hostvars.QuickHostVars(variables["hostvars"])
        quick = {**variables, "hostvars": hostvars}
        templar = self._templar.copy_with_new_env(available_variables=quick)
        evaluator = evaluation.Evaluator(templar.template, AnsibleError)
        values, problems = evaluator.values(quick, [INGRESS_HOSTS, INGRESS_POOLS, EXTRA])
        raw = {host: hostvars.raw_get(host) for host in hostvars}
        found, node_lines = evaluator.nodes(quick)
        ingress_hosts = list(values.get(INGRESS_HOSTS, []))
        names_of = {host: list(known) for host, known in raw.items()}
        # What the play itself sets, and group_vars beside the playbook, only the variables of the task have.
        present = variables.get("inventory_hostname", "")
        names_of[present] = list({*names_of.get(present, []), *variables})
        lines = names.name_problems(
            names.hosts_by_variable(names_of),
            {str(node.get("name")) for node in found},
            set(ingress_hosts),
            set(values.get(EXTRA, [])),
        )
        if "names" in terms:
            return [lines]
        lines = [*problems, *node_lines, *lines, *nodes.forgotten_settings(found, raw)]
        pools = values.get(INGRESS_POOLS, {})
        return [[*nodes.preflight_problems(found, ingress_hosts, pools, unreadable=bool(node_lines)), *lines]]
