"""After playbooks/uninstall.yml. By its name this file runs last."""

from __future__ import annotations

import entries
import pytest
import stack


@pytest.fixture(scope="module", autouse=True)
def _uninstalled() -> None:
    entries.play("playbooks/uninstall.yml", "-e", "vllm_nginx_lb_uninstall_confirm=true")


@pytest.mark.parametrize("host", entries.HOSTS)
def test_nothing_of_ours_is_left(host: str) -> None:
    ours = "-name '*vllm*' ! -name '*vllm-nginx-lb-test'"  # the latter is the image's
    names = f"{ours} -o -name 'upstream_trace*' -o -path /etc/keepalived/keepalived.conf"
    found = stack.run(host, "sh", "-c", f"find /etc /usr/local /var /run -xdev \\( {names} \\)")
    assert found.split() == []
    assert "vllm" not in stack.run(host, "sh", "-c", "getent passwd; getent group; systemctl list-units --all")
    assert f" {entries.FLOATING}/" not in stack.run(host, "ip", "-oneline", "address")
    assert stack.run(host, "systemctl", "is-active", "nginx.service").strip() == "active"
