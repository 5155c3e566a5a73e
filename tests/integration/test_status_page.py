"""The status page in a browser: a real nginx with the role's files, and Debian's Chromium."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.integration.conftest import ROOT, wait_for
from tests.integration.fake_state import FakeNode, FakeState
from tests.integration.rendered import Host, ask, ingress, render
from vllm_lb.causes import NodeCause
from vllm_lb.outcome import CHANGES
from vllm_lb.plan import STATES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, Route

    from tests.integration.conftest import Stack

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # rendering is slow
PAGE = ROOT / "roles" / "nginx_ingress" / "files" / "page"
MODULES = sorted(f"/{file.name}" for file in PAGE.glob("*.js"))
LOADED = sorted(["/", "/page.css", *MODULES, "/vendor/uPlot.iife.min.js", "/vendor/uPlot.min.css"])
STATE = "var/lib/vllm-nginx-lb"
HOUR = 3600
SETTINGS: dict[str, dict[str, Any]] = {
    "work": {},
    "upstream": {
        "nginx_ingress_balancer": "upstream",
        "nginx_ingress_status_addresses": ["127.0.0.3"],
        "nginx_ingress_status_allowed": ["127.0.0.4", "127.0.0.64/28", "2001:db8::/32"],
    },
    "everywhere": {"nginx_ingress_status_addresses": ["0.0.0.0", "::"]},  # noqa: S104 - on purpose
    "off": {"nginx_ingress_status_page_enabled": False},
}
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """Render an ingress for each of SETTINGS."""
    return render(tmp_path_factory.mktemp("rendered"), SETTINGS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium. For root its sandbox does not work, and is off."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: make system-packages installs it"
    with sync_playwright() as playwright:
        it = playwright.chromium.launch(executable_path=program, args=[] if os.geteuid() else ["--no-sandbox"])
        yield it
        it.close()


def clean_state(host: Host) -> Path:
    """Return the host's state directory, empty."""
    shutil.rmtree(host.root / STATE, ignore_errors=True)
    (host.root / STATE).mkdir(parents=True)
    return host.root / STATE


@dataclass
class Site:
    """A served state directory, and a browser that shows it."""

    state: FakeState
    url: str
    browser: Browser
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def nodes(self) -> dict[str, FakeNode]:
        """The nodes by name."""
        return {node.name: node for nodes in self.state.pools.values() for node in nodes}

    def open(self, **context: Any) -> Page:
        """Open the page in a window of its own, and record its requests and its errors."""
        page = self.browser.new_context(**context).new_page()
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text))
        page.goto(f"{self.url}/")
        return page

    def paths(self) -> list[str]:
        """Return the paths of all requests. Each must have gone to this site."""
        assert all(url.startswith((f"{self.url}/", "data:")) for url in self.requested), self.requested
        return [url.removeprefix(self.url) for url in self.requested if not url.startswith("data:")]

    def fill(self, seconds: float = HOUR, end: float | None = None, **last: Any) -> None:
        """Write ticks up to now; `last` has the outcome and the sentences of the last one."""
        end = end or time.time()
        ticks = int(seconds / self.state.interval)
        for left in range(ticks, 0, -1):
            self.state.tick(end - left * self.state.interval, write=False)
        self.state.tick(end, **last)


@pytest.fixture
def site(tmp_path: Path, hosts: dict[str, Host], browser: Browser) -> Iterator[Site]:
    """Serve an empty state directory of two pools."""
    host = hosts["work"]
    pools = {
        "llm_cluster": [FakeNode("node-a"), FakeNode("node-b", weight=60, kv=0.82, waiting=3, running=9)],
        "embeddings": [FakeNode("node-c")],
    }
    with ingress(tmp_path, host, [9]) as running:
        it = Site(FakeState(clean_state(host), pools), running.status_url, browser)
        yield it
        for context in browser.contexts:
            context.close()


def card(page: Page, name: str) -> Any:
    """Find the card of a node."""
    return page.locator("article", has=page.get_by_role("heading", name=name, exact=True))


def events(page: Page) -> list[tuple[str, float]]:
    """Return the kind and the time of each event that the page knows, oldest first."""
    known = page.evaluate("[...statusPage.page.history.events.values()].map(({at, kind}) => [kind, at])")
    return sorted(((kind, at) for kind, at in known), key=lambda event: event[1])


# --- What the page shows ------------------------------------------------------------------------------------------


def test_each_node_of_each_pool_has_its_state_its_numbers_and_why(site: Site) -> None:
    site.nodes["node-b"].reason = "kv 0.82 >= 0.75"
    site.nodes["node-a"].fail("connection refused, 3 in a row")
    site.fill(60, outcome="published")
    page = site.open()

    pools = page.locator(".pool")
    expect(pools.locator("h2")).to_have_text(["llm_cluster", "embeddings"])
    expect(pools.nth(0).locator("article h3")).to_have_text(["node-a", "node-b"])
    expect(pools.nth(1).locator("article h3")).to_have_text(["node-c"])
    expect(card(page, "node-b").locator(".state")).to_have_text("up")
    expect(card(page, "node-b").locator("dd b")).to_have_text(["60", "82 %", "9", "3"])
    expect(card(page, "node-b").locator(".reason")).to_have_text("kv 0.82 >= 0.75")
    expect(card(page, "node-a")).to_have_attribute("data-state", "down")
    expect(card(page, "node-a")).to_have_attribute("data-cause", "unreachable")
    expect(card(page, "node-a").locator("dd b")).to_have_text(["0", *["\u2013"] * 3])
    expect(card(page, "node-a").locator(".reason")).to_have_text("connection refused, 3 in a row")
    expect(page.locator("#outcome")).to_have_text("published")
    expect(page.locator("#generation")).to_have_text("9f3ac21b04de")
    expect(page.locator("#tick-age")).to_contain_text("s ago")
    expect(page.locator("#alert")).to_be_empty()
    assert page.title() == "2/3 up · ingress-1 · vllm-nginx-lb"


