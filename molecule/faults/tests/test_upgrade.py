"""Back to the oldest version and up again with the balancer `upstream`; the scenario `default` has the other one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import former
import stack
import ticks
from clients import keep_asking

if TYPE_CHECKING:
    from pathlib import Path


def test_the_way_back_and_the_upgrade_fail_no_request(tmp_path: Path) -> None:
    tree = former.check_out(tmp_path, former.OLDEST)
    hosts = former.inventory(tree, ticks.INVENTORY)
    fresh = former.files()

    with keep_asking(streams=2):
        done = stack.play(f"--inventory={hosts}", ticks.VAULT, "site.yml", tree=tree)
        assert done.returncode == 0, done.stdout
        former.assert_live()
        assert {former.SCRIPT, former.VIEW} <= former.files()
        former.assert_script(tree)

        done = stack.play(*ticks.OPERATOR, "site.yml")
        assert done.returncode == 0, done.stdout
        former.assert_live()

    assert former.files() == fresh, "an upgraded host has the files of a fresh one"
    former.assert_script(stack.PROJECT)
