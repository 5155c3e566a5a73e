"""docs/architecture.md names the files that exist, and every module of the script and of the Lua code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LUA = "roles/nginx_ingress/files/lua/vllm_nginx_lb"
PATH = re.compile(r"`([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*/?)`")


def rows_in_order() -> list[str]:
    """Return the paths in the first column of the tables below headings such as "### `files/vllm_lb/`: …"."""
    found = []
    for heading, text in re.findall(r"^### (.*)\n((?:(?!#).*\n)*)", PAGE, re.MULTILINE):
        folder = PATH.search(heading)
        for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE):
            found += [(folder[1] if folder else "") + name for name in PATH.findall(cell)]
    return found


def rows() -> set[str]:
    return set(rows_in_order())


def modules(folder: str, suffix: str) -> set[str]:
    files = (ROOT / folder).rglob(f"*{suffix}")
    return {str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"}


def test_every_path_in_a_table_exists() -> None:
    assert len(rows()) > 60
    assert [path for path in sorted(rows()) if not (ROOT / path).exists()] == []


def test_every_path_outside_these_tables_exists() -> None:
    text, _, rest = PAGE.partition("\n## The rooms\n")
    paths = {path for path in PATH.findall(text + rest.partition("\n## ")[2]) if "/" in path}
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_answer_to_each_question_is_a_file() -> None:
    _, _, text = PAGE.partition("\n## Where is it decided?\n")
    answers = re.findall(r"^\| [^|]+\? \| ([^|]*) \|$", text, re.MULTILINE)
    assert len(answers) > 20
    assert [answer for answer in answers if not any((ROOT / path).is_file() for path in PATH.findall(answer))] == []


def test_every_module_of_the_script_has_a_row() -> None:
    assert modules("files/vllm_lb", ".py") - rows() == set()


def imports(module: Path) -> set[str]:
    """Return the modules of the package that a module imports, also those that only a type checker imports."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm_lb":
            for name in node.names:
                package = f"files/{node.module}".replace(".", "/")
                paths = (f"{package}/{name.name}.py", f"{package}.py", f"{package}/__init__.py")
                found.add(next(path for path in paths if (ROOT / path).exists()))
    return found - {"files/vllm_lb/__init__.py"}


def test_a_module_of_the_script_imports_only_what_stands_above_it() -> None:
    order = [path for path in rows_in_order() if path.startswith("files/vllm_lb/") and path.endswith(".py")]
    wrong = [
        (path, below)
        for place, path in enumerate(order)
        for below in sorted(imports(ROOT / path) - set(order[:place]) - {path})
    ]
    assert wrong == []


def test_every_module_of_lua_has_a_row() -> None:
    assert modules(LUA, ".lua") - rows() == set()


def test_every_script_of_the_status_page_has_a_row() -> None:
    page = "roles/nginx_ingress/files/page"
    assert {path for path in modules(page, ".js") if "/vendor/" not in path} - rows() == set()


def test_every_part_of_the_nginx_configuration_has_a_row() -> None:
    role = "roles/nginx_ingress"
    parts = modules(f"{role}/files/nginx", ".conf") | modules(f"{role}/templates/etc/nginx/vllm-nginx-lb/parts", ".j2")
    assert parts
    assert parts - rows() == set()


def test_every_role_has_a_row() -> None:
    assert {f"roles/{role.name}/" for role in (ROOT / "roles").iterdir() if role.is_dir()} - rows() == set()
