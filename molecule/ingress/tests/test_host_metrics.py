"""What metrics.prom has of the ingress hosts themselves: read in the sandbox of the tick, beside a real keepalived."""

from __future__ import annotations

import re
import ssl

import entries
import pytest
import stack
from test_floating_address import holders

METRICS = "/var/lib/vllm-nginx-lb/metrics.prom"
CERTIFICATE = "/etc/nginx/vllm-nginx-lb/tls.crt"
WAIT_SECONDS = 60  # for some ticks


def value(host: str, metric: str) -> float | None:
    """Return the value of one of the host's metrics, without its labels."""
    text = stack.run(host, "cat", METRICS)
    found = re.search(rf"^vllm_nginx_lb_{metric}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


@pytest.mark.parametrize("host", entries.HOSTS)
def test_the_end_of_the_certificate_that_clients_are_shown(host: str) -> None:
    said = stack.run(host, "openssl", "x509", "-noout", "-enddate", "-in", CERTIFICATE)
    ends = ssl.cert_time_to_seconds(said.strip().removeprefix("notAfter="))
    stack.wait_until(
        lambda: value(host, "certificate_not_after_timestamp_seconds") == ends, WAIT_SECONDS, f"the end on {host}"
    )


def test_exactly_the_host_with_the_floating_address_says_so() -> None:
    def said() -> list[str]:
        return [host for host in entries.HOSTS if value(host, "floating_address_held") == 1]

    stack.wait_until(lambda: len(said()) == 1 and said() == holders(), WAIT_SECONDS, "one host has the address")


def test_a_keepalived_that_is_stopped_is_seen_until_it_runs_again() -> None:
    (waiting,) = set(entries.HOSTS) - set(holders())
    stack.wait_until(lambda: value(waiting, "keepalived_running") == 1, WAIT_SECONDS, "keepalived runs")
    stack.run(waiting, "systemctl", "stop", "keepalived.service")
    try:
        stack.wait_until(lambda: value(waiting, "keepalived_running") == 0, WAIT_SECONDS, "keepalived is stopped")
    finally:
        stack.run(waiting, "systemctl", "start", "keepalived.service")
    stack.wait_until(lambda: value(waiting, "keepalived_running") == 1, WAIT_SECONDS, "keepalived runs again")
