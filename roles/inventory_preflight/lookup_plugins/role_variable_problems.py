# ruff: noqa: INP001 - Ansible loads lookup plugins from plain folders, not packages
"""The lookup `role_variable_problems`: problems of the variables of one role on one host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

# The checks, and the role's link to the package vllm_lb
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "files"))

from preflight_checks import config, evaluation, names, quick_hostvars, rules, specs, values


class LookupModule(LookupBase):
    """The class that Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any], **_: object) -> list[list[str]]:
        """Return one list with one line per problem, each with the name of the variable first.

        Args:
            terms: the name of the role.
            variables: what Ansible knows, with templates.
        """
        (role,) = terms
        quick = {**variables, "hostvars": quick_hostvars.QuickHostVars(variables["hostvars"])}
        templar = self._templar.copy_with_new_env(available_variables=quick)
        evaluator = evaluation.Evaluator(templar.template, AnsibleError)
        extra, lines = evaluator.values(quick, ["inventory_preflight_extra_host_variables"])
        lines += names.own_problems(role, variables, set(extra.get("inventory_preflight_extra_host_variables", [])))
        options = specs.variables(role)
        secrets = [name for name, option in options.items() if values.is_secret(option)]
        found, unreadable = evaluator.values(quick, options, secrets)
        wrong = values.variable_problems(role, found)
        lines += [*unreadable, *wrong.values()]
        if role == config.ROLE:
            sound = {name: value for name, value in found.items() if name not in wrong}
            lines += [*rules.rule_problems(sound), *config.config_problems(sound)]
        return [lines]
