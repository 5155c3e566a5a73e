"""Clients of the scenario's ingress hosts: with TLS, by the name in the certificates, at any address."""

from __future__ import annotations

import contextlib
import functools
import ssl
from typing import TYPE_CHECKING, Any

import openai
import stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

SETTINGS = stack.INVENTORY["ingress"]["vars"]
HOSTS: dict[str, str] = {name: host["container_ip"] for name, host in stack.INVENTORY["ingress"]["hosts"].items()}
FLOATING = stack.INGRESS["keepalived_address"].partition("/")[0]
KEYS = {client["name"]: client["key"] for client in SETTINGS["nginx_ingress_clients"]}
SECRETS = [*KEYS.values(), stack.INVENTORY["all"]["vars"]["node_api_key"]]
NAME = "llm.test"


@functools.cache
def certificates() -> str:
    """Return the certificates that the ingress hosts made. They are kept here, because a dead host has none."""
    return "".join(stack.run(host, "cat", "/etc/nginx/vllm-nginx-lb/tls.crt") for host in HOSTS)


def trust() -> ssl.SSLContext:
    """Return a context that trusts each ingress."""
    return ssl.create_default_context(cadata=certificates())


def by_name(request: httpx2.Request) -> None:
    """Give a request to an address the name of the site, in the TLS handshake and in Host."""
    request.extensions["sni_hostname"] = NAME
    request.headers["Host"] = NAME


@contextlib.contextmanager
def client(address: str, name: str = "team-a", path: str = "/v1", **settings: Any) -> Iterator[openai.OpenAI]:
    """Let the openai library speak to an ingress as one of its clients."""
    http = openai.DefaultHttpxClient(verify=trust(), trust_env=False, event_hooks={"request": [by_name]})
    options = {"api_key": KEYS.get(name, name), "max_retries": 0, "timeout": 120, **settings}
    with openai.OpenAI(base_url=f"https://{address}{path}", http_client=http, **options) as it:
        yield it


def complete(user: openai.OpenAI, content: Any = "hello", **extra: Any) -> Any:
    """Send one small request."""
    return user.chat.completions.create(
        model="sim", max_tokens=4, messages=[{"role": "user", "content": content}], **extra
    )


def play(*arguments: str) -> str:
    """Run a playbook on the scenario's site, which must succeed, and return what it said."""
    done = stack.play("-i", stack.SCENARIO / "inventory" / "hosts.yml", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout
