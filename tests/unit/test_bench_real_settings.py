"""What the real-time benchmark gives to the Lua of the balancer `work`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.contestant import Backend, Site
from benchmarks.proxies import CONTESTANTS
from benchmarks.proxies.outstanding_work import OutstandingWork

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unmeasured


def settings_of(contestant: OutstandingWork, site: Site) -> dict[str, Any]:
    """Return the settings that differ from the defaults."""
    found = re.search(r"\[==\[(.*?)\]==\]", contestant.upstream(site))
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_the_default_is_measured_as_installed_and_variants_differ_in_one_setting(tmp_path: Path) -> None:
    site = Site(directory=tmp_path, backends=(Backend("a", "127.0.0.2", 80),), port=1, status_port=2, scale=0.1)
    ours = {each.name: each for each in CONTESTANTS if isinstance(each, OutstandingWork)}
    settings = settings_of(ours["ours-work"], site)
    files = {"file", "upstream_file", "readings_file"}
    times = {"prefill_bytes_per_second", "refresh_seconds", "ramp_seconds", "stall_seconds", "backoff"}
    assert set(settings) == files | times
    config = ours["ours-work"].script_config(site)
    assert settings["file"] == config["nginx"]["upstream_file"]
    assert settings["readings_file"] == f"{config['state_directory']}/readings.json"
    assert settings_of(ours["ours-work-no-prefix"], site) == settings | {"affinity": "off"}
