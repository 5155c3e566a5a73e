"""What clients of each ingress can do with the openai library, and what they are told."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import entries
import openai
import pytest
import stack

each_ingress = pytest.mark.parametrize("host", entries.HOSTS)


@each_ingress
def test_openai_works_unchanged(host: str) -> None:
    with entries.client(entries.HOSTS[host]) as user:
        assert entries.complete(user).choices[0].message.content == "word " * 4
        chunks = list(entries.complete(user, stream=True))
        assert sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices) == 4
        assert user.completions.create(model="sim", prompt="hello", max_tokens=3).choices[0].text == "word " * 3
        assert len(user.embeddings.create(model="sim", input=["a", "b"]).data) == 2
        assert [model.id for model in user.models.list()] == ["sim"]


@each_ingress
def test_a_body_of_twenty_megabytes_is_read(host: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 20_000_000}}
    with entries.client(entries.HOSTS[host]) as user:
        assert entries.complete(user, [{"type": "text", "text": "what is it?"}, image]).usage.prompt_tokens > 256


@each_ingress
def test_openai_raises_its_own_exceptions(host: str) -> None:
    address = entries.HOSTS[host]
    with entries.client(address, "a-key-of-nobody") as unknown, pytest.raises(openai.AuthenticationError):
        entries.complete(unknown)
    with entries.client(address) as user:
        with pytest.raises(openai.NotFoundError):
            user.files.list()
        with pytest.raises(openai.NotFoundError):
            entries.complete(user, extra_headers={"X-Model": "unheard-of"})
        with pytest.raises(openai.BadRequestError):
            user.chat.completions.create(model="sim", messages=[], max_tokens=1)


@each_ingress
def test_a_client_with_a_rate_of_its_own_is_told_when_to_come_back(host: str) -> None:
    with entries.client(entries.HOSTS[host], "team-b") as user:
        entries.complete(user)
        entries.complete(user)
        with pytest.raises(openai.RateLimitError) as limited:
            entries.complete(user)
        assert limited.value.response.headers["retry-after"] == "30"


@each_ingress
def test_pools_have_nodes_of_their_own(host: str) -> None:
    address = entries.HOSTS[host]
    with entries.client(address) as user, entries.client(address, path="/batch/v1") as batch:
        assert {entries.complete(user).system_fingerprint for _ in range(20)} == {"sim-a", "sim-b"}
        assert entries.complete(batch).system_fingerprint == "sim-c"
        assert entries.complete(user, extra_headers={"X-Model": "big"}).system_fingerprint == "sim-c"


@each_ingress
def test_a_session_stays_on_one_node(host: str) -> None:
    found: Counter[Any] = Counter()
    with entries.client(entries.HOSTS[host]) as user:
        for session in range(12):
            headers = {"X-Session-Id": f"session-{session}"}
            nodes = {entries.complete(user, extra_headers=headers).system_fingerprint for _ in range(4)}
            assert len(nodes) == 1
            found.update(nodes)
    assert set(found) == {"sim-a", "sim-b"}, "sessions are spread"


@each_ingress
def test_a_node_that_is_gone_is_not_noticed(host: str) -> None:
    stack.run("sim-a", "systemctl", "kill", "--signal=KILL", "vllm-sim.service")
    stack.run("sim-a", "systemctl", "stop", "vllm-sim.service")
    try:
        with entries.client(entries.HOSTS[host]) as user:
            assert {entries.complete(user).system_fingerprint for _ in range(20)} == {"sim-b"}
    finally:
        stack.run("sim-a", "systemctl", "start", "vllm-sim.service")
    stack.wait_until(lambda: stack.nodes(host)["node-a"]["state"] == "up", 120, "node-a is up")


@each_ingress
def test_the_log_names_the_client_and_has_no_key(host: str) -> None:
    log = "/var/log/nginx/upstream_trace.log"
    with entries.client(entries.HOSTS[host]) as user:
        raw = user.models.with_raw_response.list()
        wanted = raw.headers["x-request-id"]
        stack.wait_until(lambda: wanted in stack.run(host, "cat", log), 20, "the line of the request")
    lines = [json.loads(line) for line in stack.run(host, "cat", log).splitlines()]
    assert next(line["client_name"] for line in lines if line["request_id"] == wanted) == "team-a"
    assert not [secret for secret in entries.SECRETS if secret in json.dumps(lines)]

    stack.run(host, "logrotate", "--force", "/etc/logrotate.d/nginx")
    with entries.client(entries.HOSTS[host]) as user:
        user.models.list()
        stack.wait_until(lambda: stack.run(host, "cat", log), 20, "a line after the rotation")


@each_ingress
def test_only_root_reads_the_keys(host: str) -> None:
    names = ("parts/clients.conf", "parts/upstream_api_key.conf", "tls.key")
    files = [f"/etc/nginx/vllm-nginx-lb/{name}" for name in names]
    assert set(stack.run(host, "stat", "--format=%a %U", *files).splitlines()) == {"600 root"}
    stack.run(host, "systemctl", "stop", "vllm-nginx-lb.timer", "vllm-nginx-lb.service")  # it replaces files meanwhile
    try:
        readable = stack.run(host, "sh", "-c", "find /etc/nginx /etc/vllm-nginx-lb -type f -perm -o=r -exec cat {} +")
    finally:
        stack.run(host, "systemctl", "start", "vllm-nginx-lb.timer")
    assert not [secret for secret in entries.SECRETS if secret in readable]


@each_ingress
def test_the_sandboxed_tick_can_test_the_whole_configuration(host: str) -> None:
    stack.run(host, "systemctl", "start", "vllm-nginx-lb.service")
    assert stack.status(host=host)["error"] is None


@each_ingress
def test_a_certificate_authority_can_look_for_its_challenge(host: str) -> None:
    stack.run(host, "sh", "-c", "echo proof > /var/www/acme/.well-known/acme-challenge/token")
    fetch = "import urllib.request as u; print(u.urlopen(u.Request('http://127.0.0.1/.well-known/acme-challenge/token',"
    found = stack.run(host, "python3", "-c", f"{fetch} headers={{'Host': '{entries.NAME}'}})).read().decode())")
    assert found.strip() == "proof"
