"""The interfaces of the roles: argument specs, defaults, vars and the reference page agree."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from roles.inventory_preflight.preflight_checks import config
from roles.inventory_preflight.preflight_checks.values import variable_problems
from vllm_lb import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("inventory_preflight", "keepalived", "nginx_ingress", "vllm_nginx_lb")
# Variables of other roles that a role reads, too.
SHARED = {"vllm_nginx_lb": ("nginx_ingress_balancer",)}


def load(role: str, path: str) -> dict[str, Any]:
    file = ROOT / "roles" / role / path
    loaded = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    assert isinstance(loaded, dict)
    return loaded


def entry_points(role: str) -> dict[str, dict[str, Any]]:
    return dict(load(role, "meta/argument_specs.yml")["argument_specs"])


def options(role: str) -> dict[str, dict[str, Any]]:
    """Return the role's own variables."""
    found = entry_points(role)["variables"]["options"]
    assert isinstance(found, dict)
    return {name: option for name, option in found.items() if name not in SHARED.get(role, ())}


def every_option(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    nested = [inner for option in found.values() for inner in every_option(option.get("options", {}))]
    return [*found.values(), *nested]


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_those_of_the_argument_spec(role: str) -> None:
    assert load(role, "defaults/main.yml") == {name: option["default"] for name, option in options(role).items()}


@pytest.mark.parametrize("role", [*ROLES, "debian_host"])
def test_every_option_has_a_type_and_a_description(role: str) -> None:
    for entry_point in entry_points(role).values():
        for option in every_option(entry_point.get("options", {})):
            assert option["type"]
            assert option["description"]


@pytest.mark.parametrize("role", [*ROLES, "debian_host"])
def test_every_entry_point_is_a_file_of_tasks(role: str) -> None:
    files = {file.stem for file in (ROOT / "roles" / role / "tasks").glob("*.yml")}
    assert entry_points(role).keys() - {"variables"} <= files
    if role == "debian_host":  # it has no variables of its own
        assert entry_points(role).keys() == files


def imported(tasks: object) -> Iterator[tuple[str, str]]:
    """Yield the role and the entry point of each import_role and include_role in tasks, plays and blocks."""
    if isinstance(tasks, list):
        for task in tasks:
            yield from imported(task)
    elif isinstance(tasks, dict):
        for key, value in tasks.items():
            if key in ("ansible.builtin.import_role", "ansible.builtin.include_role"):
                yield value["name"], value.get("tasks_from", "main")
            elif isinstance(value, list):
                yield from imported(value)


def test_every_entry_point_that_is_given_something_has_an_argument_spec() -> None:
    """Ansible validates an entry point only if tasks_from is its name to the letter, without .yml."""
    used = {
        each
        for folder in ("playbooks", "roles", "demo")
        for file in (ROOT / folder).rglob("*.yml")
        if "meta" not in file.parts
        for each in imported(yaml.safe_load(file.read_text(encoding="utf-8")))
    }
    assert len(used) > 15
    for role, entry_point in used:
        # The preflight checks these, because Ansible's validation prints hundreds of lines.
        own_check = role == "inventory_preflight" or entry_point in ("main", "preflight")
        assert own_check != (entry_point in entry_points(role)), f"{role}: {entry_point}"


@pytest.mark.parametrize("role", ROLES)
def test_every_number_has_a_range(role: str) -> None:
    of_config = {*config.variables_by_path().values(), *config.pool_variables().values()}
    numbers = {name for name, option in options(role).items() if option["type"] in ("int", "float")}
    with_choices = {name for name, option in options(role).items() if "choices" in option}
    ranges = load(role, "meta/limits.yml")
    assert numbers <= ranges.keys() | of_config | with_choices
    assert ranges.keys() <= options(role).keys()
    assert not ranges.keys() & of_config, "the script's schema has these"


@pytest.mark.parametrize("role", ROLES)
def test_defaults_pass_the_preflight(role: str) -> None:
    given = {name: value for name, value in load(role, "defaults/main.yml").items() if "{{" not in str(value)}
    assert variable_problems(role, given) == {}


@pytest.mark.parametrize("role", SHARED)
def test_a_shared_variable_is_described_as_by_its_role(role: str) -> None:
    for name in SHARED[role]:
        owner = next(other for other in ROLES if name in options(other))
        found = entry_points(role)["variables"]["options"][name]
        assert (found["type"], found["choices"]) == (options(owner)[name]["type"], options(owner)[name]["choices"])
        assert "default" not in found, "the default is the owner's"
        default = options(owner)[name]["default"]
        vars_file = (ROOT / "roles" / role / "vars/main.yml").read_text(encoding="utf-8")
        assert f"{name} | default('{default}')" in vars_file


@pytest.mark.parametrize("role", ROLES)
def test_names_begin_with_the_role(role: str) -> None:
    assert all(name.startswith(f"{role}_") for name in options(role))
    assert all(name.startswith(f"__{role}_") for name in load(role, "vars/main.yml"))


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    texts = [
        file.read_text(encoding="utf-8")
        for folder in ("tasks", "templates", "vars", "handlers", "lookup_plugins", "preflight_checks")
        for file in (ROOT / "roles" / role / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    ]
    used = set(re.findall(r"\w+", "\n".join(texts)))
    assert options(role).keys() <= used


@pytest.mark.parametrize("role", ROLES)
def test_no_role_names_a_group(role: str) -> None:
    for folder in ("tasks", "templates", "vars", "handlers", "defaults"):
        for file in (ROOT / "roles" / role / folder).rglob("*"):
            if file.is_file():
                # What the hosts of the same play have registered is no group.
                text = file.read_text(encoding="utf-8").replace("ansible_play_hosts_all | map('extract', hostvars)", "")
                assert not re.search(r"\bgroups\b|\bhostvars\b", text), file


def test_choices_are_those_of_the_script() -> None:
    spec = options("vllm_nginx_lb")
    assert tuple(spec["vllm_nginx_lb_method"]["choices"]) == settings.METHODS
    assert tuple(spec["vllm_nginx_lb_policy"]["choices"]) == settings.POLICIES
    assert set(options("nginx_ingress")["nginx_ingress_balancer"]["choices"]) == set(settings.BALANCERS)


def test_nodes_of_the_role_are_those_of_the_script() -> None:
    node = options("vllm_nginx_lb")["vllm_nginx_lb_nodes"]["options"]
    fields = {each.name: each for each in dataclasses.fields(settings.Node)}
    assert node.keys() == fields.keys() | {"pool"}
    for name, each in fields.items():
        assert node[name].get("default", dataclasses.MISSING) == each.default


def test_every_file_of_the_package_is_compared_before_an_installation() -> None:
    patterns = load("vllm_nginx_lb", "vars/main.yml")["__vllm_nginx_lb_package_patterns"]
    files = [file for file in (ROOT / "files" / "vllm_lb").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert len(files) > 20
    assert [file for file in files if not any(file.match(pattern) for pattern in patterns)] == []


def test_reference_page_is_up_to_date() -> None:
    program = ROOT / "docs" / "generate_configuration.py"
    result = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_site_is_imports_only() -> None:
    plays = yaml.safe_load((ROOT / "site.yml").read_text(encoding="utf-8"))
    assert all(set(play) == {"name", "ansible.builtin.import_playbook"} for play in plays)
