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
*MainPID*) echo {pid} ;;
*LoadState*) echo LoadState=loaded; echo ActiveState=active; echo UnitFileState=enabled ;;
esac
"""
NEW, FORMER = "VLLM_NGINX_LB_SETTINGS=11", "VLLM_NGINX_LB_SETTINGS=1"


@pytest.mark.parametrize(
    ("settings", "began_with", "runs_with_former"),
    [(NEW, NEW, False), (NEW, FORMER, True), (NEW, "", True), ("", FORMER, False)],
    ids=["the same", "former ones", "none of ours", "no addition"],
)
def test_a_process_that_began_with_former_settings_is_found(
    tmp_path: Path, settings: str, began_with: str, *, runs_with_former: bool
) -> None:
    marker = dict([began_with.split("=")]) if began_with else {}
    with subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **marker}) as process:  # noqa: S607
        try:
            systemctl = tmp_path / "systemctl"
            systemctl.write_text(SYSTEMCTL.format(settings=settings, pid=process.pid), encoding="utf-8")
            systemctl.chmod(0o755)
            done = subprocess.run(
                ["sh", "-c", VARIABLES["__debian_host_service_question"], "sh", "an.service"],  # noqa: S607
                env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "RELOAD": "yes"},
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            process.kill()
    said = done.stdout.splitlines()
    assert said[:3] == ["LoadState=loaded", "ActiveState=active", "UnitFileState=enabled"]
    assert ("Settings=former" in said) == runs_with_former
