"""The status page of the demo, as an operator's browser shows it: the real stack, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING

import openai
import prometheus
import pytest
import stack
from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

SLOWED = "node-c"
STREAMS = 24  # more than a simulated node of the demo computes at once
# Longer than three ticks, after which data counts as old, and longer than the wait for a new tick.
LONG_ENOUGH_MS = 90_000


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """Return what the browser complains about."""
    return []


@pytest.fixture(scope="module")
def page(complaints: list[str]) -> Iterator[Page]:
    """Open the page at the address that the demo prints."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: tools/system-packages monitoring installs it"
    arguments = ["--no-proxy-server", *([] if os.geteuid() else ["--no-sandbox"])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        it = browser.new_page()
        it.on("pageerror", lambda error: complaints.append(str(error)))
        it.on("console", lambda said: complaints.append(said.text))
        it.goto(f"{prometheus.STATUS_URL}/")
        yield it
        browser.close()


def card(page: Page, name: str) -> Locator:
    """Find the card of a node."""
    return page.locator("article", has=page.get_by_role("heading", name=name, exact=True))


def last_tick() -> float:
    """Return when the last tick read the nodes, by /status.json."""
    return datetime.fromisoformat(stack.status()["decided_at"]).timestamp()


def test_it_lists_the_nodes_with_what_the_balancer_decided(page: Page) -> None:
    expect(page.locator("article h3")).to_have_text(["node-a", "node-b", "node-c"])
    expect(page).to_have_title("3/3 up · ingress-1 · vllm-nginx-lb", timeout=LONG_ENOUGH_MS)
    for name, weight in stack.weights().items():
        expect(card(page, name).locator(".weight b")).to_have_text(str(weight), timeout=LONG_ENOUGH_MS)


def test_its_charts_have_data(page: Page) -> None:
    expect(page.locator(".chart canvas")).to_have_count(7)
    drawn = "[...statusPage.plots.values()].map((plot) => plot.data[1].filter((it) => it !== null).length)"
    # The first plot is the time line, which has no line of its own. Each node has two: its weight, and its requests.
    assert min(page.evaluate(drawn)[1:]) > 2


def test_a_node_that_becomes_slow_is_seen_within_two_ticks(page: Page) -> None:
    expect(card(page, SLOWED).locator(".weight b")).to_have_text("100", timeout=LONG_ENOUGH_MS)
    stack.control(SLOWED, speed=0.1)
    user = openai.OpenAI(base_url=f"http://{stack.ADDRESSES[SLOWED]}/v1", api_key="unused", max_retries=0, timeout=300)
    with user, ThreadPoolExecutor(STREAMS) as pool:
        asked = [
            pool.submit(user.completions.create, model="sim", prompt="slow", max_tokens=600) for _ in range(STREAMS)
        ]
        try:
            before = last_tick()
            expect(card(page, SLOWED).locator(".weight b")).not_to_have_text("100", timeout=LONG_ENOUGH_MS)
            shown = page.evaluate("Date.parse(statusPage.page.status.decided_at) / 1000")
            ticks = [at for at in page.evaluate("statusPage.page.history.times") if before + 0.01 < at <= shown]
            assert 1 <= len(ticks) <= 2, ticks
            expect(card(page, SLOWED)).to_have_attribute("data-cause", "downgraded")
        finally:
            stack.control(SLOWED, speed=100)
        assert [answer.result().choices[0].finish_reason for answer in asked] == ["length"] * STREAMS
    stack.control(SLOWED, speed=1)
    expect(card(page, SLOWED).locator(".weight b")).to_have_text("100", timeout=LONG_ENOUGH_MS)


def test_old_data_is_marked_until_the_timer_runs_again(page: Page) -> None:
    expect(page.locator("#alert")).to_be_empty(timeout=LONG_ENOUGH_MS)
    stack.on_ingress("systemctl", "stop", "vllm-nginx-lb.timer")
    try:
        expect(page.get_by_role("alert")).to_contain_text("Old data.", timeout=LONG_ENOUGH_MS)
        expect(page.locator("body")).to_have_class("old")
        expect(page).to_have_title("OLD DATA · ingress-1 · vllm-nginx-lb")
        stopped_at = last_tick()
        assert page.evaluate("Date.parse(statusPage.page.status.decided_at) / 1000") == pytest.approx(stopped_at)
    finally:
        stack.on_ingress("systemctl", "start", "vllm-nginx-lb.timer")
    expect(page.locator("#alert")).to_be_empty(timeout=LONG_ENOUGH_MS)
    expect(page.locator("body")).not_to_have_class("old")
    assert last_tick() > stopped_at


def test_the_browser_had_nothing_to_complain_of(complaints: list[str]) -> None:
    assert complaints == []
