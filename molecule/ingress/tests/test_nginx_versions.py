"""The same templates on three versions of nginx; on the newest one, which runs without systemd here, by hand."""

from __future__ import annotations

import socket

import entries
import pytest
import stack

TESTING = "nginx-testing"
PACKAGES = ("nginx", "libnginx-mod-http-lua", "lua-cjson", "openssl")


def version(host: str) -> tuple[int, ...]:
    """Return the version of a host's nginx."""
    said = stack.run(host, "sh", "-c", "nginx -v 2>&1")
    return tuple(map(int, said.strip().rpartition("/")[2].split(".")))


def test_the_hosts_have_different_versions() -> None:
    versions = {version(host)[:2] for host in entries.HOSTS}
    assert len(versions) == 2, versions


def test_the_configuration_of_an_ingress_works_with_the_newest_nginx() -> None:
    stack.run(TESTING, "sh", "-c", "echo 'exit 101' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d")
    stack.run(TESTING, "apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES)
    assert version(TESTING) > max(version(host) for host in entries.HOSTS)
    files = ("etc/nginx/conf.d/vllm-nginx-lb.conf", "etc/nginx/vllm-nginx-lb")
    stack.run(TESTING, "rm", "-f", "/etc/nginx/sites-enabled/default")
    for file in files:
        stack.podman("cp", f"{stack.container('ingress-1')}:/{file}", f"{stack.container(TESTING)}:/{file}")
    stack.run(TESTING, "nginx", "-t")
    stack.run(TESTING, "nginx")
    address = stack.INVENTORY["testing"]["hosts"][TESTING]["container_ip"]
    with entries.client(address) as user:
        assert {entries.complete(user).system_fingerprint for _ in range(20)} == {"sim-a", "sim-b"}


@pytest.mark.parametrize("host", entries.HOSTS)
def test_tls_offers_http_2(host: str) -> None:
    context = entries.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((entries.HOSTS[host], 443), 10) as raw,
        context.wrap_socket(raw, server_hostname=entries.NAME) as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
