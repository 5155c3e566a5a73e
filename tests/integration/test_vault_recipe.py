"""The recipe of docs/operations.md for keys in Ansible Vault, run as printed, and roles rendered with its result."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.rendered import PARTS, render
from tests.playbook import ROOT

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
