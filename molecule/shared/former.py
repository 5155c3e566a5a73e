"""Former versions: their trees, their inventories, and the files on an ingress.

Run as a program, it lists the files that are on the ingress now: `former.py LIST`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import stack

# The last commit before version 0.2.0. Its number is still 0.1.0.
LAST = "c64d245b8161c66183533f0055bfbb8fbec50cd8"
# The version before the script became a package.
OLDEST = "59effa1b804a958bc31f6af73e49d9a60073d338"
# The balancer keeps copies of what was live beside the published file; their names change with each tick.
COPIES = ".upstream.conf.*", ".weights.json.*"
LIBRARY = "/usr/local/lib/vllm-nginx-lb"  # a link to the modules of one version; the oldest one has none
# Only the oldest version has the second.
SCRIPT, VIEW = "/usr/local/bin/vllm_nginx_lb.py", "/usr/local/bin/vllm_nginx_lb_view.py"


def check_out(folder: Path, commit: str) -> Path:
    """Write the tree of a commit below a folder, and return where it is.

    Raises:
        AssertionError: this clone does not have the commit.
    """
    tree = folder / "former"
    tree.mkdir()
    # Root runs the tests, and the clone may be somebody else's.
    git = ["git", "-c", "safe.directory=*", "-C", str(stack.PROJECT)]
    archive = folder / "former.tar"
    made = subprocess.run([*git, "archive", f"--output={archive}", commit], check=False, capture_output=True, text=True)
    assert made.returncode == 0, (
        f"the upgrade is tested from commit {commit}, which this clone does not have: {made.stderr.strip()}; "
        "a shallow clone gets it with `git fetch --unshallow`, CI with `fetch-depth: 0`"
    )
    subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={tree}"], check=True)  # noqa: S607
    return tree


def inventory(tree: Path, scenario: Path) -> Path:
    """Write a scenario's inventory with the variables of a former version, and return its hosts.yml.

    Args:
        tree: what check_out() returned.
        scenario: a scenario's inventory, the operator's own variables among the group variables.
    """
    folder = tree.parent / "former-inventory"
    shutil.copytree(scenario, folder, ignore=shutil.ignore_patterns("group_vars"))
    shutil.copytree(tree / "inventory" / "group_vars", folder / "group_vars")
    vault = scenario / "group_vars" / "ingress" / "vault.yml"
    if vault.exists():
        shutil.copy(vault, folder / "group_vars" / "ingress")
    return folder / "hosts.yml"


def files() -> set[str]:
    """Return what is installed and configured on the ingress: every path below /etc and /usr/local.

    The balancer's copies of published files are left out. Of nginx's two sets of parts either may be the live one, so
    both have one name here.
    """
    unnamed = " ".join(f"! -name '{pattern}'" for pattern in COPIES)
    found = stack.on_ingress("sh", "-c", f"find /etc /usr/local -xdev {unnamed}")
    return {re.sub(r"/parts\.[12]\b", "/parts.N", path) for path in found.splitlines()}


def modules() -> str:
    """Return the directory of the live modules, whose name has their checksum."""
    return stack.on_ingress("readlink", LIBRARY).strip()


def assert_script(tree: Path) -> None:
    """Make sure that the script in /usr/local/bin, or what it links to, is that of a version's tree."""
    assert stack.on_ingress("cat", SCRIPT) == (tree / "files" / "vllm_nginx_lb.py").read_text(encoding="utf-8")


def assert_live() -> None:
    """Make sure that the timer runs, that a tick succeeds, and that nginx serves what it decided."""
    assert stack.on_ingress("systemctl", "is-active", "vllm-nginx-lb.timer").strip() == "active"
    stack.wait_until(
        lambda: stack.attempt("ingress-1", "systemctl", "start", "vllm-nginx-lb.service").returncode == 0,
        within_seconds=60,
        what="a tick succeeds",
    )
    stack.wait_until(
        lambda: stack.generation() == stack.status()["generation"], within_seconds=30, what="nginx has these weights"
    )
    assert stack.status()["error"] is None
    # A node that has just returned begins with few requests.
    stack.wait_until(
        lambda: set(stack.shares(30)) == set(stack.nodes()), within_seconds=120, what="every node gets requests"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(sorted(files())), encoding="utf-8")
