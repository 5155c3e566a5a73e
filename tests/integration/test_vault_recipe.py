"""The recipe of docs/operations.md for keys in Ansible Vault, run as printed, and roles rendered with its result."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ansibles import VERSIONS, ansible_playbook
from tests.integration.rendered import PARTS, ROLE, render
from tests.playbook import ROOT, play

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SETTINGS: dict[str, Any] = {
    "nginx_ingress_clients": [{"name": "team-a", "key": "{{ vault_key_of_team_a }}"}],
    "nginx_ingress_upstream_api_key": "{{ vllm_nginx_lb_api_key }}",
}


def recipe() -> str:
    """Return the first block of commands in the section about Ansible Vault."""
    section = PAGE.partition("\n## Keep keys in Ansible Vault\n")[2]
    block = re.search(r"(?:^ {4}\S.*\n| {8}.*\n)+", section, re.MULTILINE)
    assert block
    return re.sub("^ {4}", "", block[0], flags=re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with an inventory, and a home with the vault's password."""
    shutil.copytree(ROOT / "inventory" / "group_vars", tmp_path / "group_vars")
    (tmp_path / "my-inventory").symlink_to(tmp_path)
    (tmp_path / ".vault-password").write_text("a password\n", encoding="utf-8")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / ".vault-password"))
    return tmp_path


def run(folder: Path, commands: str) -> None:
    """Run commands in a folder that is the home too."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={"HOME": str(folder), "PATH": path, "ANSIBLE_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def made_by_recipe(folder: Path, variable: str, *, key: str | None = None) -> str:
    """Follow the recipe for a variable, and return the key.

    Args:
        folder: with the inventory.
        variable: takes the place of the one in the recipe.
        key: put into key.txt instead of a new one, as the page says.
    """
    commands = recipe().replace("vault_key_of_team_a", variable).replace("rm key.txt", "mv key.txt made.txt")
    assert variable in commands
    assert "mv key.txt made.txt" in commands
    if key:
        (folder / "key.txt").write_text(key, encoding="utf-8")
        commands = re.sub("^openssl.*\n", "", commands, flags=re.MULTILINE)
    run(folder, commands)
    assert (folder / "made.txt").stat().st_mode & 0o077 == 0 or key
    return (folder / "made.txt").read_text(encoding="utf-8").rstrip("\r\n")


@pytest.mark.parametrize("key", [None, "a-key-that-an-editor-has-saved\r\n"], ids=["made", "saved"])
def test_the_recipe_run_twice_gives_two_keys_without_a_line_break(folder: Path, key: str | None) -> None:
    of_client = made_by_recipe(folder, "vault_key_of_team_a")
    of_nodes = made_by_recipe(folder, "vllm_nginx_lb_api_key", key=key)
    assert of_client != of_nodes
    vault = (folder / "group_vars" / "ingress" / "vault.yml").read_text(encoding="utf-8")
    assert vault.count("$ANSIBLE_VAULT") == 2
    assert of_client not in vault
    host = render(folder, {"ingress-1": SETTINGS})["ingress-1"]
    assert f'"{of_client}" team-a;' in host.text(f"{PARTS}/clients.conf")
    assert f'"Bearer {of_nodes}";' in host.text(f"{PARTS}/upstream_api_key.conf")


def test_a_key_with_a_line_break_is_refused_with_the_way_out(folder: Path) -> None:
    made_by_recipe(folder, "vllm_nginx_lb_api_key")
    wrong = "ansible-vault encrypt_string --vault-password-file ~/.vault-password --stdin-name vault_key_of_team_a"
    run(folder, f"openssl rand -hex 32 | {wrong} >>my-inventory/group_vars/ingress/vault.yml")
    with pytest.raises(AssertionError, match="has a line break at its end; encrypt it again without one"):
        render(folder, {"ingress-1": SETTINGS})


# --- what the roles do with keys, on the oldest and the newest ansible-core ------------------------------------------


def run_roles(folder: Path, version: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Check the variables of an ingress host, and write the parts with keys into the file `parts`."""
    parts = [f"{ROLE}/templates/{PARTS}/{name}.j2" for name in ("clients.conf", "upstream_api_key.conf")]
    tasks: list[dict[str, Any]] = [
        *({"import_role": {"name": role, "tasks_from": "preflight"}} for role in ("nginx_ingress", "vllm_nginx_lb")),
        {"copy": {"content": f"{{{{ lookup('template', *{parts}) }}}}", "dest": f"{folder}/parts", "mode": "0600"}},
    ]
    playbook = folder / "play.yml"
    playbook.write_text(json.dumps([{"hosts": "ingress", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **settings}
    inventory = {"ingress": {"hosts": {"ingress-1": host}}, "vllm": {"hosts": {"node-a": {"ansible_host": "::1"}}}}
    return play(folder, inventory, playbook, "-vvv", program=ansible_playbook(version))


@pytest.mark.parametrize("version", VERSIONS)
def test_keys_that_the_vault_has_in_the_variables_themselves_go_into_the_files(folder: Path, version: str) -> None:
    of_nodes = made_by_recipe(folder, "vllm_nginx_lb_api_key")
    of_client = made_by_recipe(folder, "key")
    vault = folder / "group_vars" / "ingress" / "vault.yml"
    variable, encrypted = vault.read_text(encoding="utf-8").split("key: !vault", 2)[1:]
    vault.write_text(
        f"vllm_nginx_lb_api_key: !vault{variable}\nnginx_ingress_upstream_api_key: !vault{variable}\n"
        f"nginx_ingress_clients:\n- {{name: team-b, key: key-of-team-b-0123456789}}\n- name: team-a\n"
        f"  key: !vault{encrypted}",
        encoding="utf-8",
    )
    done = run_roles(folder, version)
    assert done.returncode == 0, done.stdout + done.stderr
    written = (folder / "parts").read_text(encoding="utf-8")
    assert f'"{of_client}" team-a;' in written
    assert f'"Bearer {of_nodes}";' in written
    assert [key for key in (of_client, of_nodes) if key in done.stdout + done.stderr] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_key_that_ansible_takes_for_a_template_is_not_shown(folder: Path, version: str) -> None:
    clients = [{"name": "team-a", "key": "key-of{{team-a-0123"}]
    done = run_roles(folder, version, nginx_ingress_clients=clients, nginx_ingress_upstream_api_key="key-of{%nodes")
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    for name in ("nginx_ingress_clients", "nginx_ingress_upstream_api_key"):
        assert f"{name} (not shown) cannot be evaluated; a value that has {{{{ or {{% is a template" in said
    assert "key-of" not in said
