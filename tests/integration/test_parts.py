"""The role's own tasks install the parts of nginx's configuration as a set, and a real nginx tests the set.

Each run has a mount namespace of its own, in which folders of the test stand for those that the role writes to.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import LOAD_LUA, free_port, wait_for
from tests.integration.rendered import BODIES_UNIT, NGINX, PARTS, ROLE, SERVER, ask
from tests.playbook import play

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]
PAGE = ROLE / "files" / "page"
FORMER = "log_format former 'of the layout before the parts'; include /etc/nginx/vllm-nginx-lb/clients.conf;\n"
CLIENTS = [{"name": "team-a", "key": "key-of-team-a-0123456789"}]
PID_FILE = "/var/log/nginx/nginx.pid"
# It reloads a real nginx, or starts one. nginx goes on after a run, and sees the folders of the test as the host's.
SYSTEMCTL = """#!/bin/sh
echo "$*" >> {root}/systemctl.log
echo LoadState=loaded
echo ActiveState=active
echo UnitFileState=enabled
test "$*" = 'reload nginx.service' || exit 0
if test -e {root}/hold; then echo $$ > {root}/held; exec sleep 300; fi
if test -s {pid}; then kill -HUP "$(cat {pid})"; else nginx >/dev/null 2>&1; fi
"""
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
        self.mount = ""  # a command that mounts something more before a run
        for folder in (*self.WRITTEN, "etc/nginx/conf.d", "etc/nginx/vllm-nginx-lb"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "etc/nginx/nginx.conf").write_text(
            f"{LOAD_LUA} pid {PID_FILE}; events {{ }} http {{ include /etc/nginx/conf.d/*.conf; }}\n"
        )
        (root / "etc/nginx/conf.d/other.conf").write_text("upstream taken { server 127.0.0.1:9; }\n")
        (root / "bin").mkdir()
        systemctl = root / "bin" / "systemctl"
        systemctl.write_text(SYSTEMCTL.format(root=root, pid=PID_FILE))
        systemctl.chmod(0o755)
        tmpfiles = root / "bin" / "systemd-tmpfiles"  # the namespace of the test has no www-data
        tmpfiles.write_text(f'#!/bin/sh\necho "tmpfiles $* $(cat)" >> {root}/systemctl.log\n')
        tmpfiles.chmod(0o755)
        findmnt = root / "bin" / "findmnt"  # nothing is mounted
        findmnt.write_text(f"#!/bin/sh\necho {1024 << 20}\n")
        findmnt.chmod(0o755)
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

    def within(self) -> tuple[str, ...]:
        """Return the command that runs another one on the host."""
        binds = "".join(f"mount --bind '{self.root}/{path}' '/{path}' && " for path in self.WRITTEN)
        # A shell that runs the tests in the background lets its programs ignore SIGINT.
        return (
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            f'{binds} {self.mount} exec env --default-signal=INT "$@"',
            "sh",
        )

    def start(self) -> None:
        """Start nginx."""
        assert NGINX
        subprocess.run([*self.within(), NGINX], check=True)

    def stop(self) -> None:
        """End nginx, if it runs."""
        pid = self.root / PID_FILE.lstrip("/")
        if pid.exists() and (process := pid.read_text().strip()):
            os.kill(int(process), signal.SIGTERM)
            wait_for(lambda: not pid.exists())

    def ask(self, path: str = "/v1/models", key: str = "", port: int = 0) -> int:
        """Return the status that nginx answers to a client; 0 if nobody answers."""
        url = f"http://127.0.0.1:{port or self.settings['nginx_ingress_listen_port']}{path}"
        try:
            return ask(url, None, {"Authorization": f"Bearer {key}"}).status
        except urllib.error.URLError:
            return 0

    def interrupt(self, **settings: Any) -> None:
        """Run the tasks and end them with SIGINT in the moment before nginx reloads."""
        (self.root / "hold").touch()
        held = self.root / "held"
        try:
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(self.configure, **settings)
                wait_for(lambda: held.exists() and bool(held.read_text().strip()), seconds=250)
                for process in children_with(f"{self.root}/ansible/play.yml"):
                    os.kill(process, signal.SIGINT)
                assert running.result().returncode != 0
        finally:
            (self.root / "hold").unlink()
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(held.read_text()), signal.SIGKILL)
            held.unlink()

    def configure(self, *, tasks: str = "configure.yml", **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run the tasks that configure the ingress, or others of the role."""
        folder = self.root / "ansible"
        folder.mkdir(exist_ok=True)
        playbook = folder / "play.yml"
        role = {"import_role": {"name": "nginx_ingress", "tasks_from": tasks}}
        wanted = {"hosts": "ingress", "gather_facts": False, "tasks": [role]}
        playbook.write_text(json.dumps([wanted]))
        return play(
            folder,
            {"ingress": {"hosts": {"entry": {**self.settings, **settings}}}},
            playbook,
            within=self.within(),
            path=os.pathsep.join([str(self.root / "bin"), "/usr/sbin", "/sbin"]),
            __nginx_ingress_log_group="root",  # the namespace of the test has no other group
        )


