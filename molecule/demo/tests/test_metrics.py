"""Prometheus' own checker accepts the metrics of the ingress."""

from __future__ import annotations

import shutil
import subprocess

import prometheus
import pytest
import stack

PROMTOOL = shutil.which("promtool")
SOURCES = {
    "metrics.prom": lambda: stack.on_ingress("cat", "/var/lib/vllm-nginx-lb/metrics.prom"),
    "work/metrics": lambda: prometheus.fetch(f"{prometheus.STATUS_URL}/work/metrics"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_promtool_has_nothing_to_complain_of(source: str) -> None:
    assert PROMTOOL, "promtool is missing: tools/system-packages monitoring installs it"
    text = SOURCES[source]()
    assert "vllm_nginx_lb_" in text
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_exporter_runs_without_faults_and_reads_the_file_as_it_is_now() -> None:
    assert [value for _, value in prometheus.query("node_textfile_scrape_error")] == [0]
    assert stack.run("ingress-1", "stat", "-c", "%a %U", "/var/lib/vllm-nginx-lb/metrics.prom") == "644 vllm-nginx-lb\n"
    seen = prometheus.query("vllm_nginx_lb_last_tick_timestamp_seconds")
    stack.wait_until(
        lambda: prometheus.query("vllm_nginx_lb_last_tick_timestamp_seconds") != seen, 60, "the next tick is seen"
    )