def test_the_page_says_why_a_change_waits_and_why_weights_are_held(site: Site) -> None:
    site.state.held = "no node can be read, last weights kept"
    site.fill(60, outcome="deferred", deferred="the last reload was 5 s ago", draining_generations=2)
    page = site.open()
    expect(page.locator("#deferred")).to_contain_text("the last reload was 5 s ago")
    expect(page.locator("#draining")).to_have_text("2")
    expect(page.locator(".pool .notice")).to_have_text(["Weights are held. no node can be read, last weights kept"] * 2)


def test_charts_have_the_hour_of_both_segments(site: Site) -> None:
    end = time.time()
    for left in range(540, -1, -1):
        if left == 120:
            site.state.rotate()
        site.nodes["node-b"].weight = 30 if left > 200 else 60
        site.nodes["node-b"].kv = left / 1000
        site.state.tick(end - 10 * left, write=not left)
    page = site.open()
    expect(page.locator(".chart canvas")).to_have_count(7)
    assert site.paths().count("/history-000001.jsonl.gz") == 1

    charts = page.evaluate("[...statusPage.plots.values()].map((plot) => plot.data.map((column) => [...column]))")
    for times, *_ in charts:
        assert 359 <= len(times) <= 361
        assert times[-1] == pytest.approx(end, abs=0.01)
    shares = charts[[each[1][-1:] + each[1][:1] for each in charts].index([60, 30])]
    assert shares[1] == [30] * (len(shares[1]) - 201) + [60] * 201
    assert shares[2][:2] == [round(len(shares[2]) / 10), round(len(shares[2]) / 10)]
    blank = "(canvas) => !canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert not any(each.evaluate(blank) for each in page.locator(".chart canvas").all())


def test_what_is_in_the_present_segment_needs_no_other(site: Site) -> None:
    site.fill(60, end=time.time() - 2 * HOUR)
    site.state.rotate()
    site.fill(HOUR + 60)
    expect(site.open().locator(".chart canvas")).to_have_count(7)
    assert not [path for path in site.paths() if path.endswith(".gz")]


def test_an_hour_of_many_segments_is_shown_as_one(site: Site) -> None:
    end = time.time()
    for left in range(720, -1, -1):
        if left % 60 == 0:
            site.state.rotate()
        site.state.tick(end - 10 * left, write=not left)
    page = site.open()
    expect(page.locator(".chart canvas")).to_have_count(7)
    assert page.evaluate("statusPage.page.history.times[0]") == pytest.approx(end - HOUR, abs=15)
    assert len([path for path in site.paths() if path.endswith(".gz")]) in (6, 7)


def test_after_the_clock_was_set_back_ticks_are_shown_again(site: Site) -> None:
    now = time.time()
    site.fill(60, end=now + 2 * HOUR)
    site.fill(300, end=now)
    page = site.open()
    expect(page.locator(".chart canvas")).to_have_count(7)
    times = page.evaluate("statusPage.page.history.times")
    assert len(times) == 31
    assert times[-1] == pytest.approx(now, abs=0.01)


def test_changes_faults_and_waits_of_the_hour_are_on_the_time_line(site: Site) -> None:
    end = time.time()
    said: dict[int, dict[str, Any]] = {
        400: {"outcome": "failed", "error": "before that hour"},
        300: {"outcome": "reloaded"},
        200: {"outcome": "rolled_back", "error": "nginx -t failed"},
        100: {"outcome": "deferred", "deferred": "the last reload was 5 s ago"},
        99: {"outcome": "deferred", "deferred": "the last reload was 15 s ago"},
        50: {"outcome": "unchanged", "error": "metrics.prom cannot be written"},
        0: {"outcome": "published"},
    }
    for left in range(420, -1, -1):
        if left == 20:
            site.nodes["node-a"].fail("connection refused, 3 in a row")
        site.state.tick(end - 10 * left, write=not left, **said.get(left, {}))
    page = site.open()
    expect(page.locator("#timeline canvas")).to_be_visible()
    found = [(kind, round((end - at) / 10)) for kind, at in events(page)]
    assert found == [
        ("change", 300),
        ("fault", 200),
        ("wait", 100),
        ("wait", 99),
        ("fault", 50),
        ("node", 20),
        ("change", 0),
    ]
    page.locator("#all summary").click()
    listed = page.locator("#all li span")
    assert [text.split(" (until")[0] for text in listed.all_text_contents()] == [
        "published, generation 9f3ac21b04de",
        "llm_cluster/node-a: up → down, weight 100 → 0: connection refused, 3 in a row",
        "unchanged: metrics.prom cannot be written",
        "deferred: the last reload was 15 s ago",
        "rolled back: nginx -t failed",
        "reloaded, generation 9f3ac21b04de",
    ]


