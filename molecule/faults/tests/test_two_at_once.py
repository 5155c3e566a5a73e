"""Group 6: a tick and something else that changes the same files, and ticks that hang."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import stack
import ticks
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = "/etc/vllm-nginx-lb/config.yml"


@contextmanager
def config_restored() -> Iterator[None]:
    """Put the configuration back that is there now."""
    ticks.shell(f"cp -p {CONFIG} {CONFIG}.kept")
    try:
        yield
    finally:
        ticks.shell(f"mv {CONFIG}.kept {CONFIG}")


@pytest.mark.fault(
    6,
    "Ansible changes the configuration while ticks run back to back",
    sees="reloaded: generation",
    keeps="all: the play ends well, and what it configured is live",
)
def test_ansible_runs_during_ticks() -> None:
    with config_restored(), ThreadPoolExecutor(max_workers=1) as pool:
        play = pool.submit(
            stack.play, *ticks.OPERATOR, *ticks.QUICKLY, "-e", "vllm_nginx_lb_max_fails=7", "playbooks/balancer.yml"
        )
        outcomes = []
        while not play.done():
            outcomes.append(ticks.tick())
            wait([play], timeout=1)  # the play waits for a moment without a tick
        assert play.result().returncode == 0, play.result().stdout
        assert len(outcomes) > 1
        assert stack.published().count("max_fails=7 ") == len(stack.nodes())
        ticks.await_live()
    assert ticks.tick()
    assert stack.published().count("max_fails=10 ") == len(stack.nodes())


@pytest.mark.fault(
    6,
    "a tick hangs, in the test of the configuration or in the reload",
    sees="vllm-nginx-lb.service: start operation timed out. Terminating.",
    keeps="the last upstream serves; systemd ends the tick, and the timer's next one makes the change",
)
@pytest.mark.parametrize("key", ["test_command", "reload_command"])
def test_a_tick_hangs(key: str) -> None:
    began = time.time()
    with ticks.drained("node-c"):
        with config_restored():
            config = yaml.safe_load(ticks.shell(f"cat {CONFIG}"))
            config["nginx"][key] = ["sleep", "60"]
            ticks.shell(f"cat > {CONFIG} <<'END'\n{json.dumps(config)}\nEND")
            stack.on_ingress("systemctl", "start", "--no-block", ticks.SERVICE)
            stack.wait_until(
                lambda: ticks.shell("grep --files-with-matches --no-messages ^sleep /proc/[0-9]*/cmdline || true"),
                within_seconds=18,
                what="the command runs",
            )
        stack.wait_until(
            lambda: any("timed out" in line for line in ticks.journal(began)), within_seconds=25, what="systemd ends it"
        )
        # Nobody starts the next tick but the timer.
        ticks.start_timer()
        ticks.await_out("node-c", within_seconds=3 * stack.INTERVAL_SECONDS)


@pytest.mark.fault(
    6,
    "`run` by hand while the service's tick runs",
    sees="another run holds the lock",
    keeps="all: the second one ends at once (75), the first goes on",
)
def test_run_by_hand_during_a_tick(heard: list[str]) -> None:
    holds_the_lock = 'grep --quiet ":$(stat --format=%i /var/lib/vllm-nginx-lb/lock) " /proc/locks'
    stack.control("node-a", faults={"hang": {"scope": "metrics"}})
    try:
        done = stack.attempt(
            "ingress-1",
            "sh",
            "-euc",
            f"""systemctl start --no-block {ticks.SERVICE}
            for i in $(seq 50); do {holds_the_lock} && break; sleep 0.1; done
            exec vllm-nginx-lb run""",
        )
    finally:
        stack.control("node-a", faults={"hang": None})
    heard.append(done.stderr)
    assert done.returncode == 75
    ticks.await_end()
    assert ticks.property_of(ticks.SERVICE, "Result") == "success"
