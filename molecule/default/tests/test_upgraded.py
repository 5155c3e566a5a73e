"""An upgrade from the former version and back, under load. The step before has uninstalled the stack."""

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


def play(hosts: Path, tree: Path = stack.PROJECT) -> None:
    """Run a version's site play, which must succeed."""
    done = stack.play("-i", hosts, "site.yml", tree=tree)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Check out the former version."""
    return former.check_out(tmp_path_factory.mktemp("version"))


@pytest.fixture(scope="module")
def former_hosts(tree: Path) -> Path:
    """Write the inventory of the former version, and install that version on the ingress."""
    hosts = former.inventory(tree, HOSTS.parent)
    play(hosts, tree)
    former.assert_live()
    return hosts


def test_an_upgrade_fails_no_request_and_leaves_no_former_file(former_hosts: Path) -> None:
    del former_hosts  # used only for its effect: the former version is installed
    assert {former.SCRIPT, former.VIEW} <= former.files()

    with keep_asking(streams=STREAMS):
        play(HOSTS)
        former.assert_live()

    installed = (stack.EPHEMERAL / "installed-files").read_text(encoding="utf-8")
    assert former.files() == set(installed.splitlines()), "an upgraded host has the files of a fresh one"
    assert stack.attempt("ingress-1", "test", "-L", former.SCRIPT).returncode == 0, "it is a link to the entry"
    former.assert_script(stack.PROJECT)


def test_the_way_back_fails_no_request(tree: Path, former_hosts: Path) -> None:
    with keep_asking(streams=STREAMS):
        play(former_hosts, tree)
        former.assert_live()

    assert {former.SCRIPT, former.VIEW} <= former.files()
    # The former role writes it through the link.
    former.assert_script(tree)
