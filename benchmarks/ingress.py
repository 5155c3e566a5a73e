"""Measure what TLS, client keys, limits and pools add to a request, with the files that the role writes.

    PYTHONPATH=files python -m benchmarks.ingress

The nodes answer at once, so that latency is that of nginx; the load is wrk. Prints the latency that each ingress adds
to that of a node, at 1 and 64 connections, for each balancer: plain, and with all options on, for a hundred clients.
TLS connections stay open, as those of OpenAI's clients do. A part of the cost of TLS is the client's, so the last rows
compare with a node that speaks TLS.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from pathlib import Path

import trustme

from benchmarks.overhead import POST, ask, instant_nodes
from benchmarks.real import free_ports
from tests.integration.rendered import PARTS, Host, ingress, render

CLIENTS = [{"name": f"client-{i}", "key": f"key-of-client-number-{i:03}"} for i in range(100)]
EVERYTHING = {
    "nginx_ingress_server_names": ["localhost"],
    "nginx_ingress_tls_enabled": True,
    "nginx_ingress_clients": CLIENTS,
    "nginx_ingress_requests_per_minute": 1_000_000,
    "nginx_ingress_requests_burst": 1_000_000,
    "nginx_ingress_concurrent_requests": 1000,
    "nginx_ingress_pools": {"batch": {"path_prefix": "/batch", "x_models": ["big"], "concurrent_requests": 1000}},
    "nginx_ingress_upstream_api_key": "key-of-the-nodes",
}
ROUNDS, SECONDS = 5, 3


def medians(url: str, connections: int, script: Path) -> float:
    """Return the median, over rounds, of the median latency in ms."""
    ask(url, connections, 1, script)
    return statistics.median(ask(url, connections, SECONDS, script)[0] for _ in range(ROUNDS))


def main() -> None:
    """Measure and print."""
    folder = Path(tempfile.mkdtemp(prefix="vllm-nginx-lb-bench-"))
    folder.chmod(0o755)  # nginx's workers give up root
    try:
        hosts = render(
            folder,
            {
                f"{balancer}-{name}": {**settings, "nginx_ingress_balancer": balancer}
                for balancer in ("upstream", "work")
                for name, settings in {"plain": {}, "everything": EVERYTHING}.items()
            },
        )
        script = folder / "post.lua"
        # The key that is compared last.
        script.write_text(POST.replace("Bearer none", f"Bearer {CLIENTS[-1]['key']}"))
        port, tls_port = free_ports(2)
        certify(folder)
        more = (
            f"listen 127.0.0.1:{tls_port} ssl; ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;"
        )
        with contextlib.ExitStack() as stack:
            # The rendered upstream names nodes on 127.0.0.1.
            stack.enter_context(instant_nodes(folder / "nodes", port, ["127.0.0.1"], more))
            rows = {
                "a node": measure(f"http://127.0.0.1:{port}", script),
                "a node, with TLS": measure(f"https://localhost:{tls_port}", script),
            }
            rows |= {name: measure_ingress(folder, host, port, script) for name, host in hosts.items()}
        print(f"{'ms at the median':38}{'1 connection':>14}{'64 connections':>16}")
        for name, row in rows.items():
            print_row(name, row)
        for name in hosts:
            print_row(f"{name}: added", minus(rows[name], rows["a node"]))
            if name.endswith("everything"):
                print_row(f"{name}: added to TLS", minus(rows[name], rows["a node, with TLS"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def print_row(name: str, row: list[float]) -> None:
    """Print a line of the table."""
    print(f"{name:38}" + "".join(f"{value:>15.3f}" for value in row))


def minus(row: list[float], other: list[float]) -> list[float]:
    """Return the differences between two rows."""
    return [a - b for a, b in zip(row, other, strict=True)]


def certify(folder: Path) -> None:
    """Put a certificate for localhost, and its key, into a folder."""
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")


def measure(origin: str, script: Path) -> list[float]:
    """Return the median latency at each number of connections, in ms."""
    return [medians(f"{origin}/v1/completions", connections, script) for connections in (1, 64)]


def measure_ingress(folder: Path, host: Host, node_port: int, script: Path) -> list[float]:
    """Return the median latency through an ingress at each number of connections, in ms."""
    certify(host.root)
    is_tls = "ssl_certificate " in host.text(f"{PARTS}/api_server.conf")
    place = folder / f"run-{host.port}"
    place.mkdir()
    with ingress(place, host, [node_port], batch=[node_port]):
        return measure(f"https://localhost:{host.tls_port}" if is_tls else f"http://127.0.0.1:{host.port}", script)


if __name__ == "__main__":
    main()
