"""Group 5: nginx is stopped, restarting, or its binary is gone. The balancer never starts it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import stack
import ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clients import Clients

NGINX = "nginx.service"


@contextmanager
def nginx_stopped(clients: Clients) -> Iterator[None]:
    """Stop nginx, and start it again."""
    with clients.pause:
        stack.on_ingress("systemctl", "stop", NGINX)
        try:
            yield
        finally:
            stack.on_ingress("systemctl", "start", NGINX)


@contextmanager
def damaged(damage: str) -> Iterator[None]:
    """Damage the upstream file with a command, and check that it is restored in the end."""
    file = stack.published_file()
    ticks.shell(f"cp -p {file} /run/upstream.kept; {damage} {file}")
    try:
        yield
    finally:
        ticks.shell(f"cmp --silent /run/upstream.kept {file} || cp -p /run/upstream.kept {file}")


@pytest.mark.fault(
    5,
    "nginx is stopped",
    sees="nginx does not answer at http://127.0.0.1:18091/generation (connection refused): is it running?",
    keeps="nothing: whoever stopped nginx starts it, the balancer never does; the first tick after that is well",
)
def test_nginx_is_stopped(clients: Clients) -> None:
    with nginx_stopped(clients):
        for _ in range(2):
            assert "is it running?" in ticks.failing_tick()
            assert ticks.property_of(NGINX, "ActiveState") == "inactive"
    assert ticks.tick()


@pytest.mark.fault(
    5,
    "nginx is stopped, and the upstream file is damaged",
    sees="is it running?; /etc/nginx/vllm-nginx-lb/upstream.conf could not start it and is generation … again",
    keeps="nothing; but the file is restored, so that nginx can be started",
)
@pytest.mark.parametrize("damage", ["echo 'upstream {' >>", "truncate --size=100", "rm"])
def test_nginx_is_stopped_and_the_upstream_file_is_damaged(clients: Clients, damage: str) -> None:
    good = stack.published()
    with nginx_stopped(clients), damaged(damage):
        assert not ticks.tick()
        assert stack.published() == good
        assert ticks.property_of(NGINX, "ActiveState") == "inactive"
    assert ticks.tick()


@pytest.mark.fault(
    5,
    "nginx runs, and its binary is gone",
    sees="nothing changed, the configuration test fails already: nginx cannot be run: …No such file or directory",
    keeps="the last upstream serves; the first tick with the binary makes the change",
)
def test_the_binary_of_nginx_is_gone() -> None:
    before = stack.published()
    with ticks.drained("node-c"):
        ticks.shell("mv /usr/sbin/nginx /usr/sbin/nginx.away")
        try:
            assert "nginx cannot be run" in ticks.failing_tick()
            assert stack.published() == before
        finally:
            ticks.shell("mv /usr/sbin/nginx.away /usr/sbin/nginx")
        assert ticks.tick()
        ticks.await_out("node-c")


@pytest.mark.fault(
    5,
    "nginx is restarted again and again while weights change",
    sees="reloaded: generation",
    keeps="nginx, whenever it is up, serves a whole upstream; in the end the right one",
)
def test_nginx_restarts_during_ticks(clients: Clients) -> None:
    # Without reset-failed systemd would refuse the sixth start within ten seconds.
    restart = f"systemctl reset-failed {NGINX}; systemctl restart {NGINX}"
    with clients.pause, ThreadPoolExecutor(max_workers=1) as pool:
        restarts = pool.submit(ticks.shell, f"for i in 1 2 3 4 5 6 7 8; do {restart}; done")
        for _ in range(3):
            with ticks.drained("node-c"):
                ticks.tick()
            ticks.tick()
        restarts.result()
        assert ticks.tick()
    ticks.await_live()
    assert set(stack.weights().values()) == {100}
    assert stack.on_ingress("systemctl", "list-units", "--failed", "--quiet", "--plain", NGINX, ticks.SERVICE) == ""
