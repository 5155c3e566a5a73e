"""An upgrade from the last version and back, under load. The step before has uninstalled the stack.

The scenario `faults` does the same with the oldest version and the balancer `upstream`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import former
import pytest
import stack
from clients import keep_asking

if TYPE_CHECKING:
    from pathlib import Path

HOSTS = stack.SCENARIO / "inventory" / "hosts.yml"
STREAMS = 2
DRAINED = "node-c"


def play(hosts: Path, tree: Path = stack.PROJECT) -> None:
    """Run a version's site play, which must succeed."""
    done = stack.play("-i", hosts, "site.yml", tree=tree)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Check out the last version."""
    return former.check_out(tmp_path_factory.mktemp("version"), former.LAST)


@pytest.fixture(scope="module")
def former_hosts(tree: Path) -> Path:
    """Write the inventory as somebody copied it from the last version, and install that version on the ingress."""
    hosts = former.inventory(tree, HOSTS.parent)
    play(hosts, tree)
    former.assert_live()
    return hosts


def test_an_upgrade_with_the_copied_inventory_fails_no_request_and_leaves_no_former_file(former_hosts: Path) -> None:
    before = former.modules()
    stack.on_ingress("vllm-nginx-lb", "drain", DRAINED)

    with keep_asking(streams=STREAMS):
        play(former_hosts)
        assert stack.nodes()[DRAINED]["state"] == "drained", "the state directory is kept"
        stack.on_ingress("vllm-nginx-lb", "undrain", DRAINED)
        former.assert_live()

    installed = (stack.EPHEMERAL / "installed-files").read_text(encoding="utf-8")
    assert former.files() == set(installed.splitlines()), "an upgraded host has the files of a fresh one"
    assert former.modules() != before
    former.assert_script(stack.PROJECT)


def test_the_way_back_fails_no_request(tree: Path, former_hosts: Path) -> None:
    before = former.modules()

    with keep_asking(streams=STREAMS):
        play(former_hosts, tree)
        former.assert_live()

    assert former.modules() != before
    former.assert_script(tree)