def snapshot(page: Page) -> tuple[str, Any]:
    """Return the page's document without ages, and the data of its charts and its time line."""
    page.locator("#all summary").click()
    expect(page.locator("#all li").first).to_be_visible()
    ages = "for (const id of ['tick-age', 'change-age']) document.getElementById(id).textContent = '';"
    document = page.evaluate(f"{ages} document.title + document.body.outerHTML")
    drawn = page.evaluate(
        "[[...statusPage.plots.values()].map(({data}) => data),"
        " [...statusPage.page.history.events.values()].map(({at, kind, key, code}) => [at, kind, key, code])]"
    )
    return document, drawn


def write_a_bad_hour(state: FakeState, end: float) -> None:
    """Write ticks with each kind of node, fault and wait. Some sentences contain words that belong to other codes."""
    a, b, c, d, e = nodes = [FakeNode(f"node-{letter}") for letter in "abcde"]
    state.pools, state.held = {"llm_cluster": nodes[:3], "embeddings": nodes[3:]}, "no node can be read, weights kept"
    said: dict[int, dict[str, Any]] = {
        90: {"outcome": "reloaded"},
        80: {"outcome": "rolled_back", "error": "nginx -t failed: line 7", "error_cause": "test_failed"},
        79: {"outcome": "rolled_back", "error": "nginx -t failed: line 8", "error_cause": "test_failed_before"},
        70: {"outcome": "deferred", "deferred": "the last reload was 5 s ago", "deferred_cause": "cooldown"},
        69: {"outcome": "deferred", "deferred": "the last reload was 15 s ago", "deferred_cause": "cooldown"},
        68: {"outcome": "deferred", "deferred": "5 generations are draining", "deferred_cause": "old_workers"},
        60: {"error": "metrics.prom cannot be written", "error_cause": "file_unwritable"},
        0: {"error": "status.json cannot be written", "error_cause": "file_unwritable", "deferred": "small change"},
    }
    for left in range(100, -1, -1):
        if left == 50:
            a.fail("connection refused, 3 in a row")
            a.error = "connection refused"
            b.state, b.weight, b.cause, b.reason = "down", 0, "asleep", "vLLM sleeps"
            c.state, c.weight, c.cause, c.reason = "drained", 0, "drained_by_operator", "drained by the operator"
            c.error, c.error_cause = "timed out after 5 s", "timeout"
            d.state, d.cause, d.reason = "unknown", "held", "HTTP 401 (1 of 3), last weight held"
            d.error, d.error_cause = "HTTP 401", "unauthorized"
            e.weight, e.cause, e.reason = 30, "learned", "800 tokens/s"
        state.tick(end - state.interval * left, write=not left, **said.get(left, {}))


def test_other_sentences_change_nothing_but_themselves(site: Site) -> None:
    end = time.time()
    reworded: dict[str, str] = {}

    def reword(sentence: str) -> str:
        return reworded.setdefault(html.escape(sentence, quote=False), f"sentence {len(reworded)} of its own")

    shown: list[tuple[str, Any]] = []
    for words in (str, reword):
        site.state = FakeState(site.state.directory, {}, interval=30, reword=words)
        write_a_bad_hour(site.state, end)
        page = site.open(viewport={"width": 1280, "height": 2400})
        expect(page.locator(".chart canvas")).to_have_count(11)
        shown.append(snapshot(page))
        page.context.close()
    (document, drawn), (other_document, other_drawn) = shown
    assert {sentence for sentence in reworded if sentence not in document} == {
        "kv 0.40 &lt; 0.75",  # only in the first ticks
        "the last reload was 5 s ago",  # the next tick waited for the same reason
    }
    for sentence in sorted(reworded, key=len, reverse=True):
        document = document.replace(sentence, reworded[sentence])
    assert other_document == document
    assert other_drawn == drawn


def test_what_former_versions_wrote_without_codes_is_shown(site: Site) -> None:
    site.state.has_codes = False
    site.state.held = "no node can be read, last weights kept"
    end = time.time()
    site.fill(60, end=end - 20)
    site.nodes["node-a"].fail("connection refused, 3 in a row")
    site.state.tick(end - 10, "deferred", deferred="the last reload was 15 s ago")
    site.state.tick(end, "rolled_back", error="nginx -t failed", deferred="the last reload was 25 s ago")
    page = site.open()
    expect(page.get_by_role("alert")).to_have_text("Last tick rolled back. nginx -t failed")
    expect(page.locator("#deferred")).to_have_text("A change of weights waits. the last reload was 25 s ago")
    expect(page.locator(".pool .notice").first).to_contain_text("no node can be read")
    expect(card(page, "node-a").locator(".move")).to_contain_text("up → down, weight 100 → 0: connection refused")
    expect(page.locator(".chart canvas")).to_have_count(7)
    assert sorted(kind for kind, _ in events(page)) == ["fault", "node", "wait"]
    assert page.locator("h1").text_content() == "127.0.0.1"
    expect(page.locator("#live")).to_be_hidden()
    assert site.complaints == []


# --- Changes while the page is open -------------------------------------------------------------------------------


