"""The balancer `work`: a real nginx with its Lua module, the Lua of the role, and the script that publishes weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import LOAD_LUA, LUA, FakeNode, Stack, answers, fetch, free_port, running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

POOL = "llm_cluster"
# Settings that differ from the defaults in declared_settings.lua: without slow start, nodes have their full weight at
# once. A prompt is pending for a minute, unless a test lets it be computed before.
SETTINGS: dict[str, Any] = {"ramp_seconds": 0, "prefill_bytes_per_second": 1, "backoff": {"longest": 4}}
PHASES = 'require("vllm_nginx_lb.phases")'


class StreamingNode(FakeNode):
    """A node that answers each POST with its name, in pieces, as fast as the test lets it."""

    def __init__(self, name: str, address: str) -> None:
        """Start with nothing held."""
        super().__init__(name, address)
        self.begin, self.go_on = threading.Event(), threading.Event()
        self.begin.set()
        self.go_on.set()
        self.headers_first = False
        self.status = 200
        self.dies = False
        self.posts = 0
        self.posted = self.stream

    def stop(self) -> None:
        """Refuse connections from now on, and release all held answers."""
        self.begin.set()
        self.go_on.set()
        super().stop()

    def stream(self, handler: BaseHTTPRequestHandler) -> None:
        """Send headers, wait to begin, send a piece, wait to go on, send the rest."""
        self.posts += 1
        with contextlib.suppress(OSError):
            self.answer_in_pieces(handler)

    def answer_in_pieces(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer, while the client is there."""
        if not self.headers_first:
            self.begin.wait(30)
        handler.send_response(self.status)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()
        self.begin.wait(30)
        piece = self.name.encode()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.flush()
        if self.dies:  # as a killed process: the answer has no end
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        self.go_on.wait(30)
        handler.wfile.write(b"4\r\nDONE\r\n0\r\n\r\n")


