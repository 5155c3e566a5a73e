"""The role's own tasks install the parts of nginx's configuration as a set, and a real nginx tests the set.

Each run has a mount namespace of its own, in which folders of the test stand for those that the role writes to.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import LOAD_LUA, free_port
from tests.integration.rendered import BODIES_UNIT, PARTS, ROLE, SERVER
from tests.playbook import play

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]
PAGE = ROLE / "files" / "page"
FORMER = "log_format former 'of the layout before the parts'; include /etc/nginx/vllm-nginx-lb/clients.conf;\n"
CLIENTS = [{"name": "team-a", "key": "key-of-team-a-0123456789"}]
# A pool whose upstream another file has: nginx refuses a second one.
REFUSED: dict[str, Any] = {
    "nginx_ingress_pools": {"taken": {"path_prefix": "/taken"}},
    "nginx_ingress_requests_per_minute": 60,
}
WEIGHTS = {"pools": [{"name": "llm_cluster", "nodes": [{"address": "192.0.2.9", "port": 8000, "weight": 55}]}]}


class Machine:
    """A host with nginx, as the role's tasks see it."""

    WRITTEN = ("etc/nginx", "etc/systemd/system", "var/lib/nginx", "var/log/nginx", "usr/local/share")

    def __init__(self, root: Path) -> None:
        """Install nginx's own configuration."""
        self.root = root
        for folder in (*self.WRITTEN, "etc/nginx/conf.d", "etc/nginx/vllm-nginx-lb"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "etc/nginx/nginx.conf").write_text(
            f"{LOAD_LUA} pid /var/log/nginx/nginx.pid; events {{ }} http {{ include /etc/nginx/conf.d/*.conf; }}\n"
        )
        (root / "etc/nginx/conf.d/other.conf").write_text("upstream taken { server 127.0.0.1:9; }\n")
        (root / "bin").mkdir()
        systemctl = root / "bin" / "systemctl"
        systemctl.write_text(
            f'#!/bin/sh\necho "$*" >> {root}/systemctl.log\necho LoadState=loaded\necho ActiveState=active\n'
        )
        systemctl.chmod(0o755)
        tmpfiles = root / "bin" / "systemd-tmpfiles"  # the namespace of the test has no www-data
        tmpfiles.write_text(f'#!/bin/sh\necho "tmpfiles $* $(cat)" >> {root}/systemctl.log\n')
        tmpfiles.chmod(0o755)
        no_container = root / "bin" / "systemd-detect-virt"
        no_container.write_text("#!/bin/sh\nexit 1\n")
        no_container.chmod(0o755)
        self.settings = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "nginx_ingress_listen_port": free_port(),
            "nginx_ingress_status_port": free_port(),
            "nginx_ingress_worker_connections": 0,  # leave nginx.conf alone
            "nginx_ingress_worker_rlimit_nofile": 0,
            "nginx_ingress_nftables_enabled": False,
        }

    @property
    def parts(self) -> Path:
        """The live set of parts."""
        return self.root / PARTS

    def files(self) -> dict[str, str]:
        """Return the text of each file below /etc/nginx, by its path; a link has its target."""
        found = {}
        for folder, folders, names in os.walk(self.root / "etc/nginx"):
            for path in (Path(folder, name) for name in [*folders, *names]):
                if path.is_symlink():
                    found[str(path.relative_to(self.root))] = f"-> {path.readlink()}"
                elif path.is_file():
                    found[str(path.relative_to(self.root))] = path.read_text()
        return found

    @property
    def page(self) -> Path:
        """The folder of the status page."""
        return self.root / "usr/local/share/vllm-nginx-lb/page"

    def reloads(self) -> int:
        """Return how often nginx was told to reload."""
        log = self.root / "systemctl.log"
        return log.read_text().count("reload nginx.service") if log.exists() else 0

    def configure(self, *, tasks: str = "configure.yml", **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run the tasks that configure the ingress, or others of the role."""
        folder = self.root / "ansible"
        folder.mkdir(exist_ok=True)
        playbook = folder / "play.yml"
        role = {"import_role": {"name": "nginx_ingress", "tasks_from": tasks}}
        wanted = {"hosts": "ingress", "gather_facts": False, "tasks": [role]}
        playbook.write_text(json.dumps([wanted]))
        binds = "".join(f"mount --bind '{self.root}/{path}' '/{path}' && " for path in self.WRITTEN)
        return play(
            folder,
            {"ingress": {"hosts": {"entry": {**self.settings, **settings}}}},
            playbook,
            within=("unshare", "--map-root-user", "--mount", "sh", "-c", f'{binds} exec "$@"', "sh"),
            path=os.pathsep.join([str(self.root / "bin"), "/usr/sbin", "/sbin"]),
        )


def changed(done: subprocess.CompletedProcess[str]) -> int:
    """Return how many tasks changed something."""
    return int(done.stdout.rpartition("changed=")[2].split()[0])


def with_the_former_layout(root: Path) -> Machine:
    """Return a host that has the layout before the parts."""
    it = Machine(root)
    (it.root / SERVER).write_text(FORMER)
    former = it.root / "etc/nginx/vllm-nginx-lb"
    (former / "lua/vllm_nginx_lb").mkdir(parents=True)
    (former / "lua/vllm_nginx_lb/balancer.lua").write_text("-- former\n")
    (former / "clients.conf").write_text("# former\n")
    (it.page / "vendor").mkdir(parents=True)
    (it.page / "page.js").write_text("// of a former page\n")
    (former / "upstream.conf").write_text("# what vllm-nginx-lb wrote\n")
    return it


def refuse_an_upgrade(machine: Machine) -> None:
    """An upgrade that nginx refuses leaves the layout before the parts."""
    before = machine.files()
    done = machine.configure(**REFUSED)
    assert done.returncode != 0
    assert "nginx does not accept its configuration with /etc/nginx/conf.d/vllm-nginx-lb.conf." in done.stdout
    assert "The former one is back in its place" in done.stdout
    assert 'duplicate upstream "taken"' in done.stdout
    assert machine.files() == before
    assert machine.reloads() == 0


def upgrade(machine: Machine) -> None:
    """The parts replace the layout before them."""
    done = machine.configure(nginx_ingress_clients=CLIENTS)
    assert done.returncode == 0, done.stdout
    known = machine.root / "etc/nginx/vllm-nginx-lb"
    assert {path.name for path in known.iterdir()} == {"parts", "parts.1", "upstream.conf"}
    assert (known / "upstream.conf").read_text() == "# what vllm-nginx-lb wrote\n"
    assert (machine.parts / "clients.conf").stat().st_mode & 0o777 == 0o600
    assert (machine.parts / "api_server.conf").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (machine.root / "etc/nginx/conf.d").iterdir() if "~" in path.name] == []
    assert list((machine.parts / "lua").rglob("*.lua"))
    assert {path.name for path in machine.page.iterdir()} == {path.name for path in PAGE.iterdir()}
    assert machine.reloads() == 1


def change_the_place_for_bodies(machine: Machine) -> None:
    """Bodies have a file system of the new size, then none of their own, then one again."""
    unit = machine.root / "etc/systemd/system/var-lib-nginx-vllm_nginx_lb_bodies.mount"
    assert "size=1024m," in unit.read_text()
    for mib, is_there in ((64, True), (0, False), (1024, True)):
        done = machine.configure(nginx_ingress_clients=CLIENTS, nginx_ingress_client_body_tmpfs_mib=mib)
        assert done.returncode == 0, done.stdout
        assert unit.exists() == is_there
        assert not is_there or f"size={mib}m," in unit.read_text()
    assert "reload var-lib-nginx-vllm_nginx_lb_bodies.mount" in (machine.root / "systemctl.log").read_text()


def repeat(machine: Machine) -> None:
    """A second run changes nothing."""
    before, reloads = machine.files(), machine.reloads()
    done = machine.configure(nginx_ingress_clients=CLIENTS)
    assert (done.returncode, changed(done)) == (0, 0), done.stdout
    assert machine.files() == before
    assert machine.reloads() == reloads


def refuse_a_change(machine: Machine) -> None:
    """The former set is live again, with all of its files, after a change that nginx refuses."""
    before = machine.files()
    done = machine.configure(nginx_ingress_clients=[*CLIENTS, {"name": "b", "key": "b" * 20}], **REFUSED)
    assert done.returncode != 0
    assert "The former one is back in its place" in done.stdout
    assert machine.files() == before


def change(machine: Machine) -> None:
    """A change removes the set of an interrupted run, and the parts and modules that nothing needs."""
    live = machine.parts.readlink().name
    interrupted = "parts.1" if live == "parts.2" else "parts.2"
    shutil.copytree(machine.parts, machine.parts.with_name(interrupted), symlinks=True)
    (machine.parts.with_name(interrupted) / "broken.conf").write_text("}")
    (machine.root / "etc/nginx/vllm-nginx-lb/weights.json").write_text(json.dumps(WEIGHTS))
    (machine.parts / "lua/vllm_nginx_lb/gone.lua").write_text("-- of a former version\n")
    done = machine.configure(nginx_ingress_balancer="upstream")
    assert done.returncode == 0, done.stdout
    found = machine.files()
    assert found[PARTS] == f"-> {interrupted}"
    assert not [name for name in found if name.endswith((".lua", "clients.conf", "broken.conf"))]
    assert not [name for name in found if f"/{live}/" in name]
    assert "server 192.0.2.9:8000 weight=55;" in found["etc/nginx/vllm-nginx-lb/upstream.conf"]


def test_a_host_always_has_one_whole_set(tmp_path: Path) -> None:
    machine = with_the_former_layout(tmp_path)
    for step in (refuse_an_upgrade, upgrade, change_the_place_for_bodies, repeat, refuse_a_change, change):
        step(machine)


def test_nginx_can_write_to_the_directory_under_the_file_system_for_bodies_from_the_first_mount_on(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    done = machine.configure(tasks="bodies.yml")
    assert done.returncode == 0, done.stdout
    log = (machine.root / "systemctl.log").read_text().splitlines()
    given = "tmpfiles --create - d /var/lib/nginx/vllm_nginx_lb_bodies 0700 www-data www-data"
    mount = f"show {BODIES_UNIT.rpartition('/')[2]}"  # Ansible looks at the unit, and mounts
    assert log.index(given) < log.index(mount), "a run that is interrupted after an unmount leaves what nginx can use"


def test_a_new_host_whose_set_nginx_refuses_has_no_part_of_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    before = machine.files()
    done = machine.configure(**REFUSED)
    assert done.returncode != 0
    assert "It is removed again" in done.stdout
    after = machine.files()
    assert "seed" in after.pop("etc/nginx/vllm-nginx-lb/upstream.conf")
    assert after == before
