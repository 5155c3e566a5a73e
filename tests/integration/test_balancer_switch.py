"""A tick between the two plays that change the balancer: nginx has the new one, and config.yml the former one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import ROOT, SEED, Stack
from tests.integration.test_work_balancer import WorkStack, work

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["work"]  # the fixture
ROLE_FILE = ROOT / "roles/nginx_ingress/files/nginx/status_generation.conf"


def beside(it: Stack) -> dict[str, bytes]:
    """Return what lies in the folder of the published file."""
    return {path.name: path.read_bytes() for path in it.upstream.parent.iterdir()}


def is_refused(it: Stack, nginx: str, config: str, *commands: str) -> None:
    """Check that commands change nothing and name the two balancers."""
    before, workers = beside(it), it.worker_pids()
    problem = f"nginx runs the balancer {nginx}, and config.yml has {config}: nothing is published"
    for command in commands:
        done = it.script(command)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"{problem} until site.yml has run to its end"
    assert beside(it) == before
    assert it.worker_pids() == workers, "no reload"
    status = it.status()
    assert (status["outcome"], status["error_cause"]) == ("failed", "other_balancer")


@pytest.mark.fault(
    3,
    "nginx has the balancer `upstream` already, and config.yml still has `work`",
    sees="nginx runs the balancer upstream, and config.yml has work: nothing is published until …",
    keeps="what nginx serves; the tick at the end of the play publishes",
)
def test_from_work_to_upstream(work: WorkStack) -> None:
    work.run()
    work.stock.write_text(SEED)
    (work.directory / "nginx.conf").write_text(f"""
        pid nginx.pid; error_log error.log; worker_processes 1; events {{}}
        http {{
            access_log off; include {work.stock};
            map "" $vllm_nginx_lb_status_client {{ default this_host; }}
            server {{
                listen 127.0.0.1:{work.status_port};
                include {ROLE_FILE}; add_header X-Vllm-Nginx-Lb-Balancer upstream;
            }}
        }}""")
    work.stop()
    work.start()
    is_refused(work, "upstream", "work", "run", "run", "rollback")
    assert work.status()["live_weights"] is None
    work.restart()
    work.run()
    assert (work.status()["outcome"], work.status()["error"]) == ("unchanged", None)


def test_from_upstream_to_work(stack: Stack, tmp_path: Path) -> None:
    stack.run()
    lua = WorkStack(tmp_path, [], stack.status_port, stack.ingress_port, "nginx")
    lua.stock.symlink_to(stack.upstream)
    lua.workers = 1
    lua.settings = {"file": str(tmp_path / "weights.json")}
    lua.write_nginx()
    stack.stop()
    stack.start()
    stack.run()
    assert stack.status()["outcome"] == "unchanged", "the Lua serves the nodes of upstream.conf"
    stack.nodes[0].load["kv"] = 0.95
    is_refused(stack, "work", "upstream", "run", "rollback")
    stack.restart()
    stack.run()
    assert stack.weights()["node-a"] == 10
