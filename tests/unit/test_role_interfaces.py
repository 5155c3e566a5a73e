"""What a role says it takes is what it takes: argument specs, defaults, vars and the reference page agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("inventory_preflight", "keepalived", "nginx_ingress", "vllm_nginx_lb")


def load(role: str, path: str) -> dict[str, Any]:
    file = ROOT / "roles" / role / path
    loaded = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    assert isinstance(loaded, dict)
    return loaded


def options(role: str) -> dict[str, dict[str, Any]]:
    found = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert isinstance(found, dict)
    return found


def every_option(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    nested = [inner for option in found.values() for inner in every_option(option.get("options", {}))]
    return [*found.values(), *nested]


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_those_of_the_argument_spec(role: str) -> None:
    assert load(role, "defaults/main.yml") == {name: option["default"] for name, option in options(role).items()}


@pytest.mark.parametrize("role", ROLES)
def test_every_option_has_a_type_and_a_description(role: str) -> None:
    for option in every_option(options(role)):
        assert option["type"]
        assert option["description"]


@pytest.mark.parametrize("role", ROLES)
def test_names_begin_with_the_role(role: str) -> None:
    assert all(name.startswith(f"{role}_") for name in options(role))
    assert all(name.startswith(f"__{role}_") for name in load(role, "vars/main.yml"))


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    texts = [
        file.read_text(encoding="utf-8")
        for folder in ("tasks", "templates", "vars", "handlers")
        for file in (ROOT / "roles" / role / folder).rglob("*")
        if file.is_file()
    ]
    used = set(re.findall(r"\w+", "\n".join(texts)))
    assert options(role).keys() <= used


@pytest.mark.parametrize("role", ROLES)
def test_no_role_names_a_group(role: str) -> None:
    for folder in ("tasks", "templates", "vars", "handlers", "defaults"):
        for file in (ROOT / "roles" / role / folder).rglob("*"):
            if file.is_file():
                assert not re.search(r"\bgroups\b|\bhostvars\b", file.read_text(encoding="utf-8")), file


def test_choices_of_pools_are_those_of_the_role() -> None:
    known = load("vllm_nginx_lb", "vars/main.yml")
    spec = options("vllm_nginx_lb")
    assert known["__vllm_nginx_lb_methods"] == spec["vllm_nginx_lb_method"]["choices"]
    assert known["__vllm_nginx_lb_policies"] == spec["vllm_nginx_lb_policy"]["choices"]


def test_reference_page_is_up_to_date() -> None:
    program = ROOT / "docs" / "generate_configuration.py"
    result = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_site_is_imports_only() -> None:
    plays = yaml.safe_load((ROOT / "site.yml").read_text(encoding="utf-8"))
    assert all(set(play) == {"name", "ansible.builtin.import_playbook"} for play in plays)