def children_with(word: str) -> list[int]:
    """Return the processes of ansible-playbook with a word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_text().split("\0")
            if word in words and any(each.endswith("/ansible-playbook") for each in words):
                found.append(int(folder.name))
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Return a host with nginx; what runs there ends with the test."""
    it = Machine(tmp_path)
    try:
        yield it
    finally:
        it.stop()


def changed(done: subprocess.CompletedProcess[str]) -> int:
    """Return how many tasks changed something."""
    return int(done.stdout.rpartition("changed=")[2].split()[0])


def give_the_former_layout(it: Machine) -> None:
    """Give a host the layout before the parts."""
    (it.root / SERVER).write_text(FORMER)
    former = it.root / "etc/nginx/vllm-nginx-lb"
    (former / "lua/vllm_nginx_lb").mkdir(parents=True)
    (former / "lua/vllm_nginx_lb/balancer.lua").write_text("-- former\n")
    (former / "clients.conf").write_text("# former\n")
    (it.page / "vendor").mkdir(parents=True)
    (it.page / "page.js").write_text("// of a former page\n")
    (former / "upstream.conf").write_text("# what vllm-nginx-lb wrote\n")


def refuse_an_upgrade(machine: Machine) -> None:
    """An upgrade that nginx refuses leaves the layout before the parts."""
    before = machine.files()
    done = machine.configure(**REFUSED)
    assert done.returncode != 0
    assert "nginx does not accept its configuration with /etc/nginx/conf.d/vllm-nginx-lb.conf." in done.stdout
    assert "The former configuration is back in its place" in done.stdout
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
    assert "The former configuration is back in its place" in done.stdout
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


def test_a_host_always_has_one_whole_set(machine: Machine) -> None:
    give_the_former_layout(machine)
    for step in (refuse_an_upgrade, upgrade, change_the_place_for_bodies, repeat, refuse_a_change, change):
        step(machine)


def test_nginx_can_write_to_the_directory_under_the_file_system_for_bodies_from_the_first_mount_on(
    machine: Machine,
) -> None:
    done = machine.configure(tasks="bodies.yml")
    assert done.returncode == 0, done.stdout
    log = (machine.root / "systemctl.log").read_text().splitlines()
    given = "tmpfiles --create - d /var/lib/nginx/vllm_nginx_lb_bodies 0700 www-data www-data"
    mount = next(number for number, line in enumerate(log) if line.endswith(BODIES_UNIT.rpartition("/")[2]))
    assert log.index(given) < mount, "a run that is interrupted after an unmount leaves what nginx can use"


def test_a_new_host_whose_set_nginx_refuses_has_no_part_of_it(machine: Machine) -> None:
    before = machine.files()
    done = machine.configure(**REFUSED)
    assert done.returncode != 0
    assert "That file is removed again" in done.stdout
    after = machine.files()
    assert "seed" in after.pop("etc/nginx/vllm-nginx-lb/upstream.conf")
    assert after == before