def test_each_tick_takes_two_requests_and_is_added_to_the_charts_and_the_time_line(site: Site) -> None:
    site.state.interval = 2
    site.fill(60)
    page = site.open()
    expect(page.locator(".chart canvas")).to_have_count(7)
    loaded = site.paths()
    assert sorted(loaded) == sorted([*LOADED, "/history.jsonl", "/status.json", "/work/ejected"])
    site.nodes["node-a"].weight = 30
    ticks = [time.time()]
    site.state.tick(ticks[0], "published")
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(2):
            ticks.append(time.time())
            site.state.tick(ticks[-1])

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        seen = f"statusPage.page.history.times.filter((at) => at > {ticks[0] - 0.01}).length"
        wait_for(lambda: bool(page.evaluate(seen) >= 6), 60, every=0.2)
    finally:
        done.set()
        writer.join()
    asked = site.paths()[len(loaded) :]
    assert set(asked) == {"/status.json", "/work/ejected"}, (
        "a tick was missed for so long that the history was read again"
    )
    assert 12 <= len(asked) <= 2 * len(ticks) + 2
    expect(card(page, "node-a").locator(".weight b")).to_have_text("30")
    assert sorted(kind for kind, _ in events(page)) == ["change", "weight"]
    last = page.evaluate("[...statusPage.plots.values()].map((plot) => plot.data[0].at(-1))")
    assert len(set(last)) == 1
    assert last[0] > ticks[0]
    assert site.complaints == []


def test_a_change_between_two_requests_is_on_the_time_line(site: Site) -> None:
    site.state.interval = 1
    site.fill(60)
    page = site.open()
    expect(page.locator(".chart canvas")).to_have_count(7)
    changed = time.time()
    site.state.tick(changed, "reloaded", write=False)
    site.state.tick(changed + 0.1)
    expect(page.locator("#latest")).to_contain_text("reloaded, generation 9f3ac21b04de")
    assert [at for kind, at in events(page) if kind == "change"] == [pytest.approx(changed, abs=0.1)]


def test_after_a_gap_the_history_is_read_again(site: Site) -> None:
    site.state.interval = 1
    site.fill(60, end=time.time() - 30)
    page = site.open()
    expect(page.locator(".chart canvas")).to_have_count(7)
    assert site.paths().count("/history.jsonl") == 1
    site.fill(29)
    expect(page.locator("#alert")).to_be_empty()
    wait_for(lambda: site.paths().count("/history.jsonl") == 2)
    wait_for(lambda: bool(page.evaluate("statusPage.page.history.times.length") >= 90))


def test_old_data_is_marked_until_there_is_new(site: Site) -> None:
    site.state.interval = 1
    site.fill(60, end=time.time() - 300)
    page = site.open()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Old data. The last tick was at")
    expect(page.locator("body")).to_have_class("old")
    expect(page.locator("#tick-age")).to_have_text("5 min ago")
    assert page.title() == "OLD DATA · ingress-1 · vllm-nginx-lb"

    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.5):
            site.state.tick(time.time())

    writer = threading.Thread(target=live)
    writer.start()
    try:
        expect(alert).to_be_empty()
        expect(page.locator("body")).not_to_have_class("old")
        expect(page).to_have_title("3/3 up · ingress-1 · vllm-nginx-lb")
    finally:
        stop.set()
        writer.join()
    expect(alert).to_contain_text("Old data.")


def test_a_wrong_clock_of_the_browser_makes_nothing_old(site: Site) -> None:
    site.fill(60)
    page = site.browser.new_context().new_page()
    page.clock.set_fixed_time(time.time() - 7 * 24 * HOUR)
    page.goto(f"{site.url}/")
    expect(card(page, "node-a")).to_be_visible()
    expect(page.locator("#alert")).to_be_empty()


def test_a_fault_of_the_last_tick_is_said(site: Site) -> None:
    site.fill(60, outcome="rolled_back", error="nginx -t failed: unknown directive")
    page = site.open()
    expect(page.get_by_role("alert")).to_have_text("Last tick rolled back. nginx -t failed: unknown directive")
    expect(page).to_have_title("LAST TICK ROLLED BACK · ingress-1 · vllm-nginx-lb")


def test_before_the_first_tick_the_page_says_so_and_then_shows_it(site: Site) -> None:
    page = site.open()
    expect(page.get_by_role("alert")).to_contain_text("No tick has ended yet")
    expect(page).to_have_title("NO DATA · 127.0.0.1 · vllm-nginx-lb")
    site.state.tick(time.time())
    expect(card(page, "node-a")).to_be_visible()
    expect(page.locator("#alert")).to_be_empty()


def test_a_status_that_cannot_be_read_is_said(site: Site) -> None:
    site.state.put('{"version":1,"decided_at":"now","pools":[]}')
    page = site.open()
    expect(page.get_by_role("alert")).to_contain_text("status.json cannot be understood. There is nothing to show.")
    assert "NO NEWS" in page.title()


def test_a_newer_status_is_said(site: Site) -> None:
    site.state.put('{"version":2}')
    expect(site.open().get_by_role("alert")).to_contain_text("newer version than this page")


