"""The roles' files, checked by the programs that read them: nginx, systemd and the script."""

from __future__ import annotations

import base64
import json
import re
import shutil
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml

from tests.integration.conftest import free_port, wait_for
from tests.integration.rendered import (
    TEMPLATES,
    UPSTREAM,
    Host,
    Node,
    ask,
    ingress,
    nginx_command,
    render,
    serve,
)
from tests.playbook import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
SCRIPT = ROOT / "files" / "vllm_nginx_lb.py"
# Two ingress hosts: one with the defaults, one with many other settings.
TUNED = {
    "nginx_ingress_server_names": ["llm.example", "*.llm.example", "127.0.0.1"],
    "nginx_ingress_upstream_headers_enabled": True,
    "nginx_ingress_next_upstream_500_enabled": True,
    "nginx_ingress_client_max_body_size_mib": 1,
    "vllm_nginx_lb_pools": {"batch": {"policy": "static", "max_fails": 0}},
    "vllm_nginx_lb_stale_after_seconds": "60",
    "vllm_nginx_lb_interval_seconds": 20,
}
WORK: dict[str, Any] = {}  # which is the default
STOCK = {"nginx_ingress_balancer": "upstream"}
WORK_TUNED = TUNED | {"nginx_ingress_work_affinity": "session", "nginx_ingress_work_keepalive": 0}
# The weights of a host that changes from the balancer work to upstream
FORMER_WEIGHTS = json.dumps(
    {
        "pools": [
            {"name": "batch", "nodes": [{"address": "192.0.2.9", "port": 8000, "weight": 0}]},
            {"name": "llm_cluster", "nodes": [{"address": "2001:db8::2", "port": 8000, "weight": 55}]},
        ]
    }
).encode()
SHOWN = {
    "nginx_ingress_tls_enabled": True,
    "nginx_ingress_server_names": ["*.llm.example"],
    "keepalived_address": "192.0.2.100/24",
}
SECRET = {"vllm_nginx_lb_api_key": "s3cret", "vllm_nginx_lb_upstream_template_file": "mine.j2"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make the certificate authority that the host "tls" trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> dict[str, Host]:
    """Let Ansible write every template of the roles, for each ingress host."""
    folder = tmp_path_factory.mktemp("rendered")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    tls = {"nginx_ingress_upstream_scheme": "https", "nginx_ingress_upstream_ca_file": str(folder / "ca.pem")}
    settings: dict[str, dict[str, Any]] = {
        "plain": STOCK,
        "tuned": STOCK | TUNED,
        "work": WORK,
        "work-tuned": WORK_TUNED,
        "secret": STOCK | SECRET | SHOWN,
        "tls": STOCK | tls,
        "work-tls": tls,
        "back": STOCK | {"__nginx_ingress_former_weights": {"content": base64.b64encode(FORMER_WEIGHTS).decode()}},
    }
    return render(folder, settings)


# --- config.yml ---------------------------------------------------------------------------------------------------

CONFIG = "etc/vllm-nginx-lb/config.yml"


def test_config_is_what_the_inventory_says_and_the_script_takes_it(hosts: dict[str, Host]) -> None:
    host = hosts["tuned"]
    checked = subprocess.run(
        [sys.executable, SCRIPT, "--config", host.root / CONFIG, "check-config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr

    written = yaml.safe_load(host.text(CONFIG))
    assert written == yaml.safe_load(checked.stdout), "a key is left to the script's own default"
    assert written["health"]["stale_after_seconds"] == 60
    assert written["nginx"]["confirm_url"] == f"http://127.0.0.1:{host.status_port}/generation"
    batch, cluster = written["pools"]
    assert (batch["name"], batch["policy"], batch["max_fails"]) == ("batch", "static", 0)
    assert (cluster["name"], cluster["policy"], cluster["max_fails"]) == ("llm_cluster", "capacity", 10)
    assert cluster["nodes"] == [
        {"name": "node-a", "host": "192.0.2.1", "port": 18090, "scheme": "http", "capacity": 1.0}
        | {"max_conns": 0, "drain": False},
        {"name": "node-b", "host": "2001:db8::2", "port": 18090, "scheme": "http", "capacity": 0.5}
        | {"max_conns": 0, "drain": True},
    ]
    assert batch["nodes"][0]["port"] == 8000


def test_secrets_and_templates_are_referred_to_by_path(hosts: dict[str, Host]) -> None:
    written = hosts["secret"].text(CONFIG)
    assert "s3cret" not in written
    assert yaml.safe_load(written)["scrape"]["api_key_file"] == "/etc/vllm-nginx-lb/api_key"
    assert yaml.safe_load(written)["nginx"]["upstream_template"] == "/etc/vllm-nginx-lb/upstream.conf.j2"


def test_the_script_knows_what_to_ask_of_its_own_host(hosts: dict[str, Host]) -> None:
    asked = {name: yaml.safe_load(hosts[name].text(CONFIG))["own_host"] for name in ("plain", "secret")}
    nothing = {"tls_port": None, "tls_name": None, "floating_address": None}
    shown = {
        "tls_port": hosts["secret"].tls_port,
        "tls_name": "any.llm.example",
        "floating_address": "192.0.2.100",
    }
    pid_file = {"keepalived_pid_file": "/run/keepalived.pid"}
    assert asked == {"plain": nothing | pid_file, "secret": shown | pid_file}


# --- units --------------------------------------------------------------------------------------------------------

SERVICE, TIMER = TEMPLATES["vllm_nginx_lb"][1:]


def test_sandbox_is_tight(hosts: dict[str, Host]) -> None:
    program = shutil.which("systemd-analyze")
    assert program, "this test needs systemd"
    # The threshold is in tenths: exit code 1 when the exposure is above 1.6.
    result = subprocess.run(
        [program, "security", "--offline=true", "--threshold=16", "--no-pager", str(hosts["plain"].root / SERVICE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_units_follow_the_interval(hosts: dict[str, Host]) -> None:
    assert {"OnBootSec=20s", "OnUnitActiveSec=20s", "AccuracySec=100ms"} <= set(hosts["tuned"].text(TIMER).splitlines())
    assert "TimeoutStartSec=19s" in hosts["tuned"].text(SERVICE).splitlines()
    assert "TimeoutStartSec=9s" in hosts["plain"].text(SERVICE).splitlines()


# --- nginx --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "tuned", "work", "work-tuned"])
def test_seed_and_server_are_valid_for_nginx(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    result = subprocess.run(nginx_command(tmp_path, hosts[name], "-t"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr
    assert "seed" in hosts[name].text(UPSTREAM)


def test_a_host_that_had_the_balancer_work_begins_with_its_nodes(tmp_path: Path, hosts: dict[str, Host]) -> None:
    seed = hosts["back"].text(UPSTREAM)
    assert re.findall(r"server (.*);", seed) == ["192.0.2.9:8000 down", "[2001:db8::2]:8000 weight=55"]
    result = subprocess.run(nginx_command(tmp_path, hosts["back"], "-t"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["plain", "work"])
def test_request_reaches_a_node_by_exact_path_only(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    with serve(Node()) as node, ingress(tmp_path, hosts[name], [node.port]) as entry:
        forged = {"Host": "evil.example", "X-Request-Id": "forged", "Authorization": "Bearer k", "Connection": "close"}
        answer = ask(f"{entry.url}/v1/chat/completions?q=secret", b"{}", forged)
        assert answer.status == 200
        method, path, headers, body = node.seen[0]
        assert (method, path, body) == ("POST", "/v1/chat/completions?q=secret", b"{}")
        assert headers["Host"] == "vllm"
        assert headers["Authorization"] == "Bearer k"
        assert headers["Connection"] is None
        assert headers["X-Request-Id"] == answer.headers["X-Request-Id"]
        assert answer.headers.get_all("X-Request-Id") not in (["forged"], ["made-by-the-node"])
        assert answer.headers["X-Upstream-Addr"] is None

        for path in ("/", "/v1/", "/v1/load_lora_adapter", "/metrics", "/v1/models/", "/v1/models/x", "/sleep"):
            refused = ask(entry.url + path)
            assert refused.status == 404
            assert refused.headers["Content-Type"] == "application/json"
            assert json.loads(refused.body)["error"]["code"] == "not_found"
        assert len(node.seen) == 1

        assert ask(f"{entry.url}/health").body == b"ok\n"
        assert ask(f"{entry.url}//v1/models").status == 200, "nginx merges slashes"

        entries = entry.log()
        assert entries[0]["request_id"] == answer.headers["X-Request-Id"]
        assert entries[0]["path"] == "/v1/chat/completions"
        assert entries[0]["upstream_addr"] == f"127.0.0.1:{node.port}"
        assert entries[0]["upstream_status"] == "200"
        assert "secret" not in json.dumps(entries)
        assert "/health" not in {each["path"] for each in entries}


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize("name", ["tuned", "work-tuned"])
def test_post_is_tried_on_another_node_after_500_to_503_and_after_a_broken_connection(
    tmp_path: Path, hosts: dict[str, Host], name: str, status: int
) -> None:
    dead = free_port()
    with (
        serve(Node(status=status)) as busy,
        serve(Node()) as node,
        ingress(tmp_path, hosts[name], [dead, busy.port, node.port]) as entry,
    ):
        for number in range(30):
            answer = ask(f"{entry.url}/v1/completions", b'{"n": %d}' % number)
            assert answer.status == 200
            assert answer.headers["X-Upstream-Addr"].endswith(f"127.0.0.1:{node.port}")
    assert busy.seen


@pytest.mark.parametrize("name", ["plain", "work"])
def test_a_node_cannot_send_a_request_elsewhere(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    with serve(Node(redirect="/health")) as node, ingress(tmp_path, hosts[name], [node.port]) as entry:
        assert json.loads(ask(f"{entry.url}/v1/completions", b"{}").body) == {"port": node.port}
        if name == "work":
            wait_for(lambda: json.loads(ask(f"{entry.status_url}/work").body)["nodes"][0]["streams"] == 0)


@pytest.mark.parametrize("name", ["plain", "work"])
def test_the_access_log_is_json_whatever_is_asked(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    with serve(Node()) as node, ingress(tmp_path, hosts[name], [node.port]) as entry:
        for path in ("/%ff", "/%22%5c%0a%00x", "/v1/models"):
            ask(entry.url + path)
        wait_for(lambda: [each["path"] for each in entry.log()] == ["", "", "/v1/models"])


@pytest.mark.parametrize("status", [429, 500, 504])
def test_other_answers_of_a_node_are_the_clients(tmp_path: Path, hosts: dict[str, Host], status: int) -> None:
    with serve(Node(status=status)) as node, ingress(tmp_path, hosts["plain"], [node.port, node.port]) as entry:
        answer = ask(f"{entry.url}/v1/completions", b"{}")
        assert answer.status == status
        assert json.loads(answer.body) == {"port": node.port}
    assert len(node.seen) == 1


@pytest.mark.parametrize("name", ["tuned", "work-tuned"])
def test_what_nginx_answers_itself_is_json(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    dead = free_port()
    with ingress(tmp_path, hosts[name], [dead]) as entry:
        no_node = ask(f"{entry.url}/v1/completions", b"{}")
        assert (no_node.status, json.loads(no_node.body)["error"]["code"]) == (502, "bad_gateway")
        assert no_node.headers["X-Request-Id"]
        too_large = ask(f"{entry.url}/v1/completions", b"x" * (2**20 + 1))
        assert (too_large.status, json.loads(too_large.body)["error"]["code"]) == (413, "request_too_large")
        assert entry.log()[0]["upstream_addr"].startswith(f"127.0.0.1:{dead}")


def certified(issuer: trustme.CA, name: str) -> ssl.SSLContext:
    """Return what a server with a certificate for this name needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("host", ["tls", "work-tls"])
def test_requests_go_to_nodes_with_the_right_certificate(
    tmp_path: Path, hosts: dict[str, Host], authority: trustme.CA, host: str
) -> None:
    with serve(Node(), certified(authority, "vllm")) as node, ingress(tmp_path, hosts[host], [node.port]) as entry:
        assert ask(f"{entry.url}/v1/completions", b"{}").status == 200
        assert node.seen[0][3] == b"{}"


@pytest.mark.parametrize("host", ["tls", "work-tls"])
@pytest.mark.parametrize(("ours", "name"), [(False, "vllm"), (True, "other")], ids=["issuer", "name"])
def test_requests_go_to_no_node_with_a_wrong_certificate(
    tmp_path: Path, hosts: dict[str, Host], authority: trustme.CA, host: str, name: str, *, ours: bool
) -> None:
    certificate = certified(authority if ours else trustme.CA(), name)
    with serve(Node(), certificate) as node, ingress(tmp_path, hosts[host], [node.port]) as entry:
        assert ask(f"{entry.url}/v1/completions", b"{}").status == 502
        assert node.seen == []
        assert "SSL" in (tmp_path / "error.log").read_text(encoding="utf-8")


def test_status_server_tells_the_generation(tmp_path: Path, hosts: dict[str, Host]) -> None:
    with ingress(tmp_path, hosts["plain"], [free_port()]) as entry:
        assert ask(f"{entry.status_url}/generation").body.split()[0] == b"a" * 64
        assert b"Active connections" in ask(f"{entry.status_url}/stub_status").body
        assert ask(f"{entry.status_url}/nothing").status == 404
        assert ask(f"{entry.url}/generation").status == 404
