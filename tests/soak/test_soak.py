"""Half an hour of a site, twenty times as fast. Only requests that meet a faulty node may fail."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import wait_for
from tests.soak.clients import Clients
from tests.soak.disturbed_site import ACCELERATION, FAIL_TIMEOUT_SECONDS, TICK_SECONDS, TICKS, DisturbedSite
from tests.soak.schedule import Schedule
from tests.soak.simulated_site import WORKERS, Site, node_names, start_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLIENTS, MAX_TOKENS = 16, range(4, 60)
# Seconds a client waits after a request that failed. Without a pause, a node that fails fast would get most of the
# requests of the balancer `upstream`, which does not eject by outcome.
PAUSE_SECONDS = {"upstream": 1, "work": 0.1}
# How many requests a node with fast errors may fail before `work` leaves it out; `upstream` has no such bound.
MOST_DRAWN = 60
# Small KV caches: the load alone changes weights, and preempts requests.
NODE_OPTIONS = ("--num-blocks=14", "--step-ms=20", "--prefill-token-ms=0.1")


def counted(counts: Counter[Any]) -> str:
    """Return counts in one line."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def scaled_config(site: Site) -> None:
    """Divide the default times by the acceleration, except time limits that this machine has to keep."""
    site.config["interval_seconds"] = TICK_SECONDS
    site.config["scrape"] = {"timeout_seconds": 0.5}
    site.config["nginx"] |= {"min_reload_interval_seconds": 30 / ACCELERATION, "confirm_timeout_seconds": 5}
    site.config["health"] = {"stale_after_seconds": 180 / ACCELERATION}
    site.config["pools"][0] |= {"fail_timeout_seconds": FAIL_TIMEOUT_SECONDS}


@contextmanager
def noting(note: str) -> Iterator[None]:
    """Add a note to an exception."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


@pytest.mark.parametrize(
    ("balancer", "hosts"),
    [
        ("upstream", ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")),
        ("work", ("127.0.0.10", "127.0.0.11", "127.0.0.12", "127.0.0.13")),
    ],
    ids=["upstream", "work"],
)
def test_no_request_to_a_healthy_node_fails(
    tmp_path: Path,
    heard: list[str],
    seed: int,
    record_property: Callable[[str, object], None],
    balancer: str,
    hosts: tuple[str, ...],
) -> None:
    schedule = Schedule(seed, node_names(hosts), TICKS).events()
    with (
        noting("\n".join([f"SOAK_SEED={seed}:", *map(str, schedule)])),
        start_site(tmp_path, heard, hosts, NODE_OPTIONS, balancer) as site,
        Clients(site.ingress_port, PAUSE_SECONDS[balancer]) as clients,
    ):
        scaled_config(site)
        soak, master = DisturbedSite(site), site.master_pid
        soak.tick()
        wait_for(site.is_settled)
        clients.keep_busy(CLIENTS, MAX_TOKENS, random.Random(seed))  # noqa: S311 - repeatable, not secret
        soak.play(schedule)
        clients.finish()
        recovered_after = soak.recover()

        failed = [answer for answer in clients.answers if answer.problem]
        verdict, entries = soak.verdict, site.entries()
        unexplained, drawn = verdict.unexplained(failed, entries), verdict.most_drawn(failed, entries)
        returned = verdict.longest_return(clients.answers)
        record_property(
            f"soak on {balancer}, seed {seed}",
            f"{len(clients.answers)} requests, {len(failed)} failed "
            f"({counted(Counter(answer.problem for answer in failed))}), {len(unexplained)} of them at healthy nodes; "
            f"a node with fast errors failed {drawn} at most; after a fault of all nodes the last failed after "
            f"{returned:.2f} s at most; "
            f"{counted(soak.counts)}; weights right after {recovered_after} more",
        )
        assert not unexplained, "\n".join(unexplained[:5])
        assert balancer == "upstream" or drawn <= MOST_DRAWN, f"a node with fast errors failed {drawn} requests"
        assert recovered_after is not None, f"{site.status()}\n{heard[-10:]}"
        assert site.master_pid == master
        wait_for(lambda: len(site.worker_pids()) == WORKERS)
        assert not list(site.upstream.parent.glob(".*.new")), "a temporary file is left"
        assert subprocess.run([*site.nginx, "-t", "-q"], check=False).returncode == 0
