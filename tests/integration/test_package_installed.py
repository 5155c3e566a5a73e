"""How the role vllm_nginx_lb installs the package, run by Ansible in a folder that stands for the ingress host.

In place of systemd there is a stand-in for `systemctl`, whose service notes which bytecode a tick would find.
"""

from __future__ import annotations

import getpass
import grp
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.playbook import ROOT, play

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # Ansible takes seconds for a playbook

SYSTEMCTL = """\
#!/bin/sh
cd "$(dirname "$0")" || exit
case "$1 $2" in
    "show "*) printf 'Id=%s\\nLoadState=loaded\\nActiveState=inactive\\nResult=success\\n' "$2";;
    "start "*service*) ls lib/vllm-nginx-lb/vllm_lb/__pycache__ >ticks;;
esac
"""
# The role's tasks before the package: from tasks/install.yml of version 0.1.0.
FORMER_TASKS = """
- copy: {src: "{{ view }}", dest: "{{ bin }}/vllm_nginx_lb_view.py", mode: "0644", follow: true}
- copy: {src: "{{ script }}", dest: "{{ bin }}/vllm_nginx_lb.py", mode: "0755", follow: true}
- file: {path: "{{ bin }}/vllm-nginx-lb", src: vllm_nginx_lb.py, state: link, force: true, follow: false}
"""
FORMER_SCRIPT = "#!/usr/bin/python3\nimport vllm_nginx_lb_view\nprint('former', vllm_nginx_lb_view.WORDS)\n"
FORMER_VIEW = "WORDS = 'script and view'\n"


