"""The files that playbooks/targets.yml writes for Prometheus, as promtool reads them."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.playbook import ROOT, play

if TYPE_CHECKING:
    from pathlib import Path

PLAYBOOK = ROOT / "playbooks" / "targets.yml"
FILES = ("ingress.yml", "vllm.yml")
pytestmark = pytest.mark.slow  # a run of ansible-playbook takes seconds


def written(folder: Path) -> dict[str, Any]:
    """Return what the two files have."""
    return {name: yaml.safe_load((folder / name).read_text(encoding="utf-8")) for name in FILES}


def test_the_files_have_each_host_and_node_once_and_nobody_is_logged_in_to(tmp_path: Path) -> None:
    inventory = {
        "ingress": {"hosts": {"lb-1": {"ansible_host": "192.0.2.10"}, "lb-2": {"ansible_host": "2001:db8::10"}}},
        "vllm": {
            "hosts": {
                "node-a": {"ansible_host": "192.0.2.21"},
                "node-b": {"ansible_host": "2001:db8::22", "vllm_port": 8000, "vllm_pool": "batch"},
                "node-c": {"ansible_host": "node-c.example", "vllm_scheme": "https"},
            }
        },
    }
    done = play(tmp_path, inventory, PLAYBOOK, targets_directory=str(tmp_path / "targets"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "targets") == {
        "ingress.yml": [
            {"targets": ["192.0.2.10"], "labels": {"ingress": "lb-1"}},
            {"targets": ["[2001:db8::10]"], "labels": {"ingress": "lb-2"}},
        ],
        "vllm.yml": [
            {"targets": ["192.0.2.21:18090"], "labels": {"node": "node-a", "pool": "llm_cluster"}},
            {"targets": ["[2001:db8::22]:8000"], "labels": {"node": "node-b", "pool": "batch"}},
            {
                "targets": ["node-c.example:18090"],
                "labels": {"node": "node-c", "pool": "llm_cluster", "__scheme__": "https"},
            },
        ],
    }
    # promtool reads the files that a configuration names.
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: make system-packages installs it"
    (tmp_path / "prometheus.yml").write_text((ROOT / "monitoring" / "prometheus.yml").read_text(encoding="utf-8"))
    (tmp_path / "alerts.yml").write_text((ROOT / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_example_targets_are_those_of_the_example_inventory(tmp_path: Path) -> None:
    inventory = yaml.safe_load((ROOT / "inventory" / "hosts.yml").read_text(encoding="utf-8"))
    done = play(tmp_path, inventory, PLAYBOOK, targets_directory=str(tmp_path / "targets"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "targets") == written(ROOT / "monitoring" / "targets")


@pytest.mark.parametrize("variables", [{}, {"targets_directory": "targets"}], ids=["none", "relative"])
def test_without_a_place_for_them_it_says_what_is_missing(tmp_path: Path, variables: dict[str, Any]) -> None:
    inventory = {"ingress": {"hosts": {"lb-1": None}}, "vllm": {"hosts": {"node-a": {"ansible_host": "192.0.2.21"}}}}
    done = play(tmp_path, inventory, PLAYBOOK, **variables)
    assert done.returncode != 0
    assert "-e targets_directory=/etc/prometheus/targets" in done.stdout


@pytest.mark.parametrize("limit", ["node-a", "lb-1"])
def test_a_limit_is_explained_and_nothing_is_written(tmp_path: Path, limit: str) -> None:
    inventory = {"ingress": {"hosts": {"lb-1": None}}, "vllm": {"hosts": {"node-a": {"ansible_host": "192.0.2.21"}}}}
    done = play(tmp_path, inventory, PLAYBOOK, "--limit", limit, targets_directory=str(tmp_path / "targets"))
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert f"--limit {limit} is not possible here" in said
    assert "leave out --limit" in said
    assert not (tmp_path / "targets").exists()
