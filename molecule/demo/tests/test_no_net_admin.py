"""The demo's ingress has no capability NET_ADMIN, so the kernel refuses its rules of nftables."""

from __future__ import annotations

import json

import stack

INVENTORIES = [f"--inventory={stack.SCENARIO / 'inventory' / name}.yml" for name in ("hosts", "monitoring")]


def test_the_play_says_what_to_do_and_leaves_nginx_as_it_is() -> None:
    before = stack.on_ingress("sh", "-c", "find /etc/nginx /etc/systemd/system -type f | xargs md5sum")
    changes = {
        "nginx_ingress_nftables_enabled": True,
        "nginx_ingress_worker_connections": 4700,
        "nginx_ingress_worker_rlimit_nofile": 8000,
    }
    done = stack.play(*INVENTORIES, "site.yml", "-e", json.dumps(changes))
    assert done.returncode != 0
    assert "ingress-1: the kernel refuses the rules that bound connections" in done.stdout
    assert "Operation not permitted" in done.stdout
    assert "set nginx_ingress_nftables_enabled: false and bound connections in front of this host" in done.stdout
    assert stack.on_ingress("sh", "-c", "find /etc/nginx /etc/systemd/system -type f | xargs md5sum") == before
