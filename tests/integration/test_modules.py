"""The modules that each command of the script loads, and the single file with all modules."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import PYTHON, ROOT, SCRIPT, Stack

if TYPE_CHECKING:
    from pathlib import Path

# Runs the script and then says which modules it has loaded.
SPY = """
import atexit, runpy, sys
atexit.register(lambda: print("MODULES", *sorted(sys.modules), file=sys.stderr))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Our modules that root loads. Whoever adds one has to add it here too.
OURS = {
    *("addresses", "apply", "backups", "causes", "commands", "config_file", "data", "errors", "files"),
    *("journal", "live", "nginx", "outcome", "plan", "publish", "published", "reload_limit", "render"),
    "under_way",
    *("schema", "settings", "state", "text"),
}
NEVER = {
    "argparse",
    *("requests", "urllib3", "http.client", "ssl", "urllib.request", "prometheus_client", "rich", "gzip", "email"),
    *(f"vllm_lb.{name}" for name in ("scrape", "fetch", "network", "decide", "policies", "history", "collect", "view")),
}


def modules_of(stack: Stack, *arguments: str) -> set[str]:
    """Run a command, and return the modules that it has loaded."""
    command = [PYTHON, "-c", SPY, str(SCRIPT), "--config", str(stack.write_config()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


def ours(modules: set[str]) -> set[str]:
    """Return the modules of the package, by their names in it."""
    return {name.partition(".")[2] for name in modules if name.startswith("vllm_lb.")}


def work(stack: Stack) -> None:
    """Use the balancer work. This nginx has no Lua that reads the published file, so nothing is confirmed."""
    stack.config["nginx"] |= {"balancer": "work", "upstream_file": str(stack.upstream.with_name("weights.json"))}


def test_an_apply_that_changes_nothing_loads_a_short_list(stack: Stack) -> None:
    stack.run()
    assert stack.script("collect").returncode == 0
    modules = modules_of(stack, "apply")
    assert stack.status()["outcome"] == "unchanged"
    assert ours(modules) == OURS
    assert not modules & (NEVER | {"jinja2", "subprocess"})


def test_an_apply_that_publishes_loads_the_template_engine_besides(stack: Stack) -> None:
    stack.run()
    stack.nodes[0].load["kv"] = 0.95
    assert stack.script("collect").returncode == 0
    modules = modules_of(stack, "apply")
    assert stack.status()["outcome"] == "reloaded"
    assert ours(modules) == OURS
    assert "jinja2" in modules
    assert not modules & {name for name in NEVER if name.startswith("vllm_lb")}
    assert not modules & {"requests", "urllib3", "http.client", "ssl", "urllib.request", "prometheus_client"}


def test_a_version_costs_no_imports(stack: Stack) -> None:
    command = [PYTHON, "-S", "-c", SPY, str(SCRIPT), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"vllm-nginx-lb \d+\.\d+\.\d+\n", done.stdout)
    assert not {"argparse", "yaml", "json", "dataclasses"} & set(done.stderr.rpartition("MODULES ")[2].split())
    assert stack.script("--version").stdout == done.stdout


def test_weights_for_lua_need_no_template_engine(stack: Stack) -> None:
    work(stack)
    stack.write_nginx()
    assert stack.script("collect").returncode == 0
    done = subprocess.run(
        [PYTHON, "-c", SPY, str(SCRIPT), "--config", str(stack.write_config()), "apply"],
        capture_output=True,
        text=True,
        check=False,
    )
    # This nginx has no Lua, so it never confirms the file. All other steps are done before that.
    assert "the new file did not take" in done.stderr
    modules = set(done.stderr.rpartition("MODULES ")[2].split())
    assert ours(modules) == OURS
    assert not modules & (NEVER | {"jinja2", "subprocess"})


@pytest.mark.unmeasured
def test_one_file_has_all_that_it_needs(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "dist" / "vllm-nginx-lb.pyz"
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    subprocess.run([ROOT / "tools" / "make-dist", file], check=True, env=environment)
    # Without the libraries of this Python and those of the environment.
    script = [PYTHON, "-I", "-S", str(file), "--config", str(stack.write_config())]
    for arguments in (["check-config"], ["run"], ["status", "--json"], ["status"], ["run", "--dry-run"], ["replay"]):
        done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr)
    stack.await_generation(json.loads((tmp_path / "state" / "status.json").read_text())["generation"])
    with zipfile.ZipFile(file) as packed:
        names = packed.namelist()
    assert "vllm_lb/cli.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
