"""What TLS, client keys, limits and pools add to a request, with the files that the role writes.

    python -m benchmarks.ingress

The nodes answer at once, so that all there is to see is nginx; the load is wrk. Prints the latency that each ingress
adds to that of a node, at 1 and 64 connections, for each balancer: plain, and with everything that can be switched on,
for a hundred clients. TLS is by connections that stay open, as OpenAI's clients keep theirs.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from pathlib import Path

import trustme

from benchmarks.overhead import POST, ask, nodes_for_nothing
from benchmarks.real import free_ports
from tests.integration.rendered import Host, ingress, render

CLIENTS = [{"name": f"client-{i}", "key": f"key-of-client-number-{i:03}"} for i in range(100)]
EVERYTHING = {
    "nginx_ingress_server_names": ["localhost"],
    "nginx_ingress_tls_enabled": True,
    "nginx_ingress_clients": CLIENTS,
    "nginx_ingress_requests_per_minute": 1_000_000,
    "nginx_ingress_requests_burst": 1000,
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
        # The client whose key is compared last.
        script.write_text(POST.replace("Bearer none", f"Bearer {CLIENTS[-1]['key']}"))
        (port,) = free_ports(1)
        with contextlib.ExitStack() as stack:
            # The rendered upstream has nodes on 127.0.0.1, and so one of them here.
            backends = stack.enter_context(nodes_for_nothing(folder / "nodes", port, hosts=["127.0.0.1"]))
            direct = {n: medians(f"http://127.0.0.1:{backends[0].port}/v1/completions", n, script) for n in (1, 64)}
            print(f"{'added to a node':22}{'1 connection':>16}{'64 connections':>16}")
            print(f"{'a node itself':22}{direct[1]:>13.3f} ms{direct[64]:>13.3f} ms")
            for name, host in hosts.items():
                print(
                    f"{name:22}"
                    + "".join(f"{added:>13.3f} ms" for added in measure(folder, host, port, direct, script))
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, host: Host, node_port: int, direct: dict[int, float], script: Path) -> list[float]:
    """Return what an ingress adds at each number of connections, in ms."""
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(host.root / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(host.root / "tls.crt")
    is_tls = "ssl_certificate " in host.text("etc/nginx/conf.d/vllm-nginx-lb.conf")
    origin = f"https://localhost:{host.tls_port}" if is_tls else f"http://127.0.0.1:{host.port}"
    place = folder / f"run-{host.port}"
    place.mkdir()
    with ingress(place, host, [node_port], batch=[node_port]):
        return [medians(f"{origin}/v1/completions", n, script) - before for n, before in direct.items()]


if __name__ == "__main__":
    main()
