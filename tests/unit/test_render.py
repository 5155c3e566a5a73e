"""The upstream file."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.samples import config, good, refused
from vllm_lb.decide import decide
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.published import SEED, Record, differing_weights, largest_change, record_of_json
from vllm_lb.render import Rendered, Source, source_of
from vllm_lb.schema import build
from vllm_lb.settings import Config
from vllm_lb.text import sha256

if TYPE_CHECKING:
    from vllm_lb.observation import Sample

WORK = {"balancer": "work", "confirm_url": "http://127.0.0.1:18091/generation"}


def published(configuration: Config, template: str | None = None, **samples: Sample) -> Rendered:
    """Return the file for a first tick, and its record."""
    nodes = [node for pool in configuration.pools for node in pool.nodes]
    seen = {node.name: samples.get(node.name, good(node.host)) for node in nodes}
    pools, _ = decide(configuration, seen, {}, set(), 100.0)
    source = source_of(configuration, pools)
    return (Source(source.pools, template) if template else source).render()


def rendered(configuration: Config, template: str | None = None, **samples: Sample) -> str:
    """Return the file for a first tick."""
    return published(configuration, template, **samples).content


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
        "    server 10.0.0.1:18090 weight=100 max_fails=10 fail_timeout=5s; # a",
        "    server [2001:db8::1]:8000 weight=100 max_fails=10 fail_timeout=5s; # b",
        "    server 10.0.0.3:18090 down max_fails=10 fail_timeout=5s; # c",
        "    # All nodes again, for when nginx has left out all of the above: a node that works again serves at once.",
        "    server 10.0.0.1:18090 backup weight=100 max_fails=0;",
        "    server [2001:db8::1]:8000 backup weight=100 max_fails=0;",
        "    # nginx keeps no connection: from 1.29.7 on it does by default.",
        "    keepalive_requests 1;",
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


@pytest.mark.parametrize(
    ("pool", "is_there"),
    [
        ({}, True),
        ({"method": "round_robin"}, True),
        ({"method": "random_two_least_conn"}, False),
        ({"method": "consistent_hash"}, False),
        ({"max_fails": 0}, False),
        ({"nodes": [{"name": "a", "host": "127.0.0.1", "max_conns": 8}]}, False),
    ],
    ids=["least_conn", "round_robin", "random", "hash", "nobody-is-left-out", "max_conns"],
)
def test_nodes_stand_in_for_themselves_where_nginx_can_do_it(pool: dict[str, Any], *, is_there: bool) -> None:
    assert (" backup " in rendered(config("a", pool=pool))) == is_there


def test_a_large_pool_has_a_larger_zone_of_another_name() -> None:
    nodes = [{"name": f"n{i}", "host": f"10.0.{i // 250}.{i % 250 + 1}"} for i in range(500)]
    assert "    zone llm_cluster 1m;\n" in rendered(config(pool={"nodes": nodes[:499]}))
    assert "    zone llm_cluster.2m 2m;\n" in rendered(config(pool={"nodes": nodes}))


def test_keepalive() -> None:
    assert "    keepalive 64;\n    keepalive_timeout 2s;\n}" in rendered(config("a", pool={"keepalive": 64}))


def test_the_generation_names_the_content() -> None:
    first, again = published(config("a", "b")), published(config("a", "b"))
    other = published(config("a", "b"), b=good("127.0.0.2", kv_cache_usage=0.9))
    assert first == again
    assert first.record.generation != other.record.generation
    assert f'default "{first.record.generation}"' in first.content


BOTH = pytest.mark.parametrize("sections", [{}, {"nginx": WORK}], ids=["upstream", "work"])


@BOTH
def test_a_record_tells_weights_from_members(sections: dict[str, Any]) -> None:
    first = published(config("a", "b", **sections)).record
    other = published(config("a", "b", **sections), b=good("127.0.0.2", kv_cache_usage=0.9)).record
    assert first.generation != other.generation
    assert first.membership == other.membership
    assert (first.weights, other.weights) == (
        {"llm_cluster": {"a": 100, "b": 100}},
        {"llm_cluster": {"a": 100, "b": 30}},
    )
    assert largest_change(first, other) == 0.7
    assert first.membership != published(config("a", "c", **sections)).record.membership
    out = published(config("a", "b", **sections), b=good("127.0.0.2", awake=False)).record
    assert first.membership != out.membership, "out of rotation is membership"


def record(generation: str = "a1", **nodes: int) -> Record:
    """Return the record of a file with one pool, with these weights as the file has them."""
    weights = {"llm_cluster": nodes} if nodes else {}
    return Record(generation=generation, sha256="0" * 64, membership="0" * 64, weights=weights)


HASHED = {"method": "consistent_hash"}


@pytest.mark.parametrize(
    ("pool", "sections", "live", "differing"),
    [
        ({}, {}, record(a=100, b=30), {}),
        ({}, {}, record(a=60, b=30), {"llm_cluster": {"a": 60}}),
        ({}, {}, record(a=100), {"llm_cluster": {"b": 0}}),  # b is new
        ({}, {}, record(a=100, b=30, former=10, out=0), {"llm_cluster": {"former": 10}}),  # removed, and still served
        ({}, {}, record(SEED), None),  # it may have the nodes of the balancer before
        ({}, {}, record(), None),  # a backup of a release without records
        ({}, {}, None, None),
        (HASHED, {}, record(a=10, b=3), {}),  # upstream.conf has tenths
        (HASHED, {}, record(a=4, b=3), {"llm_cluster": {"a": 40}}),
        (HASHED, {}, record(a=60, b=3), {"llm_cluster": {"a": 100}}),  # of before the method changed: within the range
        (HASHED, {"nginx": WORK}, record(a=100, b=30), {}),  # weights.json has no tenths
    ],
)
def test_live_weights_that_differ_from_the_decided_ones(
    pool: dict[str, Any], sections: dict[str, Any], live: Record | None, differing: dict[str, dict[str, int]] | None
) -> None:
    configuration = config("a", "b", **sections)
    configuration = dataclasses.replace(configuration, pools=(dataclasses.replace(configuration.pools[0], **pool),))
    samples = {"a": good("127.0.0.1"), "b": good("127.0.0.2", kv_cache_usage=0.9)}
    pools, _ = decide(configuration, samples, {}, set(), 100.0)
    assert differing_weights(configuration, pools, live) == differing
    own = source_of(configuration, pools).render().record
    assert differing_weights(configuration, pools, own) == {}


def test_a_pool_that_was_removed_is_still_live() -> None:
    configuration = config("a")
    pools, _ = decide(configuration, {"a": good()}, {}, set(), 100.0)
    live = dataclasses.replace(record(a=100), weights={"llm_cluster": {"a": 100}, "former": {"z": 60}})
    assert differing_weights(configuration, pools, live) == {"former": {"z": 60}}
    assert differing_weights(configuration, (), live) is None, "nothing was decided"


@BOTH
def test_a_record_is_of_one_content_alone(sections: dict[str, Any]) -> None:
    found = published(config("a", **sections))
    assert found.record.is_of(found.content)
    assert not found.record.is_of(found.content.replace("100", "101"))
    assert not found.record.is_of("")
    assert record_of_json(json.loads(found.record.to_json())) == found.record


@pytest.mark.parametrize("raw", [None, [], {}, {"version": 2}, {"version": 1, "generation": "a", "sha256": "b"}])
def test_a_damaged_record_is_none(raw: object) -> None:
    assert record_of_json(raw) is None


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


def test_the_file_that_lua_reads() -> None:
    nodes = [{"name": "a", "host": "10.0.0.1"}, {"name": "b", "host": "2001:db8::1", "port": 8000, "drain": True}]
    pools = [
        {"name": name, "policy": "static", "models": models, "nodes": nodes}
        for name, models in (("one", ["m", "a/b-7b <&'>"]), ("two", []))
    ]
    problems: list[str] = []
    configuration = build(Config, {"pools": pools, "nginx": WORK}, "", problems)
    assert not problems
    file = published(configuration)
    found = json.loads(file.content)
    assert (found["version"], found["generation"]) == (1, file.record.generation)
    assert found.pop("sha256") == sha256(json.dumps(found))
    assert [(pool["name"], pool["models"]) for pool in found["pools"]] == [("one", ["m", "a/b-7b <&'>"]), ("two", [])]
    assert found["pools"][0]["nodes"] == [
        {"name": "a", "address": "10.0.0.1", "port": 18090, "weight": 100, "max_conns": 0, "state": "up"},
        {"name": "b", "address": "2001:db8::1", "port": 8000, "weight": 0, "max_conns": 0, "state": "drained"},
    ]


def test_a_pool_without_addresses_is_empty_for_lua() -> None:
    configuration = config(pool={"nodes": [{"name": "a", "host": "a.example"}]}, nginx=WORK)
    assert json.loads(rendered(configuration, a=refused(None)))["pools"][0]["nodes"] == []
