"""The upstream file."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.unit.samples import config, good, refused
from vllm_lb.decide import decide
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.observation import Sample
from vllm_lb.schema import build
from vllm_lb.settings import Config


def rendered(configuration: Config, template: str = lb.UPSTREAM_TEMPLATE, **samples: Sample) -> str:
    """Return the file for a first tick."""
    nodes = [node for pool in configuration.pools for node in pool.nodes]
    seen = {node.name: samples.get(node.name, good(node.host)) for node in nodes}
    pools, _ = decide(configuration, seen, {}, set(), 100.0)
    return lb.render(lb.template_context(configuration, pools), template)


def test_the_whole_file() -> None:
    nodes = [
        {"name": "a", "host": "10.0.0.1"},
        {"name": "b", "host": "2001:db8::1", "port": 8000},
        {"name": "c", "host": "10.0.0.3", "drain": True},
    ]
    text = rendered(config(pool={"nodes": nodes}))
    assert text.splitlines()[3:] == [
        "upstream llm_cluster {",
        "    zone llm_cluster 1m;",
        "    least_conn;",
        "    server 10.0.0.1:18090 weight=100 max_fails=10 fail_timeout=60s; # a",
        "    server [2001:db8::1]:8000 weight=100 max_fails=10 fail_timeout=60s; # b",
        "    server 10.0.0.3:18090 down max_fails=10 fail_timeout=60s; # c",
        "    keepalive 64;",
        "    keepalive_timeout 2s;",
        "}",
    ]


@pytest.mark.parametrize(
    ("method", "directive"),
    [("least_conn", "    least_conn;"), ("random_two_least_conn", "    random two least_conn;"), ("round_robin", None)],
)
def test_methods(method: str, directive: str | None) -> None:
    lines = rendered(config("a", pool={"method": method})).splitlines()
    found = [line for line in lines if line in ("    least_conn;", "    random two least_conn;")]
    assert found == ([directive] if directive else [])


def test_consistent_hash_keeps_sessions_together_and_scatters_the_rest() -> None:
    pool = {"method": "consistent_hash", "hash_header": "X-Chat-Id"}
    text = rendered(config("a", "b", pool=pool), b=good("127.0.0.2", kv_cache_usage=0.9))
    assert (
        'map $http_x_chat_id $vllm_nginx_lb_session_llm_cluster { "" $request_id; default $http_x_chat_id; }\n'
        "upstream llm_cluster {\n    zone llm_cluster 1m;\n    hash $vllm_nginx_lb_session_llm_cluster consistent;\n"
    ) in text
    assert re.findall(r"weight=(\d+)", text) == ["10", "3"], "a tenth of the weights"


def test_a_node_with_max_conns() -> None:
    nodes = [{"name": "a", "host": "127.0.0.1", "max_conns": 8}, {"name": "b", "host": "127.0.0.2"}]
    settings = config(pool={"nodes": nodes})
    assert "server 127.0.0.1:18090 weight=100 max_conns=8 max_fails=10" in rendered(settings)
    assert rendered(settings).count("max_conns") == 1


def test_without_keepalive() -> None:
    assert "keepalive" not in rendered(config("a", pool={"keepalive": 0}))


def test_the_generation_names_the_content() -> None:
    first, again = rendered(config("a", "b")), rendered(config("a", "b"))
    other = rendered(config("a", "b"), b=good("127.0.0.2", kv_cache_usage=0.9))
    assert first == again
    assert lb.generation_of(first) != lb.generation_of(other)
    assert lb.membership(first) == lb.membership(other)
    assert lb.membership(first) != lb.membership(rendered(config("a", "c")))


def test_a_change_by_hand_shows() -> None:
    text = rendered(config("a"))
    assert lb.is_intact(text)
    assert not lb.is_intact(text.replace("weight=100", "weight=101"))
    assert not lb.is_intact("")


def test_a_node_without_an_address_is_left_out() -> None:
    configuration = config(pool={"nodes": [{"name": "a", "host": "10.0.0.1"}, {"name": "b", "host": "b.example"}]})
    assert "# b" not in rendered(configuration, b=refused(None))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ nothing }}", "nginx.upstream_template: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "nginx.upstream_template: division by zero"),
        ("\n{% for %}", "nginx.upstream_template: line 2: "),
    ],
)
def test_a_faulty_template(template: str, words: str) -> None:
    with pytest.raises(FailureError) as failure:
        rendered(config("a"), template)
    assert str(failure.value).startswith(words)
    assert failure.value.code == EXIT_USAGE


def test_a_custom_template_sees_every_pool() -> None:
    pools: list[dict[str, Any]] = [
        {"name": "chat", "nodes": [{"name": "a", "host": "10.0.0.1"}]},
        {"name": "embed", "nodes": [{"name": "b", "host": "10.0.0.2"}]},
    ]
    problems: list[str] = []
    configuration = build(Config, {"pools": pools}, "", problems)
    text = rendered(configuration, "{% for p in pools %}{{ p.name }}:{{ p.servers[0].address }} {% endfor %}")
    assert text.endswith("chat:10.0.0.1 embed:10.0.0.2 ")


WORK = {"balancer": "work", "confirm_url": "http://127.0.0.1:18091/generation"}


def weights_json(*names: str, **samples: Sample) -> str:
    """Return what Lua would read."""
    return rendered(config(*names, nginx=WORK), lb.WEIGHTS_TEMPLATE, **samples)


def test_the_file_that_lua_reads() -> None:
    nodes = [{"name": "a", "host": "10.0.0.1"}, {"name": "b", "host": "2001:db8::1", "port": 8000, "drain": True}]
    pools = [
        {"name": name, "policy": "static", "models": models, "nodes": nodes}
        for name, models in (("one", ["m", "a/b-7b <&'>"]), ("two", []))
    ]
    problems: list[str] = []
    configuration = build(Config, {"pools": pools, "nginx": WORK}, "", problems)
    assert not problems
    text = rendered(configuration, lb.WEIGHTS_TEMPLATE)
    assert lb.is_intact(text)
    found = json.loads(text)
    assert (found["version"], found["generation"]) == (1, lb.generation_of(text))
    assert [(pool["name"], pool["models"]) for pool in found["pools"]] == [("one", ["m", "a/b-7b <&'>"]), ("two", [])]
    assert found["pools"][0]["nodes"] == [
        {"name": "a", "address": "10.0.0.1", "port": 18090, "weight": 100, "max_conns": 0, "state": "up"},
        {"name": "b", "address": "2001:db8::1", "port": 8000, "weight": 0, "max_conns": 0, "state": "drained"},
    ]


def test_in_the_file_that_lua_reads_weights_are_told_from_members_too() -> None:
    first, other = weights_json("a", "b"), weights_json("a", "b", b=good("127.0.0.2", kv_cache_usage=0.9))
    assert lb.generation_of(first) != lb.generation_of(other)
    assert lb.membership(first) == lb.membership(other)
    assert lb.membership(first) != lb.membership(weights_json("a", "c"))
    assert not lb.is_intact(first.replace('"weight": 100', '"weight": 99'))


def test_a_pool_without_addresses_is_empty_for_lua() -> None:
    configuration = config(pool={"nodes": [{"name": "a", "host": "a.example"}]}, nginx=WORK)
    assert json.loads(rendered(configuration, lb.WEIGHTS_TEMPLATE, a=refused(None)))["pools"][0]["nodes"] == []
