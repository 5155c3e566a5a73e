"""After playbooks/uninstall.yml."""

from __future__ import annotations

import openai
import pytest
import stack


@pytest.mark.parametrize(
    "path",
    [
        "/etc/vllm-nginx-lb",
        "/var/lib/vllm-nginx-lb",
        "/etc/nginx/vllm-nginx-lb",
        "/etc/nginx/conf.d/vllm-nginx-lb.conf",
        "/etc/systemd/system/vllm-nginx-lb.service",
        "/etc/systemd/system/vllm-nginx-lb.timer",
        "/etc/systemd/system/vllm-nginx-lb-connections.service",
        "/etc/systemd/system/var-lib-nginx-vllm_nginx_lb_bodies.mount",
        "/var/lib/nginx/vllm_nginx_lb_bodies",
        "/usr/local/bin/vllm_nginx_lb.py",
        "/usr/local/bin/vllm_nginx_lb_view.py",
        "/usr/local/bin/__pycache__",
        "/usr/local/bin/vllm-nginx-lb",
        "/usr/local/lib/vllm-nginx-lb*",
        "/usr/local/share/man/man8/vllm-nginx-lb.8",
        "/usr/local/share/bash-completion/completions/vllm-nginx-lb",
        "/usr/local/share/zsh/site-functions/_vllm-nginx-lb",
    ],
)
def test_nothing_is_left_at(path: str) -> None:
    assert stack.on_ingress("sh", "-c", f"ls --directory {path}", check=False) == ""


def test_the_user_is_gone() -> None:
    assert not stack.on_ingress("getent", "passwd", "vllm-nginx-lb", check=False)


def test_nginx_runs_and_no_longer_answers_clients() -> None:
    assert stack.on_ingress("systemctl", "is-active", "nginx.service").strip() == "active"
    with pytest.raises(openai.APIConnectionError), stack.client() as user:
        user.models.list()


def test_a_dry_run_shows_what_clients_and_nodes_meet_and_no_file_that_nobody_reads() -> None:
    done = stack.play("-i", stack.SCENARIO / "inventory" / "hosts.yml", "--check", "--diff", "site.yml")
    assert done.returncode == 0, done.stdout
    assert "listen 8080;" in done.stdout, "nginx's server"
    assert '"confirm_url": ' in done.stdout, "config.yml"
    assert "_shtab_" not in done.stdout, "the completion of the shells"
