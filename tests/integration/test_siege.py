"""Attackers that want all connections of an ingress, against nginx and the kernel's rules."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.integration import siege
from tests.integration.conftest import free_port
from tests.integration.rendered import CONNECTIONS, CONNECTIONS_UNIT, Host, ingress, nginx_command, render

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
BALANCERS = ("upstream", "work")
WORKER_CONNECTIONS = 256
EACH = 20  # for each address
ALL = WORKER_CONNECTIONS * 7 // 16  # for all addresses together
SETTINGS: dict[str, Any] = {
    "nginx_ingress_client_header_timeout_seconds": 60,
    "nginx_ingress_worker_connections": WORKER_CONNECTIONS,
    "nginx_ingress_connections_per_address": EACH,
    "nginx_ingress_connections_exempt": ["10.99.2.0/24", "fd99:0:2::1"],
    "nginx_ingress_tls_enabled": True,
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """Render an ingress of each balancer, with TLS for HTTP/2."""
    settings = {name: {**SETTINGS, "nginx_ingress_balancer": name} for name in BALANCERS}
    found = render(tmp_path_factory.mktemp("rendered"), settings)
    certificate = trustme.CA().issue_cert("localhost")
    for host in found.values():
        certificate.cert_chain_pems[0].write_to_path(host.root / "tls.crt")
        certificate.private_key_pem.write_to_path(host.root / "tls.key")
    return found


def besiege(folder: Path, host: Host, rules: Path | None, wanted: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Besiege an ingress whose worker has WORKER_CONNECTIONS; return what was seen (see siege.py)."""
    node_port = free_port()
    with ingress(folder, host, [node_port]):
        pass  # writes the upstream file
    command = nginx_command(folder, host)
    main = folder / "nginx.conf"
    text = main.read_text(encoding="utf-8")
    main.write_text(
        text.replace("events { }", f"events {{ worker_connections {WORKER_CONNECTIONS}; }}"), encoding="utf-8"
    )
    settings: siege.Siege = {
        "nginx": command,
        "rules": str(rules) if rules else None,
        "port": host.port,
        "tls_port": host.tls_port,
        "status_port": host.status_port,
        "node_port": node_port,
        "connections": 2 * WORKER_CONNECTIONS,
        "wanted": wanted,
        **more,  # type: ignore[typeddict-item]
    }
    within = ["unshare", "--map-root-user", "--net", sys.executable, siege.__file__, json.dumps(settings)]
    done = subprocess.run(within, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


ONE = ["10.99.1.1"]
MANY = [f"10.99.1.{number}" for number in range(1, 21)]
MANY_NETWORKS = [f"fd99:0:0:{number}::1" for number in range(1, 21)]
ALIVE = {"client": 200, "health": 200, "status": 200}
# What is seen when all connections are taken: other clients are refused, this host is not.
FULL = {"client": None, "health": 200, "status": 200}
SIEGES: dict[str, tuple[str, list[str], dict[str, int | None]]] = {
    "one address": ("half a request", ONE, {"connections": EACH, **ALIVE}),
    "one IPv6 network": ("half a request", ["fd99:0:0:1::1", "fd99:0:0:1::2"], {"connections": EACH, **ALIVE}),
    "many addresses": ("half a request", MANY, {"connections": ALL, **FULL}),
    "many IPv6 networks": ("half a request", MANY_NETWORKS, {"connections": ALL, **FULL}),
    "an exempt address": ("half a request", ["10.99.2.1"], {"connections": ALL, **FULL}),
    "an exempt IPv6 address": ("half a request", ["fd99:0:2::1"], {"connections": ALL, **FULL}),
    "one address, half of HTTP/2": ("half a request of HTTP/2", ONE, {"connections": EACH, **ALIVE}),
    "one address, much HTTP/2": ("many requests of HTTP/2", ONE, {"connections": EACH, "requests": EACH, **ALIVE}),
    "many addresses, much HTTP/2": ("many requests of HTTP/2", MANY, {"connections": ALL, "requests": ALL, **FULL}),
}


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("case", SIEGES)
def test_nobody_takes_all_connections(tmp_path: Path, hosts: dict[str, Host], balancer: str, case: str) -> None:
    attack, sources, wanted = SIEGES[case]
    host = hosts[balancer]
    assert besiege(tmp_path, host, host.root / CONNECTIONS, wanted, attack=attack, sources=sources) == wanted


@pytest.mark.parametrize("balancer", BALANCERS)
def test_without_the_rules_one_address_takes_all_connections(
    tmp_path: Path, hosts: dict[str, Host], balancer: str
) -> None:
    wanted = {"client": None, "health": None, "status": None}
    assert besiege(tmp_path, hosts[balancer], None, wanted, attack="half a request", sources=ONE) == wanted


@pytest.mark.parametrize(("before", "after"), [(100, ALL * 4), (ALL * 4, ALL * 4), (262144, 262144)])
def test_the_kernels_table_is_made_large_enough_and_never_smaller(
    tmp_path: Path, hosts: dict[str, Host], before: int, after: int
) -> None:
    size = tmp_path / "nf_conntrack_max"
    size.write_text(f"{before}\n", encoding="ascii")
    lines = hosts["work"].text(CONNECTIONS_UNIT).splitlines()
    (command,) = [line.partition("=-")[2] for line in lines if line.startswith("ExecStartPost=")]
    subprocess.run(command.replace("/proc/sys/net/netfilter/nf_conntrack_max", str(size)), shell=True, check=True)  # noqa: S602 - the unit's own command
    assert int(size.read_text(encoding="ascii")) == after
