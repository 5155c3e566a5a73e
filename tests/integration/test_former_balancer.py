"""What the role removes of the balancer that is not used any more, beside the published file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from tests.playbook import play

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]  # Ansible takes seconds for a playbook

OF_BOTH = ("000001.0a.json", "000001.0a.bak", "new", "record.new", "failed", "000002.edited")


@pytest.mark.parametrize(("balancer", "unused"), [("upstream", "weights.json"), ("work", "upstream.conf")])
def test_only_hand_edits_stay_of_the_other_balancer(tmp_path: Path, balancer: str, unused: str) -> None:
    directory = tmp_path / "nginx"
    directory.mkdir()
    names = [f".{file}.{kind}" for file in ("weights.json", "upstream.conf") for kind in OF_BOTH]
    names += ["weights.json", "upstream.conf", ".lock", ".weights.jsonx.new", "clients.conf"]
    for name in names:
        (directory / name).touch()
    playbook = tmp_path / "play.yml"
    task = {"import_role": {"name": "vllm_nginx_lb", "tasks_from": "former_balancer"}}
    playbook.write_text(yaml.safe_dump([{"hosts": "ingress", "gather_facts": False, "tasks": [task]}]))
    inventory = {"ingress": {"hosts": {"ingress-1": {"ansible_connection": "local"}}}}
    variables: dict[str, Any] = {
        "ansible_python_interpreter": "/usr/bin/python3",
        "nginx_ingress_balancer": balancer,
        "__vllm_nginx_lb_upstream_directory": str(directory),
    }
    for changed in (1, 0):
        done = play(tmp_path, inventory, playbook, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"changed={changed} " in done.stdout
    gone = {f".{unused}.{kind}" for kind in OF_BOTH if kind != "000002.edited"}
    assert {path.name for path in directory.iterdir()} == set(names) - gone
