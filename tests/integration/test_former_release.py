"""What a host of the release before the package has, and what becomes of it: backups without records."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Stack

HEAD = "# Written by vllm-nginx-lb; changes made here are lost. sha256 of the rest: %s\n"
OLDER, NEWER = "0123456789abcdef", "fedcba9876543210"  # generations


def former_file(stack: Stack, generation: str, weight: int) -> str:
    """Return an upstream file as the former release wrote it."""
    servers = "".join(
        f"    server 127.0.0.1:{node.port} weight={weight} max_fails=10 fail_timeout=60s; # {node.name}\n"
        for node in stack.nodes
    )
    rest = (
        f'map "" $vllm_nginx_lb_generation {{ default "{generation}"; }}\n\n'
        f"upstream llm_cluster {{\n    zone llm_cluster 1m;\n    least_conn;\n{servers}}}\n"
    )
    return HEAD % hashlib.sha256(rest.encode()).hexdigest() + rest


@pytest.fixture
def former(stack: Stack) -> Stack:
    """Have a host on which the former release has published twice."""
    text = ""
    for number, (generation, weight) in enumerate(((OLDER, 90), (NEWER, 80)), 1):
        text = former_file(stack, generation, weight)
        stack.upstream.with_name(f".upstream.conf.{number:06d}.{generation}.bak").write_text(text)
    stack.upstream.write_text(text)
    stack.restart()
    return stack


def test_the_first_tick_publishes_and_takes_nothing_for_an_edit(former: Stack) -> None:
    said = former.run()
    assert "reloaded: generation" in said
    assert "changed by hand" not in said
    assert not former.edits()
    assert former.run() == ""


def test_a_rollback_finds_its_backups(former: Stack) -> None:
    done = former.script("rollback")
    assert (done.returncode, done.stderr) == (0, "")
    former.await_generation(OLDER)
    former.run()
    assert former.script("rollback").returncode == 0
    former.await_generation(OLDER)


def test_a_damaged_file_is_put_back_while_nginx_is_down(former: Stack) -> None:
    good = former.upstream.read_text()
    former.stop()
    former.upstream.write_text(good[:100])
    assert f"generation {NEWER} again" in former.run(1)
    assert former.upstream.read_text() == good
    former.start()
    former.run()


def test_an_edit_of_its_file_is_kept(former: Stack) -> None:
    former.upstream.write_text(former.upstream.read_text() + "# mine\n")
    assert "changed by hand: +# mine" in former.run()
    assert len(former.edits()) == 1
