"""The upstream file."""

from __future__ import annotations

from typing import Any

import pytest

import vllm_nginx_lb as lb
from tests.unit.samples import config, good, refused


def rendered(configuration: lb.Config, template: str = lb.UPSTREAM_TEMPLATE, **samples: lb.Sample) -> str:
    """Return the file for a first tick."""
    nodes = [node for pool in configuration.pools for node in pool.nodes]
    seen = {node.name: samples.get(node.name, good(node.host)) for node in nodes}
    pools, _ = lb.decide(configuration, seen, {}, set(), 100.0)
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
    with pytest.raises(lb.FailureError) as failure:
        rendered(config("a"), template)
    assert str(failure.value).startswith(words)
    assert failure.value.code == lb.EXIT_USAGE


def test_a_custom_template_sees_every_pool() -> None:
    pools: list[dict[str, Any]] = [
        {"name": "chat", "nodes": [{"name": "a", "host": "10.0.0.1"}]},
        {"name": "embed", "nodes": [{"name": "b", "host": "10.0.0.2"}]},
    ]
    problems: list[str] = []
    configuration = lb.build(lb.Config, {"pools": pools}, "", problems)
    text = rendered(configuration, "{% for p in pools %}{{ p.name }}:{{ p.servers[0].address }} {% endfor %}")
    assert text.endswith("chat:10.0.0.1 embed:10.0.0.2 ")
