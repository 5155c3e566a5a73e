"""The YAML examples of README.md and of the roles' READMEs, run by the oldest and the newest ansible-core.

The examples are read from the pages. An example that logs in to hosts runs on this machine: in place of a role, its
preflight runs with the variables of the example, and its templates are rendered with them.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.ansibles import VERSIONS, ansible_playbook
from tests.integration.rendered import TEMPLATES, host_variables, parts_task
from tests.playbook import ROOT, play

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("roles/*/README.md"))]
ROLE_TEMPLATES = {**TEMPLATES, "keepalived": ["etc/keepalived/keepalived.conf"]}
ADDRESSES = {"ingress-1": "192.0.2.10", "ingress-2": "192.0.2.11"}


@dataclass(frozen=True)
class Example:
    """A YAML example of a page."""

    page: str
    text: str

    @property
    def data(self) -> Any:
        """The example without YAML."""
        return yaml.safe_load(self.text)

    @property
    def kind(self) -> str:
        """What it is: plays, tasks, an inventory or variables."""
        if isinstance(self.data, list):
            return "plays" if "hosts" in self.data[0] else "tasks"
        return "inventory" if "ingress" in self.data else "variables"


EXAMPLES = [
    Example(str(page.relative_to(ROOT)), text)
    for page in PAGES
    for text in re.findall(r"(?ms)^```ya?ml\n(.*?)^```$", page.read_text(encoding="utf-8"))
]


def of_kind(kind: str) -> list[Example]:
    return [example for example in EXAMPLES if example.kind == kind]


def test_the_examples_are_found() -> None:
    assert [example.page for example in of_kind("plays")] == [
        f"roles/{role}/README.md" for role in ("inventory_preflight", "keepalived", "nginx_ingress", "vllm_nginx_lb")
    ]
    assert [example.page for example in of_kind("tasks")] == ["roles/debian_host/README.md"]
    assert [example.page for example in of_kind("inventory") + of_kind("variables")] == ["README.md"] * 2


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def hosts_of(groups: dict[str, Any]) -> dict[str, Any]:
    """Return an inventory of groups, whose ingress hosts are this machine."""
    groups["ingress"]["hosts"] = {
        name: {**host, "ansible_connection": "local", **host_variables()}
        for name, host in groups["ingress"]["hosts"].items()
    }
    return groups


def run(
    folder: Path, version: str, groups: dict[str, Any], playbook: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    result = play(folder, hosts_of(groups), playbook, *options, program=ansible_playbook(version))
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def two_ingresses() -> dict[str, Any]:
    nodes = {"node-a": {"ansible_host": "192.0.2.21"}}
    return {
        "ingress": {"hosts": {name: {"ansible_host": host} for name, host in ADDRESSES.items()}},
        "vllm": {"hosts": nodes},
    }


def rendered(role: str, folder: Path) -> list[dict[str, Any]]:
    """Return the tasks that check the variables of a role and render its templates to a folder."""
    templates = [f"{ROOT}/roles/{role}/templates/{name}.j2" for name in ROLE_TEMPLATES[role]]
    content = f"{{{{ lookup('template', *{templates}, wantlist=true) | to_json }}}}"
    file = f"{folder}/{role}.{{{{ inventory_hostname }}}}.json"
    return [
        {"import_role": {"name": role, "tasks_from": "preflight"}},
        {"copy": {"content": content, "dest": file, "mode": "0600"}},
        *([parts_task(f"{file}.parts")] if role == "nginx_ingress" else []),
    ]


def on_this_machine(example: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the plays that run a play on this machine: one that loads its roles, with what stands for each role.

    The variables of a role of `roles` are those of its tasks.
    """
    kept = {key: value for key, value in example.items() if key not in ("roles", "become")}
    plays = []
    for role in example.get("roles", []):
        name, variables = role["role"], role.get("vars", {})
        plays.append({**kept, "gather_facts": False, "vars": variables, "tasks": rendered(name, folder)})
        # The role's own vars are those of a play's role, and its entry point does nothing.
        plays[-1]["roles"] = [{"role": name, "tags": ["never"]}]
    return plays or [kept]


def test_the_plays_run(tmp_path: Path, version: str) -> None:
    plays = [each for example in of_kind("plays") for item in example.data for each in on_this_machine(item, tmp_path)]
    playbook = tmp_path / "plays.yml"
    playbook.write_text(yaml.safe_dump(plays, sort_keys=False), encoding="utf-8")
    result = run(tmp_path, version, two_ingresses(), playbook, "-v")
    assert "0 problem(s), 2 ingress host(s)" in result.stdout, "the example of inventory_preflight runs as it is"
    (config,) = (text for text in texts(tmp_path / "vllm_nginx_lb.ingress-1.json") if '"pools"' in text)
    pools = json.loads(re.sub(r"(?m)\A(#.*\n|\s)+", "", config))["pools"]
    assert {pool["name"]: [node["name"] for node in pool["nodes"]] for pool in pools} == {
        "batch": ["node-c"],
        "llm_cluster": ["node-a", "node-b"],
    }
    (keepalived,) = texts(tmp_path / "keepalived.ingress-2.json")
    assert "192.0.2.100" in keepalived
    parts = json.loads((tmp_path / "nginx_ingress.ingress-1.json.parts").read_text(encoding="utf-8"))
    assert "proxy_read_timeout 1200s;" in parts["proxy_settings.conf"]


def texts(file: Path) -> list[str]:
    """Return the files that a role rendered."""
    found = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(found, list)
    return found


def test_the_plays_and_tasks_are_right_as_they_are_printed(tmp_path: Path, version: str) -> None:
    """Ansible reads each example to the letter, with the roles and the tasks that it names."""
    playbook = tmp_path / "printed.yml"
    tasks = [{"hosts": "ingress", "tasks": example.data} for example in of_kind("tasks")]
    playbook.write_text("".join(each.text for each in of_kind("plays")) + yaml.safe_dump(tasks), encoding="utf-8")
    result = run(tmp_path, version, two_ingresses(), playbook, "--list-tasks")
    assert "debian_host : Packages | Install the packages" in result.stdout
    assert "nginx_ingress : Run | Ask the servers of nginx" in result.stdout


def test_the_inventory_and_the_settings_pass_the_preflight(tmp_path: Path, version: str) -> None:
    (inventory,), (settings,) = of_kind("inventory"), of_kind("variables")
    groups = inventory.data
    groups["ingress"]["hosts"]["ingress-2"] = {"ansible_host": "192.0.2.11"}  # the floating address needs two
    groups["vllm"]["hosts"]["node-e"] = {"ansible_host": "192.0.2.25", "vllm_pool": "embeddings"}
    shutil.copytree(ROOT / "inventory" / "group_vars", tmp_path / "group_vars")
    (tmp_path / "group_vars" / "ingress" / "internet.yml").write_text(settings.text, encoding="utf-8")
    names = sorted(set(re.findall(r"{{ (vault_\w+) }}", settings.text)))
    assert len(names) == 3
    vault = {name: f"{number}{'0123456789abcdef' * 2}" for number, name in enumerate(names)}
    (tmp_path / "group_vars" / "ingress" / "vault.yml").write_text(yaml.safe_dump(vault), encoding="utf-8")
    result = run(tmp_path, version, groups, ROOT / "playbooks" / "preflight.yml", "-v")
    assert "0 problem(s), 2 ingress host(s)" in result.stdout