@dataclass
class WorkStack(Stack):
    """An nginx with our Lua in it."""

    settings: dict[str, Any] = field(default_factory=dict)
    dict_size: str = "10m"
    retried: str = "error http_503 non_idempotent"  # what is tried on another node, as proxy_next_upstream has it
    workers: int = 2

    @property
    def stock(self) -> Path:
        """The upstream file of nginx's own balancer."""
        return self.directory / "stock.conf"

    def write_nginx(self, extra: str = "") -> None:
        """Write nginx.conf; `extra` is a part that somebody else configures in the same nginx."""
        settings = json.dumps(SETTINGS | {"file": str(self.upstream), "upstream_file": str(self.stock)} | self.settings)
        (self.directory / "nginx.conf").write_text(f"""
            {LOAD_LUA} pid nginx.pid; error_log error.log warn; worker_processes {self.workers}; events {{}}
            http {{
                access_log off; {extra}
                lua_package_path "{LUA}/?.lua;;";
                lua_shared_dict vllm_nginx_lb {self.dict_size}; lua_shared_dict vllm_nginx_lb_prefixes 1m;
                init_by_lua_block {{ {PHASES}.init([==[{settings}]==]) }}
                init_worker_by_lua_block {{ {PHASES}.init_worker() }}
                upstream {POOL} {{
                    server 0.0.0.1;
                    balancer_by_lua_block {{ {PHASES}.balance("{POOL}") }}
                    keepalive 64; keepalive_timeout 2s;
                }}
                server {{ listen 127.0.0.1:{self.status_port} reuseport;
                    include {LUA}/status.conf; add_header X-Vllm-Nginx-Lb-Balancer work;
                    location = /memory {{ content_by_lua_block {{
                        collectgarbage() collectgarbage()
                        ngx.say(ngx.worker.pid(), " ", collectgarbage("count") * 1024, " ",
                            #ngx.shared.vllm_nginx_lb:get_keys(0)) }} }}
                    location = /keys {{ content_by_lua_block {{
                        ngx.say(table.concat(ngx.shared.vllm_nginx_lb:get_keys(0), "|")) }} }}
                }}
                server {{ listen 127.0.0.1:{self.ingress_port}{" reuseport" if self.workers > 2 else ""};
                    client_body_buffer_size 1m; client_max_body_size 64m; proxy_buffering off;
                    proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_next_upstream {self.retried}; proxy_next_upstream_tries 3;
                    include {LUA}/server.conf;
                    add_header X-Choice $vllm_nginx_lb_choice always;
                    error_page 502 @no_node;
                    location / {{ proxy_pass http://{POOL}; }}
                    location @no_node {{ return 502 "no node"; }}
                    location = /v1/again {{ error_page 502 = @again; proxy_pass http://{POOL}; }}
                    location @again {{ proxy_pass http://{POOL}; }}
                }}
            }}""")

    def known(self) -> dict[str, dict[str, Any]]:
        """Return nginx's state of each node, by name."""
        return {node["node"]: node for node in json.loads(fetch(self.status_port, "/work"))["nodes"]}

    def totals(self) -> dict[str, tuple[float, float]]:
        """Return pending bytes and streams of each node by its name, over all workers."""
        return {name: (node["pending_bytes"], node["streams"]) for name, node in self.known().items()}

    def idle(self) -> bool:
        """Tell whether nginx counts no in-flight work."""
        return all(each == (0, 0) for each in self.totals().values())

    def publish(self, weights: dict[str, int], generation: str = "0a") -> None:
        """Write the weights by hand, as the script would."""
        content = file_of(self, weights, generation)
        self.write(json.dumps(content))
        self.await_generation(generation)

    def write(self, text: str) -> None:
        """Write a text as the weights file."""
        staged = self.upstream.with_name("staged")
        staged.write_text(text)
        staged.replace(self.upstream)

    def await_generation(self, wanted: str) -> None:
        """Wait until every worker has noticed the file."""
        wait_for(
            lambda: self.serves_everywhere(wanted), seconds=30
        )  # on a busy machine the same worker answers again and again

    def serves_everywhere(self, generation: str) -> bool:
        """Tell whether every worker has answered, and each answer has a generation."""
        said = {fetch(self.status_port, "/generation").strip() for _ in range(10 * self.workers)}
        return len(said) == self.workers and all(each.startswith(f"{generation} ") for each in said)

    def full(self) -> dict[str, float]:
        """Return how many writes did not fit into each shared dictionary."""
        families = text_string_to_metric_families(fetch(self.status_port, "/work/metrics"))
        [family] = [each for each in families if each.name == "vllm_nginx_lb_work_dict_full"]
        return {sample.labels["dict"]: sample.value for sample in family.samples}

    def memory(self) -> tuple[int, int]:
        """Return the Lua memory of the larger worker, in bytes, and the number of keys in the dictionary."""
        said = [fetch(self.status_port, "/memory").split() for _ in range(20)]
        return max(int(float(used)) for _, used, _ in said), int(said[-1][2])

    def log(self) -> str:
        """Return nginx's error log."""
        return (self.directory / "error.log").read_text()

    def post(
        self,
        size: int = 100,
        session: str | None = None,
        body: bytes | None = None,
        path: str = "/v1/completions",
        client: str = "127.0.0.1",
    ) -> Answer:
        """Send a prompt from an address of this host, and read the answer to its end."""
        headers = {"X-Session-Id": session} if session else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.ingress_port, timeout=30, source_address=(client, 0))
        with contextlib.closing(connection):
            connection.request("POST", path, body or b"x" * size, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), answer.headers["X-Choice"])

    def leave(self, size: int = 100) -> None:
        """Send a prompt and go away without reading."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ingress_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", b"x" * size)


def file_of(it: WorkStack, weights: dict[str, int], generation: str) -> dict[str, Any]:
    """Return the content of a file with these weights."""
    nodes = [
        {"name": node.name, "address": node.address, "port": node.port, "weight": weights[node.name]}
        for node in it.nodes
        if node.name in weights
    ]
    return {"version": 1, "generation": generation, "pools": [{"name": POOL, "nodes": nodes}]}


@dataclass(frozen=True)
class Answer:
    """An answer as the client got it."""

    status: int
    text: str
    choice: str | None

    @property
    def node(self) -> str | None:
        """The node that answered in full."""
        return self.text.removesuffix("DONE") if self.text.endswith("DONE") else None


def with_workers(*counts: int) -> pytest.MarkDecorator:
    """Run a test with so many workers of nginx."""
    return pytest.mark.parametrize("work", counts, indirect=True, ids="{}-workers".format)


@pytest.fixture
def work(request: pytest.FixtureRequest, tmp_path: Path, heard: list[str]) -> Iterator[WorkStack]:
    """Start nginx without weights, with two workers or as many as a test wants, and three nodes."""
    (tmp_path / "upstream").mkdir()
    nodes: list[FakeNode] = [StreamingNode(f"node-{i}", f"127.0.0.{i}") for i in (2, 3, 4)]
    it = WorkStack(tmp_path, nodes, free_port(), free_port(), "nginx", heard=heard)
    it.workers = getattr(request, "param", 2)
    it.config = {
        "state_directory": str(tmp_path / "state"),
        "scrape": {"timeout_seconds": 2},
        "nginx": {
            "balancer": "work",
            "upstream_file": str(it.upstream),
            "confirm_url": f"http://127.0.0.1:{it.status_port}/generation",
            "confirm_timeout_seconds": 3,
        },
        "pools": [
            {
                "name": POOL,
                "policy": "static",
                "nodes": [{"name": node.name, "host": node.address, "port": node.port} for node in nodes],
            }
        ],
    }
    it.write_nginx()
    with running(it):
        yield it


def streaming(it: WorkStack, name: str) -> StreamingNode:
    """Return a node."""
    found = next(node for node in it.nodes if node.name == name)
    assert isinstance(found, StreamingNode)
    return found


def test_a_setting_that_there_is_not_or_that_is_wrong_is_refused_by_its_name(work: WorkStack) -> None:
    work.settings = {"trys": 3, "stall_seconds": "60"}
    work.write_nginx()
    done = subprocess.run([*work.nginx, "-g", "daemon off;"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stderr + work.log()
    assert "stall_seconds: expected a number of at least 0.001 s; trys: there is no such setting" in said


def test_before_the_first_weights_there_is_no_node(work: WorkStack) -> None:
    assert fetch(work.status_port, "/generation").startswith("seed ")
    assert work.post().status == 502
    assert "no nodes are known of llm_cluster" in work.log()


def test_a_host_that_had_nginxs_own_balancer_serves_on(work: WorkStack) -> None:
    node = work.nodes[1]
    work.stock.write_text(
        'map "" $vllm_nginx_lb_generation { default "0c"; }\n'
        f"upstream {POOL} {{\n    server {node.address}:{node.port} weight=60 max_fails=0; # {node.name}\n}}\n"
    )
    work.restart()
    assert work.generation() == "0c"
    assert work.post().node == "node-3"
    work.run()
    assert {work.post().node for _ in range(60)} == {"node-2", "node-3", "node-4"}


def test_the_script_publishes_without_a_reload(work: WorkStack) -> None:
    wait_for(lambda: len(work.worker_pids()) == 2)  # nginx writes its pid file before it starts them
    workers = work.worker_pids()
    assert "published: generation" in work.run()
    assert work.status()["outcome"] == "published"
    assert {work.post().node for _ in range(60)} == {"node-2", "node-3", "node-4"}
    work.config["pools"][0]["nodes"][1]["drain"] = True
    work.run()
    assert {work.post().node for _ in range(60)} == {"node-2", "node-4"}
    assert work.worker_pids() == workers
    work.run()
    assert work.status()["outcome"] == "unchanged"


@with_workers(2, 4, 8)
def test_a_node_has_no_more_requests_than_it_may(work: WorkStack) -> None:
    for node in work.config["pools"][0]["nodes"]:
        node["max_conns"] = 1
    work.run()
    for fake in work.nodes:
        streaming(work, fake.name).begin.clear()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(work.post) for _ in range(3)]
        wait_for(lambda: [streams for _, streams in work.totals().values()] == [1, 1, 1])
        assert work.post().status == 502
        for fake in work.nodes:
            streaming(work, fake.name).begin.set()
        assert {answer.result().node for answer in answers} == {"node-2", "node-3", "node-4"}
    wait_for(work.idle)


def test_after_a_restart_the_last_weights_are_there_before_the_first_request(work: WorkStack) -> None:
    work.run()
    work.restart()
    assert work.generation() == work.status()["generation"]
    assert work.post().node


@pytest.mark.parametrize("bad", ["{", "[]", '{"version": 1, "generation": "0b", "pools": []}', ""])
def test_a_bad_file_is_refused_whole_and_said_once(work: WorkStack, bad: str) -> None:
    work.publish({"node-2": 100})
    work.write(bad)
    wait_for(lambda: work.log().count("the last good weights stay") == 2)  # once for each worker
    assert {work.post().node for _ in range(10)} == {"node-2"}
    assert work.generation() == "0a"


@pytest.mark.parametrize("bad", ["{", None], ids=["damaged", "missing"])
def test_a_reload_with_a_bad_file_changes_nothing(work: WorkStack, bad: str | None) -> None:
    work.stock.write_text(f"upstream {POOL} {{\n    server 127.0.0.9:9 weight=1; # gone\n}}\n")
    work.publish({"node-2": 100})
    workers = work.worker_pids()
    if bad is None:
        work.upstream.unlink()
    else:
        work.write(bad)
    subprocess.run([*work.nginx, "-s", "reload"], check=True)
    wait_for(lambda: len(work.worker_pids()) == 2 and not work.worker_pids() & workers)
    work.await_generation("0a")
    assert {work.post().node for _ in range(10)} == {"node-2"}


def test_weights_that_nginx_does_not_take_are_rolled_back(work: WorkStack) -> None:
    work.run()
    good = work.upstream.read_text()
    work.settings = {"file": str(work.directory / "elsewhere.json")}
    (work.directory / "elsewhere.json").write_text(good)  # nginx reads another file than the script writes
    work.restart()
    work.config["pools"][0]["nodes"][1]["drain"] = True
    said = work.run(expect=1)
    assert "the new file did not take" in said
    assert "rolled back to generation" in said
    assert work.upstream.read_text() == good


def test_a_prompt_counts_until_its_first_byte_and_a_stream_until_its_end(work: WorkStack) -> None:
    work.publish({"node-2": 100})
    node = streaming(work, "node-2")
    node.headers_first = True
    node.begin.clear()
    node.go_on.clear()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(work.post, 3000)
        wait_for(lambda: node.posts == 1)
        assert work.totals() == {"node-2": (3000, 1)}  # also after the headers, which vLLM sends at once
        node.begin.set()
        wait_for(lambda: work.totals() == {"node-2": (0, 1)})
        node.go_on.set()
        assert asked.result().node == "node-2"
    wait_for(work.idle)


def test_what_nginx_knows_of_its_nodes_can_be_read(work: WorkStack) -> None:
    work.publish({"node-2": 100, "node-3": 0})
    for _ in range(3):
        work.post()
    known = work.known()
    assert (known["node-2"]["picks"], known["node-3"]["picks"]) == (3, 0)
    assert known["node-2"]["score"] == 0
    families = {
        sample.name: sample.value
        for family in text_string_to_metric_families(fetch(work.status_port, "/work/metrics"))
        for sample in family.samples
        if sample.labels == {"pool": POOL, "node": "node-2"}
    }
    assert families == {
        "vllm_nginx_lb_work_weight": 100,
        "vllm_nginx_lb_work_capacity": 100,
        "vllm_nginx_lb_work_pending_bytes": 0,
        "vllm_nginx_lb_work_streams": 0,
        "vllm_nginx_lb_work_score": 0,
        "vllm_nginx_lb_work_backoff_seconds": 0,
        "vllm_nginx_lb_work_picks_total": 3,
        "vllm_nginx_lb_work_kv_full_total": 0,
        "vllm_nginx_lb_work_first_outputs_total": 0,  # no answer was streamed
        "vllm_nginx_lb_work_first_output_predicted_seconds_total": 0,
        "vllm_nginx_lb_work_first_output_seconds_total": 0,
    }
    assert work.full() == {"vllm_nginx_lb": 0, "vllm_nginx_lb_prefixes": 0}


def test_what_does_not_fit_into_shared_memory_is_counted_and_said_once(work: WorkStack) -> None:
    work.dict_size = "64k"
    work.restart()
    content = file_of(work, {"node-2": 100}, "0a")
    for number in range(2000):
        address = f"127.1.{number // 250}.{1 + number % 250}"
        content["pools"][0]["nodes"].append({"name": f"idle-{number}", "address": address, "port": 1, "weight": 0})
    work.write(json.dumps(content))
    work.await_generation("0a")
    assert work.full()["vllm_nginx_lb"] > 0
    assert {work.post().node for _ in range(20)} == {"node-2"}
    said = "the shared dictionary vllm_nginx_lb is full"
    assert 1 <= work.log().count(said) <= 2  # once for each worker
    assert "raise nginx_ingress_work_memory_mib" in work.log()


def test_the_next_prompt_goes_where_the_least_work_is(work: WorkStack) -> None:
    work.publish({"node-2": 100, "node-3": 100})
    for name in ("node-2", "node-3"):
        streaming(work, name).begin.clear()
    with ThreadPoolExecutor(16) as pool:
        long = pool.submit(work.post, 30000)
        wait_for(lambda: sum(streams for _, streams in work.totals().values()) == 1)
        busy = next(name for name, (_, streams) in work.totals().items() if streams)
        short = []
        for sent in range(10):  # ten short requests are less work than the long one
            short.append(pool.submit(work.post, 100))
            wait_for(lambda sent=sent: sum(streams for _, streams in work.totals().values()) == sent + 2)  # type: ignore[misc]
        for name in ("node-2", "node-3"):
            streaming(work, name).begin.set()
        assert long.result().node == busy
        assert {each.result().node for each in short} == {"node-2", "node-3"} - {busy}
    wait_for(work.idle)


@pytest.mark.slow
def test_a_thousand_changes_while_streams_run_cut_none_and_leave_nothing_behind(work: WorkStack) -> None:
    work.settings = {"refresh_seconds": 0.005}
    work.restart()
    work.publish({"node-2": 100, "node-3": 100})
    for node in work.nodes:
        assert isinstance(node, StreamingNode)
        node.go_on.clear()
    workers, reloads = work.worker_pids(), work.log().count("reconfiguring")
    kept: list[tuple[int, int]] = []
    with ThreadPoolExecutor(200) as pool:
        asked = [pool.submit(work.post) for _ in range(200)]
        wait_for(lambda: sum(streams for _, streams in work.totals().values()) == 200)
        for number in range(1, 1001):
            content = file_of(
                work, {"node-2": 1 + number % 100, "node-3": 100 * (number % 2), "node-4": 100}, f"{number}"
            )
            # A node that comes and goes, at another address each time, as where nodes are made and deleted.
            address = f"127.1.{number // 250}.{1 + number % 250}"
            content["pools"][0]["nodes"].append({"name": "guest", "address": address, "port": 1, "weight": 0})
            work.write(json.dumps(content))
            wait_for(lambda number=number: work.generation() == f"{number}", every=0.001)  # type: ignore[misc]
            if number in (100, 1000):
                work.publish({"node-3": 50, "node-4": 100}, f"e{number}")  # node-2 leaves with in-flight work
                kept.append(work.memory())
        for node in work.nodes:
            assert isinstance(node, StreamingNode)
            node.go_on.set()
        assert {each.result().status for each in asked} == {200}
        assert all(each.result().node for each in asked)
    assert (work.worker_pids(), work.log().count("reconfiguring")) == (workers, reloads)
    wait_for(work.idle)
    (bytes_before, keys_before), (bytes_after, keys_after) = kept
    assert keys_after == keys_before
    assert bytes_after < bytes_before + 64 * 1024


def test_a_node_that_refuses_is_passed_over_and_left_out_for_a_moment(work: WorkStack) -> None:
    work.publish({"node-2": 100, "node-3": 100})
    streaming(work, "node-2").stop()
    assert {work.post().node for _ in range(50)} == {"node-3"}
    assert work.log().count("Connection refused") < 10
    wait_for(work.idle)


def test_a_503_is_tried_on_another_node_and_an_answer_that_has_begun_is_not(work: WorkStack) -> None:
    work.publish({"node-2": 100, "node-3": 100})
    streaming(work, "node-2").status = 503
    assert {work.post().node for _ in range(20)} == {"node-3"}
    assert 1 <= streaming(work, "node-2").posts < 10


def test_when_no_node_is_left_the_client_is_told(work: WorkStack) -> None:
    work.publish({"node-2": 100})
    streaming(work, "node-2").stop()
    answers = [work.post() for _ in range(5)]
    assert {(answer.status, answer.text) for answer in answers} == {(502, "no node")}
    wait_for(work.idle)


def test_a_request_that_an_error_page_sends_to_a_node_again_is_counted_out_twice(work: WorkStack) -> None:
    work.publish({"node-2": 100, "node-3": 100})
    for name in ("node-2", "node-3"):
        streaming(work, name).stop()
    assert [work.post(path="/v1/again").status for _ in range(5)] == [502] * 5
    wait_for(work.idle)


@pytest.mark.slow
@with_workers(2, 8)
def test_counts_return_to_zero_whatever_becomes_of_requests(work: WorkStack) -> None:
    # A node that dies is soon tried again, so that it cuts off many requests.
    work.settings = {"backoff": {"first": 0.02, "longest": 0.02}}
    work.restart()
    work.publish({"node-2": 100, "node-3": 60, "node-4": 30})
    chance = random.Random(1)  # noqa: S311 - to be repeated, not to be secret
    met: Counter[str] = Counter()

    def ask(number: int) -> None:
        """Send one request, and now and then reload nginx or change what nodes do."""
        if number % 1000 == 500:
            subprocess.run([*work.nginx, "-s", "reload"], check=True)
        if number % 250 == 0:
            node = streaming(work, chance.choice(["node-2", "node-3"]))
            node.status, node.dies = [(200, True), (503, False), (500, False), (200, False)][number // 250 % 4]
        size = chance.randrange(1, 20000)
        try:
            if chance.random() < 0.3:
                work.leave(size)
                met["left"] += 1
            else:
                met["whole" if work.post(size).node else "refused"] += 1
        except (OSError, http.client.HTTPException):
            met["cut"] += 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(10000)))
    wait_for(work.idle)
    assert min(met["left"], met["whole"], met["cut"]) > 100, met
    assert sum(met.values()) == 10000


def test_what_a_killed_worker_had_is_forgotten(work: WorkStack) -> None:
    work.publish({"node-2": 100})
    node = streaming(work, "node-2")
    node.go_on.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lambda: contextlib.suppress(OSError) and work.post()) for _ in range(8)]
        wait_for(lambda: work.totals() == {"node-2": (0, 8)})
        for worker in work.worker_pids():
            os.kill(int(worker), signal.SIGKILL)
        node.go_on.set()
        for each in asked:
            each.exception()
    wait_for(lambda: answers(work.status_port))
    work.await_generation("0a")
    wait_for(work.idle)
    assert work.post().node == "node-2"


def test_a_session_stays_with_its_node_until_that_has_too_much_work(work: WorkStack) -> None:
    work.settings = {"affinity": "session"}
    work.restart()
    work.publish({"node-2": 100, "node-3": 100, "node-4": 100})
    homes = {session: work.post(session=session) for session in map(str, range(30))}
    assert {answer.choice for answer in homes.values()} == {"affinity"}
    assert len({answer.node for answer in homes.values()}) == 3
    for session, answer in homes.items():
        assert work.post(session=session).node == answer.node
    home = streaming(work, str(homes["0"].node))
    home.begin.clear()
    with ThreadPoolExecutor(8) as pool:
        kept = [pool.submit(work.post, 30000, "0") for _ in range(2)]
        wait_for(lambda: work.totals()[home.name][1] >= 1)
        away = work.post(100, "0")
        home.begin.set()
        assert away.node != home.name
        assert away.choice == "least work, off its affinity"
        assert all(each.result().node for each in kept)


def test_without_affinity_any_node_gets_a_session(work: WorkStack) -> None:
    work.settings = {"affinity": "off"}
    work.restart()
    work.publish({"node-2": 100, "node-3": 100, "node-4": 100})
    answers = [work.post(session="one", body=prompt("the same" * 1000)) for _ in range(40)]
    assert {answer.choice for answer in answers} == {"least work"}
    assert {answer.node for answer in answers} == {"node-2", "node-3", "node-4"}


@pytest.mark.parametrize(("affinity", "counted"), [("off", 65536), ("session", 65536), ("prefix", 200_000)])
def test_a_long_prompt_counts_in_full_only_if_its_body_is_looked_into(
    work: WorkStack, affinity: str, counted: int
) -> None:
    work.settings = {"affinity": affinity}
    work.restart()
    work.publish({"node-2": 100})
    node = streaming(work, "node-2")
    node.begin.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(work.post, session="one", body=prompt("x" * 200_000))
        wait_for(lambda: work.totals()["node-2"][1] == 1)
        pending = work.totals()["node-2"][0]
        node.begin.set()
        assert asked.result().node == "node-2"
    assert counted <= pending < counted + 1100, "and the constant of a stream"
    wait_for(work.idle)


def test_the_model_of_a_request_says_which_pool_it_is_for(work: WorkStack) -> None:
    content = file_of(work, {"node-2": 100}, "0a")
    content["pools"][0]["models"] = ["small", "org/small-7b"]
    nodes = [{"name": "b", "address": work.nodes[1].address, "port": work.nodes[1].port, "weight": 100}]
    content["pools"].append({"name": "batch", "models": ["large"], "nodes": nodes})
    work.write(json.dumps(content))
    work.await_generation("0a")

    asked = {"small": "node-2", "org/small-7b": "node-2", "large": "node-3"}
    for model, node in asked.items():
        assert work.post(body=json.dumps({"prompt": "model", "model": model}).encode()).node == node
    assert work.post(body=b'{"prompt": "no model"}').node == "node-2"
    assert work.post(body=json.dumps({"prompt": "x" * 3 * 2**20, "model": "large"}).encode()).node == "node-3"

    unknown = work.post(body=b'{"model": "none"}')
    assert unknown.status == 404
    assert json.loads(unknown.text)["error"]["code"] == "model_not_found"
    listed = json.loads(fetch(work.ingress_port, "/v1/models"))
    assert [model["id"] for model in listed["data"]] == ["large", "org/small-7b", "small"]
    wait_for(work.idle)


def prompt(text: str) -> bytes:
    """Return a body with a prompt."""
    return json.dumps({"prompt": text}).encode()


def test_a_next_turn_finds_its_beginning_whatever_is_around_the_prompt(work: WorkStack) -> None:
    work.settings = {"affinity": "prefix"}
    work.restart()
    weights = {"node-2": 100, "node-3": 100, "node-4": 100}
    work.publish(weights)

    def body(chat: int, turns: int, **envelope: object) -> dict[str, object]:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{chat:08}" + "A" * 40_000}}
        texts = [f"turn {turn} of chat {chat} " * 200 for turn in range(turns)]
        messages = [{"role": "user", "content": [{"type": "text", "text": text}, image]} for text in texts]
        tools = [{"type": "function", "function": {"name": "read", "description": f"Reads file {chat}. " * 300}}]
        return {"model": "m", "messages": messages, "tools": tools, **envelope}

    homes = {}
    for chat in range(6):
        first = work.post(body=json.dumps(body(chat, 2, max_tokens=100)).encode(), path="/v1/chat/completions")
        homes[chat] = first.node
    assert len(set(homes.values())) > 1
    for models in (None, ["m"]):  # the same walk finds the model
        content = file_of(work, weights, "0b" if models else "0a")
        if models:
            content["pools"][0]["models"] = models
            work.write(json.dumps(content))
            work.await_generation("0b")
        for chat, home in homes.items():
            turn = body(chat, 3, temperature=0.5, user=f"somebody {chat}", max_tokens=9)
            for keys in (sorted(turn), sorted(turn, reverse=True)):
                text = json.dumps({key: turn[key] for key in keys}).encode()
                answer = work.post(body=text, path="/v1/chat/completions")
                assert (answer.node, answer.choice) == (home, "least work, cached prefix")
    wait_for(work.idle)


def test_what_a_node_has_cached_counts_as_work_that_it_saves(work: WorkStack) -> None:
    work.settings = {"affinity": "prefix"}
    work.restart()
    work.publish({"node-2": 100, "node-3": 100, "node-4": 100})
    chats = {f"chat {i} ".ljust(2048, "."): "" for i in range(20)}
    for chat in chats:
        answer = work.post(body=prompt(chat))
        assert answer.choice == "least work"
        chats[chat] = str(answer.node)
    assert len(set(chats.values())) > 1
    for turn in range(3):
        for chat, node in chats.items():
            answer = work.post(body=prompt(chat + "and more " * 200 * turn))
            assert (answer.node, answer.choice) == (node, "least work, cached prefix")

    chat, node = next(iter(chats.items()))
    busy = streaming(work, node)
    busy.begin.clear()
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(work.post, body=prompt(chat + "x" * 4000))
        wait_for(lambda: work.totals()[node][1] == 1)
        pending = work.totals()[node][0]
        assert 4000 <= pending < 5100, "what is cached is no work"
        away = work.post(body=prompt(chat))
        busy.begin.set()
        assert kept.result().node == node
    assert (away.node != node, away.choice) == (True, "least work")
    assert work.post(body=prompt(chat)).node in {node, away.node}
    wait_for(work.idle)


def test_a_client_that_sends_noise_loses_its_own_oldest_prefix_marks(work: WorkStack) -> None:
    work.settings = {"affinity": "prefix"}
    work.restart()
    work.publish({"node-2": 100, "node-3": 100, "node-4": 100})

    def ask(client: str, text: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", work.ingress_port, 30, (client, 0))
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", prompt(text * 2048))  # 16 KiB
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), answer.headers["X-Choice"])

    def is_found(client: str, text: str) -> bool:
        return ask(client, text).choice == "least work, cached prefix"

    chats = [f"chat{i:04}" for i in range(10)]
    for number in range(1000):  # 16,000 marks: the memory of 1 MiB has room for some 6,000
        ask("127.0.0.8", f"{number:08}")
        if number % 50 == 0:
            for chat in chats:
                assert is_found("127.0.0.9", chat) or number == 0, "noise of others costs nobody's marks"
    assert work.full()["vllm_nginx_lb_prefixes"] > 0
    assert is_found("127.0.0.8", f"{999:08}"), "the newest of who sends noise"
    assert ask("127.0.0.8", f"{800:08}").choice == "least work", "its older ones are gone"
    for topic in ("topic--A", "topic--B"):
        ask("127.0.0.8", topic)
        assert is_found("127.0.0.8", topic)
    wait_for(work.idle)


def test_status_shows_which_nodes_nginx_has_ejected(work: WorkStack) -> None:
    work.settings = {"backoff": {"first": 600, "longest": 600}}
    work.restart()
    work.run()
    assert json.loads(fetch(work.status_port, "/work/ejected"))["nodes"] == []
    assert "3 nodes: 3 up;" in work.script("status").stdout

    streaming(work, "node-4").status = 502
    wait_for(lambda: work.post().status == 502)
    wait_for(lambda: bool(json.loads(fetch(work.status_port, "/work/ejected"))["nodes"]))
    (found,) = json.loads(fetch(work.status_port, "/work/ejected"))["nodes"]
    assert {name: found[name] for name in ("pool", "node", "cause")} == {
        "pool": POOL,
        "node": "node-4",
        "cause": "gateway",
    }
    assert 0 < found["seconds"] <= 600
    said = work.script("status").stdout
    assert "3 nodes: 2 up, 1 ejected;" in said
    (row,) = [line.split() for line in said.splitlines() if " node-4 " in line]
    assert row[2] == "ejected"
    assert "ejected by nginx for a short time (gateway);" in " ".join(row)
    said = work.script("status", "--state", "ejected", "--json").stdout
    assert [node["name"] for pool in json.loads(said)["pools"] for node in pool["nodes"]] == ["node-4"]

    work.stop()
    assert "it is not known which nodes nginx has ejected" in work.script("status").stdout
