# ruff: noqa: INP001 - Ansible loads lookup plugins from plain folders, not packages
"""The lookup `quick_variable`: the value of a variable that comes from the variables of many hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

# The checks, and the role's link to the package vllm_lb
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "files"))

from preflight_checks import quick_hostvars


class LookupModule(LookupBase):
    """The class that Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any], **_: object) -> list[Any]:
        """Return the values of the variables that terms name; see quick_hostvars.py for why they are quick."""
        quick = {**variables, "hostvars": quick_hostvars.QuickHostVars(variables["hostvars"])}
        templar = self._templar.copy_with_new_env(available_variables=quick)
        return [templar.template(variables[name]) for name in terms]