def test_what_was_known_stays_when_the_status_breaks_or_goes_or_nginx_ends(
    tmp_path: Path, hosts: dict[str, Host], browser: Browser
) -> None:
    state = FakeState(clean_state(hosts["work"]), {"llm_cluster": [FakeNode("node-a")]}, interval=1)
    with ingress(tmp_path, hosts["work"], [9]) as running:
        site = Site(state, running.status_url, browser)
        site.fill(60)
        page = site.open()
        alert = page.get_by_role("alert")
        expect(card(page, "node-a")).to_be_visible()
        state.put("{")
        expect(alert).to_contain_text("status.json cannot be understood. What is shown is of")
        (state.directory / "status.json").unlink()
        expect(alert).to_contain_text("status.json is gone")
    expect(alert).to_contain_text("nginx does not answer")
    expect(page).to_have_title("NO NEWS · ingress-1 · vllm-nginx-lb")
    expect(card(page, "node-a")).to_be_visible()
    with ingress(tmp_path, hosts["work"], [9]):
        state.tick(time.time())
        expect(alert).not_to_contain_text("nginx does not answer")
    page.context.close()


# --- Who may see the page -----------------------------------------------------------------------------------------


def test_what_nodes_say_stays_text(site: Site) -> None:
    hostile = """<img src=x onerror="document.title='owned'"><script>alert(1)</script>\u202e'"&amp;"""
    for node in site.nodes.values():
        node.reason = node.error = node.error_cause = hostile
        node.cause = "unreadable"  # a cause whose reason contains the error
    site.state.held = hostile
    site.state.pools[hostile] = [FakeNode("__proto__", cause=hostile), FakeNode("constructor")]
    site.fill(60)
    site.nodes["node-a"].weight = 1
    site.state.tick(time.time(), "failed", error=hostile, deferred=hostile)
    page = site.open()
    expect(card(page, "node-a").locator(".reason")).to_have_text(hostile)
    expect(page.get_by_role("alert")).to_contain_text(hostile)
    expect(page.locator(".pool h2").last).to_have_text(hostile)
    expect(card(page, "__proto__")).to_be_visible()
    page.locator("#all summary").click()
    assert hostile in "".join(page.locator("#all li").all_text_contents())
    assert page.locator("img, main script").count() == 0
    assert "owned" not in page.title()
    assert site.complaints == []
    assert len(site.paths()) == len(LOADED) + 3


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(site: Site, width: int) -> None:
    long = "x" * 63
    site.state.pools["y" * 63] = [FakeNode(long, kv=1.0, waiting=12345, running=12345, reason="z" * 300)]
    site.state.held = "h" * 300
    site.fill(HOUR, outcome="failed", error="e" * 300)
    page = site.open(viewport={"width": width, "height": 780})
    expect(card(page, long)).to_be_attached()
    page.locator("#all summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    right = "(it) => it.getBoundingClientRect().right"
    edge = max(page.locator("article").evaluate_all(f"(cards) => cards.map({right})"))
    assert max(page.locator("article *").evaluate_all(f"(all) => all.map({right})")) <= edge


def luminance(page: Page, selector: str, name: str) -> float:
    """Return the relative luminance of a colour of an element, as the contrast of WCAG takes it."""
    read = "(it, name) => getComputedStyle(it)[name]"
    parts = page.locator(selector).first.evaluate(read, name).strip("rgba()").split(",")[:3]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(p) / 255 for p in parts)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_there_is_light_and_dark_with_enough_contrast_in_both(site: Site) -> None:
    site.nodes["node-a"].fail("connection refused")
    site.fill(60, outcome="failed", error="nginx -t failed")
    pages: dict[str, float] = {}
    pictures: set[bytes] = set()
    for scheme in ("light", "dark"):
        page = site.open(color_scheme=scheme)
        expect(page.locator(".chart canvas")).to_have_count(7)
        pages[scheme] = luminance(page, "body", "backgroundColor")
        pictures.add(page.locator("#timeline canvas").screenshot())
        for text, ground in (
            ("#summary", "body"),
            ("#host", "body"),
            (".facts dt", ".facts > div"),
            ("#outcome", ".facts > div"),
            (".problem", ".problem"),
            ("[data-state=up] .state", "[data-state=up]"),
            ("[data-state=down] .state", "[data-state=down]"),
            ("[data-state=down] .details", "[data-state=down]"),
        ):
            light = sorted((luminance(page, text, "color"), luminance(page, ground, "backgroundColor")))
            assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5, (scheme, text)
    assert pages["light"] > 0.8
    assert pages["dark"] < 0.05
    assert len(pictures) == 2


