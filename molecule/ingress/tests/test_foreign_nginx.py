"""A host with the nginx of nginx.org: a package of its own, its layout, its user, and no Lua."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import stack

if TYPE_CHECKING:
    from pathlib import Path

HOST = "nginx-org"
# Debian's binary in a package with the names, the files and the user of nginx.org's.
INSTALL = r"""
set -e
cd "$(mktemp --directory)"
apt-get download nginx
dpkg-deb --extract nginx_*.deb debian
mkdir -p p/DEBIAN p/usr/sbin p/etc/nginx/conf.d p/lib/systemd/system p/var/cache/nginx p/var/log/nginx
cp debian/usr/sbin/nginx p/usr/sbin/
cat >p/DEBIAN/control <<END
Package: nginx
Version: 1.99.0-1~bookworm
Architecture: $(dpkg --print-architecture)
Maintainer: NGINX Packaging <nginx-packaging@example.com>
Depends: libc6, libcrypt1, libpcre2-8-0, libssl3, zlib1g, adduser
Description: a web server, laid out as nginx.org does
END
cat >p/DEBIAN/postinst <<END
#!/bin/sh
adduser --system --group --no-create-home --home /nonexistent --quiet nginx
systemctl daemon-reload
systemctl enable --now nginx.service
END
chmod 755 p/DEBIAN/postinst
echo 'types { text/html html; }' >p/etc/nginx/mime.types
cat >p/etc/nginx/nginx.conf <<'END'

user  nginx;
worker_processes  auto;

error_log  /var/log/nginx/error.log notice;
pid        /run/nginx.pid;


events {
    worker_connections  1024;
}


http {
    include       /etc/nginx/mime.types;
    default_type  application/octet-stream;
    access_log  /var/log/nginx/access.log;
    # nginx.org's binary has these paths built in.
    client_body_temp_path /var/cache/nginx/client_temp;
    proxy_temp_path /var/cache/nginx/proxy_temp;
    fastcgi_temp_path /var/cache/nginx/fastcgi_temp;
    uwsgi_temp_path /var/cache/nginx/uwsgi_temp;
    scgi_temp_path /var/cache/nginx/scgi_temp;

    include /etc/nginx/conf.d/*.conf;
}
END
cat >p/etc/nginx/conf.d/default.conf <<'END'
server {
    listen       80;
    server_name  localhost;
    location / {
        return 204;
    }
}
END
cat >p/lib/systemd/system/nginx.service <<'END'
[Unit]
Description=nginx - high performance web server
After=network-online.target
[Service]
Type=forking
PIDFile=/run/nginx.pid
ExecStart=/usr/sbin/nginx -c /etc/nginx/nginx.conf
ExecReload=/bin/sh -c "/bin/kill -s HUP $(/bin/cat /run/nginx.pid)"
ExecStop=/bin/sh -c "/bin/kill -s TERM $(/bin/cat /run/nginx.pid)"
[Install]
WantedBy=multi-user.target
END
dpkg-deb --build --root-owner-group p nginx.deb
apt-get install --yes --no-install-recommends ./nginx.deb
"""
WITHOUT_LUA = {"nginx_ingress_balancer": "upstream", "nginx_ingress_answer_guard_enabled": False}


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install that nginx, and write the inventory of a site with this host."""
    stack.run(HOST, "sh", "-c", INSTALL)
    key = stack.INVENTORY["all"]["vars"]["node_api_key"]
    nodes = {name.replace("sim", "node"): it for name, it in stack.INVENTORY["simulators"]["hosts"].items()}
    ingress: dict[str, Any] = {
        "ansible_ssh_common_args": f"-F {stack.PROJECT}/molecule/shared/ssh_config",
        "ansible_become": False,
        "ansible_python_interpreter": "/usr/bin/python3",
        "nginx_ingress_worker_connections": 8192,
        "nginx_ingress_worker_rlimit_nofile": 16384,
        "nginx_ingress_nftables_enabled": False,
        "nginx_ingress_upstream_api_key": key,
        "vllm_nginx_lb_api_key": key,
    }
    address = stack.INVENTORY["foreign"]["hosts"][HOST]["container_ip"]
    site = {
        "ingress": {"vars": ingress, "hosts": {HOST: {"ansible_host": address}}},
        "vllm": {"hosts": {name: {"ansible_host": it["container_ip"]} for name, it in nodes.items()}},
    }
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "group_vars").symlink_to(stack.PROJECT / "inventory" / "group_vars")
    (folder / "hosts.json").write_text(json.dumps(site), encoding="utf-8")
    return folder / "hosts.json"


def test_the_balancer_work_is_refused_with_the_settings_that_help(inventory: Path) -> None:
    done = stack.play("-i", inventory, "site.yml")
    assert done.returncode != 0
    assert "This host has nginx 1.99.0-1~bookworm of NGINX Packaging" in done.stdout, done.stdout
    assert "set nginx_ingress_balancer: upstream and nginx_ingress_answer_guard_enabled: false" in done.stdout
    assert stack.attempt(HOST, "test", "-e", "/etc/nginx/conf.d/vllm-nginx-lb.conf").returncode != 0


def test_with_these_settings_it_serves(inventory: Path) -> None:
    site = ("-i", inventory, "site.yml", "-e", json.dumps(WITHOUT_LUA))
    done = stack.play(*site)
    assert done.returncode == 0, done.stdout
    with stack.client(stack.INVENTORY["foreign"]["hosts"][HOST]["container_ip"]) as user:
        stream = user.chat.completions.create(
            model="sim",
            max_tokens=4,
            messages=[{"role": "user", "content": "hello"}],
            extra_body={"padding": "x" * 2_000_000},
        )
    assert stream.choices, "nginx writes a long body to a file"
    done = stack.play(*site)
    assert "changed=0" in done.stdout, done.stdout