@dataclass
class Installation:
    """A folder with bin/ and lib/ as in /usr/local, and the source of what is installed."""

    folder: Path

    def run(self, tasks: str | list[dict[str, Any]], *options: str, **variables: Any) -> int:
        """Run tasks; return how many of them changed something."""
        playbook = self.folder / "play.yml"
        wanted = yaml.safe_load(tasks) if isinstance(tasks, str) else tasks
        playbook.write_text(yaml.safe_dump([{"hosts": "ingress", "gather_facts": False, "tasks": wanted}]))
        inventory = {"ingress": {"hosts": {"ingress-1": {"ansible_connection": "local"}}}}
        given = {
            "ansible_python_interpreter": "/usr/bin/python3",
            "vllm_nginx_lb_interval_seconds": 1,
            "__vllm_nginx_lb_library_link": str(self.folder / "lib/vllm-nginx-lb"),
            "__vllm_nginx_lb_command": str(self.command),
            "__vllm_nginx_lb_command_alias": str(self.folder / "bin/vllm_nginx_lb.py"),
            "__vllm_nginx_lb_former_view": str(self.folder / "bin/vllm_nginx_lb_view.py"),
            "__vllm_nginx_lb_source_directory": str(self.folder / "source"),
            "__vllm_nginx_lb_owner": getpass.getuser(),
            "__vllm_nginx_lb_group": grp.getgrgid(os.getgid()).gr_name,
            **variables,
        }
        done = play(self.folder, inventory, playbook, *options, path=str(self.folder), **given)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "[WARNING]" not in done.stdout + done.stderr
        recap = done.stdout.split("PLAY RECAP")[1]
        return int(recap.split("changed=")[1].split()[0])

    def install(self, *options: str) -> int:
        """Run the tasks that install the package."""
        return self.run([{"import_role": {"name": "vllm_nginx_lb", "tasks_from": "package"}}], *options)

    def install_former(self) -> None:
        """Run the tasks of version 0.1.0."""
        (self.folder / "former.py").write_text(FORMER_SCRIPT)
        (self.folder / "former_view.py").write_text(FORMER_VIEW)
        places = {"bin": self.folder / "bin", "script": "former.py", "view": "former_view.py"}
        self.run(FORMER_TASKS, **{name: str(place) for name, place in places.items()})

    @property
    def command(self) -> Path:
        """The command that systemd starts."""
        return self.folder / "bin/vllm-nginx-lb"

    def version(self) -> str:
        """Return the version that the command prints, from a module that only this version has."""
        done = subprocess.run([self.command, "--version"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def files(self) -> set[str]:
        """Return all that is below bin/ and lib/."""
        return {str(path.relative_to(self.folder)) for top in ("bin", "lib") for path in (self.folder / top).rglob("*")}

    def modules(self) -> set[str]:
        """Return the live modules by their paths below the link."""
        live = (self.folder / "lib/vllm-nginx-lb").resolve()
        return {str(path.relative_to(live)) for path in live.rglob("*.py")}

    def write_source(self, version: str) -> None:
        """Make a version of the source: its entry imports a module that no other version has."""
        source = self.folder / "source"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(ROOT / "files", source, ignore=shutil.ignore_patterns("__pycache__"))
        (source / "vllm_lb" / f"only_{version}.py").write_text(f"VERSION = {version!r}\n")
        entry = "#!/usr/bin/python3\nimport sys\nsys.dont_write_bytecode = True\n"
        entry += f"from vllm_lb import cli, only_{version}\nprint(only_{version}.VERSION)\n"
        (source / "vllm_nginx_lb.py").write_text(entry)


@pytest.fixture
def host(tmp_path: Path) -> Installation:
    """Return a folder without an installation, and a source of the version "one"."""
    for name in ("bin", "lib"):
        (tmp_path / name).mkdir()
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    it = Installation(tmp_path)
    it.write_source("one")
    return it


def test_the_package_is_installed_readable_and_compiled_before_the_first_tick(host: Installation) -> None:
    assert host.install("--check") > 0
    assert host.files() == set()

    assert host.install() > 0
    assert host.version() == "one"
    library = host.folder / "lib/vllm-nginx-lb"
    assert (host.folder / "bin/vllm_nginx_lb.py").readlink() == host.command.readlink() == library / "vllm_nginx_lb.py"
    assert library.joinpath("vllm_nginx_lb.py").stat().st_mode & 0o7777 == 0o755
    for path in library.resolve().rglob("*"):
        if not path.is_symlink() and path.name != "vllm_nginx_lb.py":
            assert path.stat().st_mode & 0o7777 == (0o755 if path.is_dir() else 0o644), path
    modules = {path.stem for path in (library / "vllm_lb").glob("*.py")}
    compiled = {path.name.split(".")[0] for path in (library / "vllm_lb/__pycache__").iterdir()}
    assert compiled == modules
    assert (host.folder / "ticks").read_text().count(".pyc") == len(modules), "the tick came after the bytecode"

    before = host.files()
    assert host.install() == 0
    assert host.files() == before


def test_bytecode_that_is_missing_is_made_again(host: Installation) -> None:
    host.install()
    compiled = host.folder / "lib/vllm-nginx-lb/vllm_lb/__pycache__"
    for path in compiled.glob("cli.*"):
        path.rename(compiled / "cli.cpython-39.pyc")  # as after an upgrade of Debian
    assert host.install() == 2, "the finding, and the handler"
    assert [path.name for path in compiled.glob("cli.*")] != ["cli.cpython-39.pyc"]
    assert not (compiled / "cli.cpython-39.pyc").exists()


def test_a_tick_never_finds_half_of_an_upgrade(host: Installation) -> None:
    host.install()
    former = host.modules()
    seen: list[str] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            seen.append(host.version())

    ticks = threading.Thread(target=tick)
    host.write_source("two")
    ticks.start()
    try:
        host.install()
    finally:
        done.set()
        ticks.join()
    assert set(seen) == {"one", "two"}
    assert seen == sorted(seen), "once the new modules are live they stay"
    assert host.modules() ^ former == {"vllm_lb/only_one.py", "vllm_lb/only_two.py"}
    assert "vllm_lb/only_two.py" in host.modules()
    assert len(list((host.folder / "lib").iterdir())) == 2, "the link and one directory"


def test_the_version_before_the_package_is_replaced_and_can_come_back(host: Installation) -> None:
    host.install_former()
    assert host.version() == "former script and view"

    host.install()
    assert host.version() == "one"
    installed = host.files()
    assert installed & {"bin/vllm_nginx_lb.py", "bin/vllm_nginx_lb_view.py"} == {"bin/vllm_nginx_lb.py"}

    host.install_former()
    assert host.version() == "former script and view"

    host.install()
    assert host.version() == "one"
    assert host.files() == installed, "those of a fresh host"
    assert host.install() == 0


def test_the_removal_leaves_nothing(host: Installation) -> None:
    host.install()
    host.run(
        [{"import_role": {"name": "vllm_nginx_lb", "tasks_from": "uninstall"}}],
        vllm_nginx_lb_uninstall_confirm=True,
        __vllm_nginx_lb_user="vllm-nginx-lb-that-is-not-there",
        __vllm_nginx_lb_unit_directory=str(host.folder),
        __vllm_nginx_lb_config_directory=str(host.folder / "etc"),
        __vllm_nginx_lb_state_directory=str(host.folder / "state"),
        __vllm_nginx_lb_node_exporter_link=str(host.folder / "exporter"),
        __vllm_nginx_lb_manual_files=[],
    )
    assert host.files() == set()
