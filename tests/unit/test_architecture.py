"""docs/architecture.md names the files that exist, and every module of the script and of the Lua code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LUA = "roles/nginx_ingress/files/lua/vllm_nginx_lb"
PATH = re.compile(r"`([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*/?)`")


def rows() -> set[str]:
    """Return the paths in the first column of the tables below headings such as "### `files/vllm_lb/`: …"."""
    found = set()
    for heading, text in re.findall(r"^### (.*)\n((?:(?!#).*\n)*)", PAGE, re.MULTILINE):
        folder = PATH.search(heading)
        for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE):
            found |= {(folder[1] if folder else "") + name for name in PATH.findall(cell)}
    return found


def modules(folder: str, suffix: str) -> set[str]:
    files = (ROOT / folder).rglob(f"*{suffix}")
    return {str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"}


def test_every_path_in_a_table_exists() -> None:
    assert len(rows()) > 60
    assert [path for path in sorted(rows()) if not (ROOT / path).exists()] == []


def test_every_path_in_the_text_exists() -> None:
    table_or_heading = re.compile(r"^(\||#).*$", re.MULTILINE)
    paths = {path for path in PATH.findall(table_or_heading.sub("", PAGE)) if "/" in path}
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_answer_to_a_question_is_a_file() -> None:
    _, _, text = PAGE.partition("\n## Where is it decided?\n")
    answers = re.findall(r"^\| [^|]+ \| (`[^|]*) \|$", text.partition("\n## ")[0], re.MULTILINE)
    assert len(answers) >= 20
    for answer in answers:
        assert [path for path in PATH.findall(answer) if not (ROOT / path).exists()] == []


def test_every_module_of_the_script_has_a_row() -> None:
    assert modules("files/vllm_lb", ".py") - rows() == set()


def test_every_module_of_lua_has_a_row() -> None:
    assert modules(LUA, ".lua") - rows() == set()


def test_every_script_of_the_status_page_has_a_row() -> None:
    page = "roles/nginx_ingress/files/page"
    assert {path for path in modules(page, ".js") if "/vendor/" not in path} - rows() == set()


def test_every_role_has_a_row() -> None:
    assert {f"roles/{role.name}/" for role in (ROOT / "roles").iterdir() if role.is_dir()} - rows() == set()