@pytest.mark.fault(
    15,
    "a play that removes a client's key is interrupted before nginx reloads",
    sees="TASK [nginx_ingress : Take | Reload nginx]",
    keeps="what nginx runs; the next play makes the whole change again, and reports it",
)
@pytest.mark.parametrize("balancer", ["work", "upstream"])
def test_a_key_that_an_interrupted_run_removed_is_refused_after_the_next_run(
    machine: Machine, heard: list[str], balancer: str
) -> None:
    former = {"name": "b", "key": "key-of-team-b-0123456789"}
    wanted: dict[str, Any] = {"nginx_ingress_balancer": balancer, "nginx_ingress_clients": CLIENTS}
    done = machine.configure(**wanted | {"nginx_ingress_clients": [*CLIENTS, former]})
    assert done.returncode == 0, done.stdout
    assert machine.ask(key=former["key"]) != 401
    machine.interrupt(**wanted)
    assert former["key"] not in (machine.parts / "clients.conf").read_text()
    assert machine.ask(key=former["key"]) != 401, "the interrupted run has not reloaded nginx"

    done = machine.configure(**wanted)
    assert done.returncode == 0, done.stdout
    heard.append(done.stdout)
    assert changed(done) > 0
    assert machine.ask(key=former["key"]) == 401
    assert machine.ask(key=CLIENTS[0]["key"]) != 401
    reloads = machine.reloads()
    done = machine.configure(**wanted)
    assert (done.returncode, changed(done), machine.reloads()) == (0, 0, reloads), done.stdout


@pytest.mark.parametrize("new", [True, False], ids=["first", "put back"])
def test_limits_of_nginx_conf_that_an_interrupted_run_has_written_come_into_force(
    machine: Machine, *, new: bool
) -> None:
    main = machine.root / "etc/nginx/nginx.conf"
    main.write_text(main.read_text().replace("events { }", "\nevents {\n worker_connections 512;\n}\n"))
    wanted: dict[str, Any] = {} if new else {"nginx_ingress_worker_connections": 1024}
    assert machine.configure(**wanted).returncode == 0
    if not new:  # the parts stay as they are
        main.write_text(main.read_text().replace("worker_connections 1024;", "worker_connections 512;"))
    machine.interrupt(nginx_ingress_worker_connections=1024)
    assert "worker_connections 1024;" in main.read_text()
    reloads = machine.reloads()
    done = machine.configure(nginx_ingress_worker_connections=1024)
    assert (done.returncode, machine.reloads()) == (0, reloads + 1), done.stdout


@pytest.mark.fault(
    15,
    "a port of the ingress is held by another program",
    sees="listens on 127.0.0.1:…",
    keeps="everything: the former parts and the former file in conf.d are back, and nginx can be restarted",
)
@pytest.mark.parametrize("new", [True, False], ids=["a new host", "an ingress"])
def test_a_port_that_another_program_holds_costs_the_host_nothing(
    machine: Machine, heard: list[str], *, new: bool
) -> None:
    (machine.root / "etc/nginx/conf.d/site.conf").write_text(
        f"server {{ listen 127.0.0.1:{(site := free_port())}; return 204; }}\n"
    )
    if not new:
        assert machine.configure().returncode == 0
    before = machine.files()
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = machine.configure(nginx_ingress_listen_port=port)
    heard.append(done.stdout)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    # Another user's program has no name in the namespace of the test.
    assert f"listens on 127.0.0.1:{port}" in said
    assert "change nginx_ingress_listen_port" in said
    assert ("That file is removed again" if new else "The former configuration is back in its place") in said
    after = machine.files()
    assert not new or "seed" in after.pop("etc/nginx/vllm-nginx-lb/upstream.conf")
    assert after == before
    machine.stop()
    assert machine.ask("/health") == 0
    machine.start()
    assert machine.ask(port=site) == 204, "nginx starts, and the host's other sites are there"
    assert machine.ask("/health") == (0 if new else 200)