def test_an_hour_of_four_nodes_weighs_less_than_150_kb(site: Site) -> None:
    site.state.pools["embeddings"].append(FakeNode("node-d"))
    end = time.time()
    for left in range(719, -1, -1):  # the most that one hour can have: the segment before begins at its start
        if left == 359:
            site.state.rotate()
        for number, node in enumerate(site.nodes.values()):
            node.kv, node.running = (left * 7919 + number * 104729) % 10000 / 10000, (left * 31 + number) % 17
            node.waiting, node.reason = (left + number) % 5, f"{left * 7.7:.0f} tokens/s at {node.kv:.0%} load"
            node.weight = 100 - (left // 5 + number) % 50
        site.state.tick(end - 10 * left, ("published", "unchanged")[left % 2], write=not left)
    page = site.browser.new_context().new_page()
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    weights: dict[str, int] = {}
    urls: dict[str, str] = {}
    session.on("Network.requestWillBeSent", lambda it: urls.update({it["requestId"]: it["request"]["url"]}))
    session.on("Network.loadingFinished", lambda it: weights.update({it["requestId"]: it["encodedDataLength"]}))
    page.goto(f"{site.url}/")
    expect(page.locator(".chart canvas")).to_have_count(9)
    served = {urls[request].removeprefix(site.url): weight for request, weight in weights.items()}
    assert served.keys() >= {"/history.jsonl", "/history-000001.jsonl.gz", "/status.json", *LOADED}
    assert all(served.values()), "a file that the browser had already weighs nothing"
    assert sum(served.values()) < 150_000, served
    print(sum(served.values()), served)  # noqa: T201 - shown with -s
    assert len(page.evaluate("statusPage.page.history.times")) >= 359


def test_what_the_page_is_made_of_weighs_less_than_108_kib_without_its_comments() -> None:
    files = [PAGE / name.removeprefix("/") for name in LOADED if name != "/"]
    text = "".join(file.read_text(encoding="utf-8") for file in (PAGE / "index.html", *files))
    assert len(re.sub(r"^ *(//|/\*\*|\*).*\n", "", text, flags=re.MULTILINE).encode()) < 108 * 1024


def test_hundreds_of_nodes_are_shown_with_charts_for_those_in_view(site: Site) -> None:
    site.state.pools["llm_cluster"] = [FakeNode(f"n{number:03}") for number in range(300)]
    site.state.interval = 1
    site.state.pools["llm_cluster"][299].fail("connection refused, 3 in a row")
    site.fill(360)
    page = site.open()
    expect(page.locator("article")).to_have_count(30)
    expect(page.locator("article h3").first).to_have_text("n299")
    page.get_by_role("button", name="Show all 301").click()
    expect(page.locator("article")).to_have_count(301)
    expect(page.locator("article canvas").first).to_be_visible()
    assert page.locator("article canvas").count() < 40
    card(page, "n299").scroll_into_view_if_needed()
    expect(card(page, "n299").locator("canvas")).to_have_count(2)
    assert page.locator("article canvas").count() < 40
    page.get_by_role("searchbox").fill("down")
    expect(page.locator("article:visible h3")).to_have_text(["n299"])
    page.get_by_role("searchbox").fill("unreachable")
    expect(page.locator("article:visible h3")).to_have_text(["n299"])
    page.get_by_role("searchbox").fill("n29 kv_level")
    expect(page.locator("article:visible")).to_have_count(9)
    expect(page.locator("#find output")).to_have_text("9 of 301 nodes")


def test_of_a_thousand_nodes_the_worst_are_shown_and_the_others_are_found(site: Site) -> None:
    nodes = [FakeNode(f"gpu-{number:03}", weight=20 + number % 80) for number in range(1000)]
    site.state.pools = {"llm_cluster": nodes[:900], "embeddings": nodes[900:]}
    nodes[950].fail("connection refused, 3 in a row")
    nodes[7].state, nodes[7].weight, nodes[7].cause = "drained", 0, "drained_by_operator"
    nodes[7].reason, nodes[7].drained_since = "drained by the operator: new fan", time.time() - 3 * 86400
    nodes[8].kv = 0.97
    site.state.interval = 60
    site.fill(300)
    page = site.open()
    expect(page.locator("#summary")).to_have_text(
        "998 up, 1 down, 1 drained · 3996 running · 0 waiting · highest KV 97 % (gpu-008)"
    )
    expect(page.locator("article")).to_have_count(30)
    expect(page.locator(".pool").nth(0).locator("h3").first).to_have_text("gpu-007")
    expect(page.locator(".pool").nth(1).locator("h3").first).to_have_text("gpu-950")
    expect(page.locator(".pool").nth(1).locator("header p").first).to_have_text(
        "99 up, 1 down · 396 running, 0 waiting"
    )
    expect(card(page, "gpu-007").locator(".reason")).to_have_text("drained by the operator: new fan (3 d ago)")
    expect(page.locator("#rest span")).to_have_text("30 of 1000 nodes, the worst first; not shown: 970 up.")

    search = page.get_by_role("searchbox", name="Show")
    search.fill("embeddings gpu-99")
    expect(page.locator("article h3")).to_have_text([f"gpu-99{digit}" for digit in range(10)])
    expect(page.locator("#find output")).to_have_text("10 of 1000 nodes")
    expect(page.locator("#rest")).to_be_hidden()
    search.fill("nothing of that kind")
    expect(page.locator("article")).to_have_count(0)
    search.fill("gpu-1")
    expect(page.locator("#rest span")).to_contain_text("30 of 100 nodes")

    # With the keyboard alone.
    search.press("Tab")
    expect(page.get_by_role("button", name="Show all 100")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(100)
    assert page.locator("article canvas").count() < 40
    button = page.get_by_role("button", name="Show the 30 worst")
    expect(button).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("article")).to_have_count(30)
    assert site.complaints == []


def test_the_nodes_are_shown_before_the_history_is_there(site: Site) -> None:
    site.fill(60)
    held: list[Route] = []
    page = site.browser.new_context().new_page()
    page.route("**/history.jsonl", lambda route: held.append(route))  # noqa: PLW0108 - Playwright takes no built-in
    page.goto(f"{site.url}/")
    expect(page.locator("article h3")).to_have_text(["node-a", "node-b", "node-c"])
    expect(page.locator("#latest")).to_have_text("The history of the last hour is being read.")
    assert page.locator("canvas").count() == 0
    held[0].continue_()
    expect(page.locator(".chart canvas")).to_have_count(7)
    expect(page.locator("#latest")).to_have_text("Nothing happened.")


def test_the_page_names_the_host_and_the_version(site: Site) -> None:
    site.fill(60)
    page = site.open()
    expect(page.get_by_role("heading", level=1)).to_have_text("ingress-1")
    expect(page).to_have_title("3/3 up · ingress-1 · vllm-nginx-lb")
    expect(page.locator(".top .muted")).to_have_text(re.compile(r"^vllm-nginx-lb 9\.8\.7 at 127\.0\.0\.1:\d+$"))


def test_live_weights_are_told_from_decided_ones(site: Site) -> None:
    site.nodes["node-a"].state, site.nodes["node-a"].weight = "drained", 0
    site.nodes["node-a"].cause, site.nodes["node-a"].reason = "drained_by_operator", "drained by the operator"
    site.state.live = {"llm_cluster": {"node-b": 100, "node-a": 90, "node-x": 7}}
    site.fill(60, outcome="deferred", deferred="the last reload was 5 s ago")
    page = site.open()
    expect(page.get_by_role("status").first).to_have_text(
        "Still live. nginx runs the weights of generation 9f3ac21b04de: 3 nodes differ; "
        "node-a still gets requests (live 90, decided 0), node-x still gets requests (live 7, no longer in the "
        "configuration), node-b (live 100, decided 60)."
    )
    expect(page.locator("#summary")).to_contain_text("2 up, 1 drained (1 still live), 1 gone (1 still live)")
    expect(card(page, "node-a").locator(".state")).to_have_text("still live")
    expect(card(page, "node-a").locator(".weight dd")).to_have_text("0 decided, 90 live")
    expect(card(page, "node-a").locator(".reason")).to_have_text(
        "drained, and nginx still sends it requests: drained by the operator"
    )
    expect(card(page, "node-b").locator(".weight dd")).to_have_text("60 decided, 100 live")
    expect(card(page, "node-b").locator(".state")).to_have_text("up")
    expect(card(page, "node-x").locator(".state")).to_have_text("still live")
    light = sorted(
        luminance(page, text, name)
        for text, name in (("[data-state=live] .state", "color"), ("[data-state=live]", "backgroundColor"))
    )
    assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5

    site.state.live = {}
    site.state.tick(time.time())
    expect(page.locator("#live")).to_be_hidden()
    expect(card(page, "node-a").locator(".state")).to_have_text("drained")
    assert site.complaints == []


def test_an_ejected_node_is_not_shown_as_up(site: Site) -> None:
    site.fill(60)
    page = site.browser.new_context().new_page()
    nodes = [{"pool": "llm_cluster", "node": "node-b", "cause": "errors", "seconds": 3}]
    page.route("**/work/ejected", lambda route: route.fulfill(json={"generation": "0a", "nodes": nodes}))
    page.goto(f"{site.url}/")
    expect(card(page, "node-b").locator(".state")).to_have_text("ejected")
    expect(card(page, "node-b").locator(".reason")).to_contain_text("ejected by nginx for a short time (errors); ")
    expect(page.locator("#summary")).to_contain_text("2 up, 1 ejected")
    expect(page).to_have_title("2/3 up · ingress-1 · vllm-nginx-lb")


def test_the_codes_that_the_page_knows_are_the_scripts() -> None:
    text = (PAGE / "status.js").read_text(encoding="utf-8")
    lists = re.findall(r"const ([A-Z_]+) = \[(.*)\]", text)
    known = {name: set(re.findall(r'"(\w+)"', words)) for name, words in lists}
    assert known.pop("REASON_HAS_ERROR") < set(NodeCause)
    assert known.pop("CHANGES") | known.pop("FAULTS") == set(CHANGES)
    assert known == {"STATES": set(STATES)}


FORBIDDEN = (
    "/memory.json",
    "/plan.json",
    "/lock",
    "/.status.json",
    "/metrics.prom",
    "/history-000001.jsonl",
    "/history-.jsonl.gz",
    "/history-000002.jsonl.gz",
    "/history.jsonl/",
    "/history/../memory.json",
    "/vendor/../../lua/server.conf",
    "/vendor/..%2findex.html",
    "/vendor/",
    "/index.html",
    "/lua/server.conf",
    "/page.old.js",
    "/vendor.js/main.js",
    "/main.js/",
    "/main.js.gz",
    "/page/main.js",
)


def get(host: Host, path: str, source: str = "127.0.0.1", to: str = "127.0.0.1", method: str = "GET") -> Any:
    """Ask the status server, from an address of this host; return status, headers and body."""
    connection = http.client.HTTPConnection(to, host.status_port, timeout=20, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize("name", ["work", "upstream"])
def test_of_the_state_only_what_the_page_reads_is_served(tmp_path: Path, hosts: dict[str, Host], name: str) -> None:
    host = hosts[name]
    state = FakeState(clean_state(host), {"llm_cluster": [FakeNode("node-a")]})
    state.tick(time.time() - 10)
    state.rotate()
    state.tick(time.time())
    for secret in ("memory.json", "plan.json", "readings.json", "lock", "metrics.prom"):
        (state.directory / secret).write_text("secret")
    (state.directory / "history-000002.jsonl.gz").symlink_to(state.directory / "memory.json")
    with ingress(tmp_path, host, [9]):
        for path in FORBIDDEN:
            assert get(host, path)[0] in (400, 403, 404), path
        types = {
            "/": "text/html",
            "/page.css": "text/css",
            **dict.fromkeys(MODULES, "text/javascript"),
            "/vendor/uPlot.iife.min.js": "text/javascript",
            "/status.json": "application/json",
            "/history.jsonl": "application/x-ndjson",
            "/history-000001.jsonl.gz": "application/x-ndjson",
        }
        for path, kind in types.items():
            status, headers, body = get(host, path)
            assert (status, headers["Content-Type"], bool(body)) == (200, kind, True), path
            assert headers["Content-Encoding"] == ("gzip" if path.endswith(".gz") else None)
            assert headers.get_all("Cache-Control") == ["no-cache"]
            assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
            assert headers.get_all("Referrer-Policy") == ["no-referrer"]
            (policy,) = headers.get_all("Content-Security-Policy")
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert get(host, path, method="HEAD")[0] == 200
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert get(host, path, method=method)[0] == 405


ALL = (
    "/",
    "/main.js",
    "/status.json",
    "/work",
    "/work/metrics",
    "/work/ejected",
    "/generation",
    "/stub_status",
    "/nothing",
)


def test_only_this_host_and_those_that_the_inventory_allows_see_anything(
    tmp_path: Path, hosts: dict[str, Host]
) -> None:
    host = hosts["upstream"]
    FakeState(clean_state(host), {"llm_cluster": [FakeNode("node-a")]}).tick(time.time())
    with ingress(tmp_path, host, [9]):
        seen = {
            source: {path: get(host, path, source, to)[0] for path in ALL}
            for source, to in (
                ("127.0.0.1", "127.0.0.1"),
                ("127.0.0.2", "127.0.0.1"),
                ("127.0.0.80", "127.0.0.3"),
                ("127.0.0.3", "127.0.0.3"),
                ("127.0.0.4", "127.0.0.3"),
                ("127.0.0.79", "127.0.0.1"),
            )
        }
    here = dict.fromkeys(ALL, 200) | dict.fromkeys(("/work", "/work/metrics", "/nothing"), 404)
    allowed = here | dict.fromkeys(("/generation", "/stub_status"), 403)
    refused = dict.fromkeys(ALL, 403)
    assert seen == {
        "127.0.0.1": here,
        "127.0.0.2": refused,
        "127.0.0.80": refused,
        "127.0.0.3": allowed,
        "127.0.0.4": allowed,
        "127.0.0.79": allowed,
    }


def test_the_status_server_can_listen_everywhere_and_still_answer_this_host_alone(
    tmp_path: Path, hosts: dict[str, Host]
) -> None:
    host = hosts["everywhere"]
    with ingress(tmp_path, host, [9]):
        for path in ("/work", "/work/metrics", "/work/ejected", "/generation", "/stub_status", "/main.js"):
            assert get(host, path, to="127.0.0.9")[0] == 200
            assert get(host, path, "127.0.0.9", "127.0.0.9")[0] == 403
            assert get(host, path, "::1", "::1")[0] == 200


def test_the_page_can_be_switched_off(tmp_path: Path, hosts: dict[str, Host]) -> None:
    host = hosts["off"]
    FakeState(clean_state(host), {"llm_cluster": [FakeNode("node-a")]}).tick(time.time())
    with ingress(tmp_path, host, [9]):
        assert [get(host, path)[0] for path in ("/", "/main.js", "/status.json", "/history.jsonl")] == [404] * 4
        assert get(host, "/work")[0] == 200


# --- With the script ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["work", "upstream"])
def test_a_real_tick_is_shown(
    tmp_path_factory: pytest.TempPathFactory, stack: Stack, hosts: dict[str, Host], browser: Browser, name: str
) -> None:
    host = hosts[name]
    directory = clean_state(host)
    stack.config["state_directory"] = str(directory)
    stack.nodes[1].load |= {"kv": 0.8, "running": 5.0, "waiting": 2.0}
    for _ in range(3):
        assert stack.script("run").returncode == 0
    status = json.loads((directory / "status.json").read_text())
    with ingress(tmp_path_factory.mktemp("page"), host, [9]) as running:
        assert ask(f"{running.status_url}/history.jsonl").status == 200
        site = Site(FakeState(directory, {}), running.status_url, browser)
        page = site.open()
        expect(page.locator("article h3")).to_have_text(["node-a", "node-b", "node-c"])
        numbers = card(page, "node-b").locator("dd b")
        expect(numbers).to_have_text([str(status["pools"][0]["nodes"][1]["weight"]), "80 %", "5", "2"])
        expect(card(page, "node-b").locator(".reason")).to_have_text(status["pools"][0]["nodes"][1]["reason"])
        expect(page.locator("#generation")).to_have_text(status["generation"][:12])
        expect(page.locator("#alert")).to_be_empty()
        assert page.evaluate("statusPage.page.history.times.length") == 3
        assert [kind for kind, _ in events(page)].count("change") == 1
        assert site.complaints == []
        page.context.close()
