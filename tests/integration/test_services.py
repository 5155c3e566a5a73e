"""What debian_host asks about a service: whether its process runs with the settings that systemd has read."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.playbook import ROOT

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = yaml.safe_load((ROOT / "roles/debian_host/vars/main.yml").read_text(encoding="utf-8"))
SYSTEMCTL = """#!/bin/sh
case "$*" in
*Environment*) echo "OTHER=1 {settings}" ;;
*MainPID*) echo 4711 ;;
*LoadState*) echo LoadState=loaded; echo ActiveState=active; echo UnitFileState=enabled ;;
esac
"""
NEW = "VLLM_NGINX_LB_SETTINGS=11"


@pytest.mark.parametrize(
    ("settings", "began_with", "runs_with_former"),
    [(NEW, "11\n", False), (NEW, "1\n", True), (NEW, None, True), ("", "1\n", False)],
    ids=["the same", "former ones", "none of ours", "no addition"],
)
def test_a_process_that_began_with_former_settings_is_found(
    tmp_path: Path, settings: str, began_with: str | None, *, runs_with_former: bool
) -> None:
    record = tmp_path / "record"
    if began_with is not None:
        record.write_text(began_with, encoding="utf-8")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(SYSTEMCTL.format(settings=settings), encoding="utf-8")
    systemctl.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", VARIABLES["__debian_host_service_question"], "sh", "an.service", record],  # noqa: S607
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "RELOAD": "yes"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.splitlines()
    assert said[:3] == ["LoadState=loaded", "ActiveState=active", "UnitFileState=enabled"]
    assert ("Settings=former" in said) == runs_with_former
