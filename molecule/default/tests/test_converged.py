"""After the site play ran: requests are answered, and the balancer works at its own pace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import stack


def test_a_plain_completion_is_answered() -> None:
    with stack.client() as user:
        answer = user.chat.completions.create(
            model="sim", max_tokens=12, messages=[{"role": "user", "content": "hello"}]
        )
    assert answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.completion_tokens == 12


def test_a_completion_is_streamed() -> None:
    with stack.client() as user:
        chunks = list(
            user.chat.completions.create(
                model="sim", max_tokens=12, stream=True, messages=[{"role": "user", "content": "hello"}]
            )
        )
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) == 12
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")
def test_clients_come_in_over_ipv6() -> None:
    with stack.client(stack.INGRESS["container_ipv6"]) as user:
        assert [model.id for model in user.models.list()] == ["sim"]


def test_every_node_gets_requests() -> None:
    assert set(stack.shares(30)) == {"node-a", "node-b", "node-c"}


def test_ticks_come_at_the_wanted_pace_and_neither_reload_nor_say_anything() -> None:
    assert f"OnUnitActiveUSec={stack.INTERVAL_SECONDS}s" in stack.on_ingress(
        "systemctl", "show", "--property=TimersMonotonic", "vllm-nginx-lb.timer"
    )
    stack.wait_until(
        lambda: stack.status()["outcome"] == "unchanged", 6 * stack.INTERVAL_SECONDS, what="a tick that changes nothing"
    )
    before = (stack.generation(), stack.workers())
    said = [entry["MESSAGE"] for entry in stack.journal()]
    assert any("weight new -> 100" in message for message in said)
    seen: set[str] = set()

    def six_ticks() -> bool:
        seen.add(stack.status()["decided_at"])
        return len(seen) > 6

    # A machine may be slow, but a timer without AccuracySec= ticks once a minute.
    stack.wait_until(six_ticks, within_seconds=15 * stack.INTERVAL_SECONDS, what="six ticks")

    assert (stack.generation(), stack.workers()) == before, stack.status()
    assert stack.status()["outcome"] == "unchanged"
    later = stack.journal()[len(said) :]
    noise = [each for each in later if each["SYSLOG_IDENTIFIER"] == "vllm-nginx-lb" or int(each["PRIORITY"]) > 4]
    assert noise == []


def test_systemd_finds_nothing_wrong_with_the_units() -> None:
    units = ("vllm-nginx-lb.service", "vllm-nginx-lb.timer")
    stack.on_ingress("systemd-analyze", "verify", "--man=no", *(f"/etc/systemd/system/{unit}" for unit in units))
    # The threshold is ten times the exposure.
    stack.on_ingress("systemd-analyze", "security", "--threshold=20", "vllm-nginx-lb.service")


def test_the_modules_are_compiled_for_the_python_of_the_host_and_ticks_write_no_bytecode() -> None:
    library = "/usr/local/lib/vllm-nginx-lb"
    difference = (
        "import pathlib, importlib.util as u; "
        f"found = {{str(path) for path in pathlib.Path('{library}/').rglob('*.pyc')}}; "
        f"modules = pathlib.Path('{library}/vllm_lb').rglob('*.py'); "
        "print(*found ^ {u.cache_from_source(str(module)) for module in modules})"
    )
    assert stack.on_ingress("python3", "-c", difference).split() == []
    assert "Compiling" not in stack.on_ingress("python3", "-m", "compileall", f"{library}/vllm_lb"), "up to date"


def test_nodes_are_read_without_privileges_and_applied_as_root() -> None:
    owners = stack.on_ingress(
        "stat", "--format=%n %U", "/var/lib/vllm-nginx-lb/plan.json", stack.STATUS_FILE, stack.published_file()
    )
    assert dict(line.split() for line in owners.splitlines()) == {
        "/var/lib/vllm-nginx-lb/plan.json": "vllm-nginx-lb",
        stack.STATUS_FILE: "root",
        stack.published_file(): "root",
    }


def test_a_wrong_inventory_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    shutil.copytree(stack.SCENARIO / "inventory", tmp_path, dirs_exist_ok=True)
    hosts = tmp_path / "hosts.yml"
    text = hosts.read_text(encoding="utf-8")
    hosts.write_text(text.replace("{ansible_host: sim-b}", "{ansible_host: sim-b, vllm_port: 70000}"), encoding="utf-8")

    done = stack.play("-i", hosts, "site.yml")

    assert done.returncode != 0
    assert "node-b: vllm_port is 70000; allowed is a number from 1 to 65535" in done.stdout
    assert "PLAY [Put nginx" not in done.stdout
