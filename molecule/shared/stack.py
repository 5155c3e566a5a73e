"""A scenario's stack as its tests see it: requests as a client, and commands in the containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import openai
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

Seen = TypeVar("Seen")

PODMAN = "podman"
ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")

PROJECT = Path(__file__).resolve().parents[2]
# Molecule says which scenario it runs; pytest also collects tests without it.
SCENARIO = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", PROJECT / "molecule" / "default"))
EPHEMERAL = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", SCENARIO))
# The key of the nodes, in a scenario that gives them one.
API_KEY_FILE = EPHEMERAL / "node_api_key"
INTERVAL_SECONDS = 10
CONFIG_FILE = "/etc/vllm-nginx-lb/config.yml"
STATUS_FILE = "/var/lib/vllm-nginx-lb/status.json"
STATUS_URL = "http://127.0.0.1:18091"

INVENTORY = yaml.safe_load((SCENARIO / "inventory/hosts.yml").read_text(encoding="utf-8"))
INGRESS = INVENTORY["ingress"]["hosts"]["ingress-1"]
# The address of each node, as nginx names it. The node of the simulator sim-a is node-a, and so on.
ADDRESSES: dict[str, str] = {
    name.replace("sim", "node"): f"{machine['container_ip']}:18090"
    for name, machine in INVENTORY["simulators"]["hosts"].items()
}


def wait_until(read: Callable[[], Seen], within_seconds: float, what: str) -> Seen:
    """Call `read` twice a second until it returns something, and return that.

    Raises:
        AssertionError: there was nothing when the time was over.
    """
    deadline = time.monotonic() + within_seconds
    while not (seen := read()):
        assert time.monotonic() < deadline, f"not within {within_seconds:g} s: {what}"
        time.sleep(0.5)
    return seen


def podman(*arguments: str) -> None:
    """Run podman, which must succeed."""
    done = subprocess.run([PODMAN, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"


def container(host: str) -> str:
    """Return the name of an inventory host's container."""
    return f"{INVENTORY['containers']['vars']['containers_network']}-{host}"


def attempt(host: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the container of an inventory host, which may fail."""
    return subprocess.run([PODMAN, "exec", container(host), *command], check=False, capture_output=True, text=True)


def run(host: str, *command: str, check: bool = True) -> str:
    """Run a command in the container of an inventory host and return what it printed."""
    done = attempt(host, *command)
    assert done.returncode == 0 or not check, f"{host}: {' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def on_ingress(*command: str, check: bool = True) -> str:
    """Run a command on the ingress and return what it printed."""
    return run("ingress-1", *command, check=check)


def status(path: str = STATUS_FILE, host: str = "ingress-1") -> dict[str, Any]:
    """Return the last decision of a host's balancer, or one that was kept in a file."""
    return dict(json.loads(run(host, "cat", path)))


def nodes(host: str = "ingress-1") -> dict[str, dict[str, Any]]:
    """Return a host's last decision about each node, by name."""
    return {node["name"]: node for pool in status(host=host)["pools"] for node in pool["nodes"]}


def weights() -> dict[str, int]:
    """Return each node's weight, by name."""
    return {name: node["weight"] for name, node in nodes().items()}


def published_file() -> str:
    """Return the path of what the script publishes: the upstream file, or the weights that Lua reads."""
    return str(yaml.safe_load(on_ingress("cat", CONFIG_FILE))["nginx"]["upstream_file"])


def published() -> str:
    """Return what the script has published."""
    return on_ingress("cat", published_file())


def status_answer(path: str) -> str:
    """Return what nginx's status server answers to the ingress itself."""
    fetch = f"import urllib.request as u; print(u.urlopen('{STATUS_URL}{path}', timeout=5).read().decode())"
    return on_ingress("python3", "-c", fetch)


def generation() -> str:
    """Return the generation that nginx's workers answer with."""
    return status_answer("/generation").split()[0]


def workers() -> list[int]:
    """Return the process ids of nginx's workers."""
    return sorted(map(int, on_ingress("sh", "-c", "cat /proc/$(cat /run/nginx.pid)/task/*/children").split()))


def journal(*matches: str) -> list[dict[str, Any]]:
    """Return the journal's entries about the balancer's service, systemd's own too, oldest first."""
    command = ["journalctl", "--unit=vllm-nginx-lb.service", "--output=json", "--all", "--no-pager", *matches]
    return [json.loads(line) for line in on_ingress(*command).splitlines()]


def client(address: str = INGRESS["container_ip"]) -> openai.OpenAI:
    """Return a client of the ingress that shows every failure: it does not try again."""
    host = f"[{address}]" if ":" in address else address
    api_key = API_KEY_FILE.read_text(encoding="ascii").strip() if API_KEY_FILE.exists() else "unused"
    return openai.OpenAI(base_url=f"http://{host}:8080/v1", api_key=api_key, max_retries=0, timeout=120)


def node_that_answers(user: openai.OpenAI, number: int) -> str:
    """Send one short request and return the name of the node that answered it."""
    raw = user.chat.completions.with_raw_response.create(
        model="sim", max_tokens=4, messages=[{"role": "user", "content": f"request {number}"}]
    )
    assert raw.parse().choices[0].message.content
    # Several addresses: the last is the one that answered.
    answered = str(raw.headers["x-upstream-addr"]).split(", ")[-1]
    return next(name for name, address in ADDRESSES.items() if address == answered)


def shares(requests: int) -> Counter[str]:
    """Send requests through the ingress, eight at a time, and count which node answered how many."""
    with client() as user, ThreadPoolExecutor(max_workers=8) as pool:
        return Counter(pool.map(lambda number: node_that_answers(user, number), range(requests)))


def control(node: str, **settings: Any) -> None:
    """Change how a node's simulator behaves; see simulator/README.md."""
    request = urllib.request.Request(
        f"http://{ADDRESSES[node]}/control",
        data=json.dumps(settings).encode(),
        headers={"Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - the same


def play(*arguments: str | Path, tree: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in the project's folder, or in another version's.

    Returns:
        How it ended; its output has one space where it had a line break.
    """
    done = subprocess.run(
        [ANSIBLE_PLAYBOOK, *arguments],
        cwd=tree,
        env=os.environ | {"ANSIBLE_CONFIG": str(tree / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
        check=False,
        capture_output=True,
        text=True,
    )
    done.stdout = " ".join(done.stdout.split())
    return done