@pytest.mark.parametrize("link", ["/etc/nginx/vllm-nginx-lb/parts.1", "parts.1/"])
def test_the_live_set_stays_however_the_link_is_written(machine: Machine, link: str) -> None:
    assert machine.configure().returncode == 0
    known = machine.root / "etc/nginx/vllm-nginx-lb"
    (known / "parts").unlink()
    (known / "parts").symlink_to(link)  # as a restored backup has it
    (known / "parts.2").mkdir()  # as an interrupted run leaves it
    done = machine.configure()
    assert done.returncode == 0, done.stdout
    assert (known / "parts.1/http.conf").exists()
    assert not (known / "parts.2").exists()


def test_a_link_in_place_of_the_next_set_goes_and_its_target_stays(machine: Machine) -> None:
    assert machine.configure().returncode == 0
    known = machine.root / "etc/nginx/vllm-nginx-lb"
    (kept := machine.root / "etc/nginx/kept").mkdir()
    (known / "parts.2").symlink_to("/etc/nginx/kept")
    done = machine.configure(nginx_ingress_clients=CLIENTS)
    assert done.returncode == 0, done.stdout
    assert machine.ask() == 401
    assert [*kept.iterdir()] == []


def test_a_full_disk_is_named_and_nginx_keeps_what_it_has(machine: Machine) -> None:
    assert machine.configure().returncode == 0
    known = "/etc/nginx/vllm-nginx-lb"
    used = sum(1 + file.stat().st_size // 4096 for file in machine.parts.rglob("*.*")) * 4  # KiB, in pages
    machine.mount = (
        f"cp --recursive --no-dereference {known} {machine.root}/copy && "
        f"mount -t tmpfs -o size={used * 3 // 2}k tmpfs {known} && "
        f"cp --recursive --no-dereference {machine.root}/copy/. {known} && "
    )
    reloads = machine.reloads()
    done = machine.configure(nginx_ingress_clients=CLIENTS)
    assert done.returncode != 0
    assert re.search(r"parts\.2/\S* cannot be written: No space left on device; nginx keeps", done.stdout), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert machine.reloads() == reloads
    machine.mount = ""
    done = machine.configure(nginx_ingress_clients=CLIENTS)
    assert done.returncode == 0, done.stdout
    assert machine.ask() == 401


@pytest.mark.fault(
    15,
    "nginx.conf does not include conf.d",
    sees="nginx.conf does not include /etc/nginx/conf.d/vllm-nginx-lb.conf",
    keeps="everything: nothing is reloaded",
)
def test_an_nginx_conf_without_conf_d_is_named(machine: Machine, heard: list[str]) -> None:
    main = machine.root / "etc/nginx/nginx.conf"
    main.write_text(main.read_text().replace("include /etc/nginx/conf.d/*.conf;", ""))
    done = machine.configure()
    heard.append(done.stdout)
    assert done.returncode != 0
    assert not (machine.root / SERVER).exists()
    assert machine.reloads() == 0


@pytest.mark.fault(
    15,
    "nginx has no Lua, for instance nginx.org's package",
    sees="set nginx_ingress_balancer: upstream and nginx_ingress_answer_guard_enabled: false",
    keeps="everything: nothing is reloaded",
)
def test_an_nginx_without_lua_gets_a_line_that_names_the_settings(machine: Machine, heard: list[str]) -> None:
    main = machine.root / "etc/nginx/nginx.conf"
    main.write_text(re.sub(r"load_module [^;]*;", "", main.read_text()))
    before = machine.files()
    done = machine.configure()
    heard.append(done.stdout)
    assert done.returncode != 0
    after = machine.files()
    after.pop("etc/nginx/vllm-nginx-lb/upstream.conf")
    assert after == before
    without: dict[str, Any] = {"nginx_ingress_balancer": "upstream", "nginx_ingress_answer_guard_enabled": False}
    done = machine.configure(**without)
    assert done.returncode == 0, done.stdout
    assert machine.ask("/health") == 200
