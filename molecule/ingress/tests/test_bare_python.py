"""The script as one file, where Debian has installed Python and nothing for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import stack
import yaml

from vllm_lb import __version__

if TYPE_CHECKING:
    from pathlib import Path

ONE_FILE = stack.PROJECT / "dist" / "vllm-nginx-lb.pyz"
PROGRAM = ("python3", "/root/vllm-nginx-lb.pyz", "--config", "/root/config.yml")
LIBRARIES = ("yaml", "jinja2", "prometheus_client", "requests")
NODES = ("node-a", "node-b")
CONFIG = {
    "state_directory": "/root/state",
    "scrape": {"api_key_file": "/root/api_key"},
    "nginx": {"upstream_file": "/root/upstream/upstream.conf", "test_command": ["true"], "reload_command": ["true"]},
    "pools": [
        {
            "name": "llm_cluster",
            "policy": "stepped",  # the first tick decides its weights
            "nodes": [{"name": node, "host": stack.ADDRESSES[node].partition(":")[0], "port": 18090} for node in NODES],
        }
    ],
}


@pytest.mark.parametrize("host", stack.INVENTORY["bare"]["hosts"])
def test_one_file_runs_without_any_package(host: str, tmp_path: Path) -> None:
    for library in LIBRARIES:
        assert stack.attempt(host, "python3", "-c", f"import {library}").returncode != 0, f"{library} is installed"
    (tmp_path / "config.yml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    (tmp_path / "api_key").write_text(stack.INVENTORY["all"]["vars"]["node_api_key"], encoding="utf-8")
    stack.run(host, "mkdir", "/root/upstream")
    for file in (ONE_FILE, tmp_path / "config.yml", tmp_path / "api_key"):
        stack.podman("cp", str(file), f"{stack.container(host)}:/root/")

    assert __version__ in stack.run(host, *PROGRAM, "--version")
    assert "node-b" in stack.run(host, *PROGRAM, "check-config")
    stack.run(host, *PROGRAM, "run")

    upstream = stack.run(host, "cat", "/root/upstream/upstream.conf")
    assert all(f"server {stack.ADDRESSES[node]} weight=100 " in upstream for node in NODES)
    status = json.loads(stack.run(host, "cat", "/root/state/status.json"))
    assert (status["outcome"], status["error"]) == ("reloaded", None)
