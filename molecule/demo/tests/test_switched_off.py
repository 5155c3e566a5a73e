"""The exporters are switched off and on again, and removed with everything else. By its name this file runs last."""

from __future__ import annotations

import re

import stack

INVENTORIES = [f"--inventory={stack.SCENARIO / 'inventory' / name}.yml" for name in ("hosts", "monitoring")]
EXPORTERS = ("--tags", "nginx_ingress_exporter,vllm_nginx_lb_node_exporter", "site.yml")
OFF = ("-e", '{"nginx_ingress_exporter_enabled": false, "vllm_nginx_lb_node_exporter_enabled": false}')
OURS = "find /etc/systemd /var/lib/prometheus -name 'vllm-nginx-lb*' -path '*prometheus*'"


def changes(*arguments: str) -> int:
    """Run a playbook on the demo, which must succeed, and return how many tasks changed something on the ingress."""
    done = stack.play(*INVENTORIES, *arguments)
    assert done.returncode == 0, done.stdout
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)  # without the colours that Molecule asks for
    recap = re.search(r"ingress-1 +: +ok=\d+ +changed=(\d+)", said)
    assert recap, said
    return int(recap[1])


def exporters() -> list[str]:
    """Return what systemd says of the node exporter and of nginx's exporter: whether they run, and start at boot."""
    units = ("prometheus-node-exporter.service", "prometheus-nginx-exporter.service")
    return [stack.on_ingress("systemctl", about, *units, check=False) for about in ("is-active", "is-enabled")]


def test_exporters_go_when_they_are_switched_off_and_come_back() -> None:
    assert len(stack.on_ingress("sh", "-c", OURS).split()) == 2
    assert changes(*OFF, *EXPORTERS) > 0
    assert stack.on_ingress("sh", "-c", OURS) == ""
    # The host's own metrics are served as before.
    assert exporters() == ["active\ninactive\n", "enabled\ndisabled\n"]
    assert changes(*OFF, *EXPORTERS) == 0
    assert changes(*EXPORTERS) > 0
    assert exporters() == ["active\nactive\n", "enabled\nenabled\n"]


def test_they_are_removed_with_the_rest() -> None:
    assert changes("playbooks/uninstall.yml", "-e", "vllm_nginx_lb_uninstall_confirm=true") > 0
    assert stack.on_ingress("sh", "-c", OURS) == ""
    assert exporters() == ["active\ninactive\n", "enabled\ndisabled\n"]
