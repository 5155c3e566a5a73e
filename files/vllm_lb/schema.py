# SPDX-License-Identifier: Apache-2.0
"""Data with declared types and ranges: one declaration serves config.yml, the plan, the memory and the status.

A dataclass declares each field with `number`, `choice`, `text` and so on. `build` turns plain data (YAML, JSON) into
the dataclass. Of each value that does not fit it says where it is, what it is, and what is allowed.

Modules that declare such data have no `from __future__ import annotations`: a field's type must be the type itself, not
its text, which would take milliseconds to evaluate at each start.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import MISSING, field
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from vllm_lb.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PROBLEMS = 100  # checking ends there: a hostile file may have millions
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def setting(allowed: str, check: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """Declare a dataclass field with its check and the words that describe what it allows."""
    return field(default=default, metadata={"allowed": allowed, "check": check})


def number(low: float, high: float, default: Any = MISSING) -> Any:
    """Declare a number within [low, high]."""
    return setting(f"a number from {low:g} to {high:g}", lambda v: low <= v <= high, default)


def choice(*options: str, default: Any = MISSING) -> Any:
    """Declare one of several words."""
    return setting("one of " + ", ".join(options), lambda v: v in options, default)


def text(pattern: str, allowed: str, default: Any = MISSING) -> Any:
    """Declare a text that a regular expression matches as a whole. Only a check compiles the expression."""
    return setting(allowed, lambda v: bool(re.fullmatch(pattern, v)), default)


def absolute_path(default: Any = MISSING) -> Any:
    """Declare an absolute path."""
    return setting("an absolute path", lambda v: v.startswith("/") and v.isprintable(), default)


def at_least_one(what: str, default: Any = MISSING) -> Any:
    """Declare a list that is not empty."""
    return setting(f"a list of at least one {what}", bool, default)


def build(kind: Any, value: Any, where: str, problems: list[str], allowed: str = "") -> Any:
    """Turn plain data into `kind`: a dataclass, or a type that one of its fields has.

    For a value that does not fit, add a line `where: value: expected ...` to `problems` and return MISSING.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build_record(kind, value, where, problems)
    if get_origin(kind) is UnionType:
        kinds = [each for each in get_args(kind) if each is not type(None)]
        return None if value is None else build(kinds[0], value, where, problems, allowed)
    if get_origin(kind) is tuple:
        return build_list(get_args(kind)[0], value, where, problems, allowed)
    if get_origin(kind) is dict:
        return build_mapping(get_args(kind)[1], value, where, problems)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool) or not is_finite(value):
        problems.append(f"{where}: {quoted(value)}: expected {allowed or WORDS[kind]}")
        return MISSING
    return float(value) if kind is float else value


def build_list(kind: Any, value: Any, where: str, problems: list[str], allowed: str) -> Any:
    """Turn a list into a tuple of `kind`; see `build`."""
    if not isinstance(value, list):
        problems.append(f"{where}: {quoted(value)}: expected {allowed or 'a list'}")
        return MISSING
    items = []
    for i, each in enumerate(value):
        if len(problems) >= MAX_PROBLEMS:
            return MISSING
        items.append(build(kind, each, f"{where}[{i}]", problems))
    return MISSING if MISSING in items else tuple(items)


def build_mapping(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Turn a mapping from texts into a dict of `kind`; see `build`."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        problems.append(f"{where}: {quoted(value)}: expected a mapping")
        return MISSING
    items = {key: build(kind, each, f"{where}.{quoted(key)}", problems) for key, each in value.items()}
    return MISSING if MISSING in items.values() else items


def build_record(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Turn a mapping into the dataclass `kind`; see `build`."""
    if not isinstance(value, dict):
        problems.append(f"{where}: {quoted(value)}: expected a mapping")
        return MISSING
    prefix = f"{where}." if where else ""
    fields = {each.name: each for each in dataclasses.fields(kind)}
    problems += [
        f"{prefix}{quoted(key)}: unknown key: expected one of {', '.join(fields)}" for key in value if key not in fields
    ]
    found: dict[str, Any] = {}
    for name, each in fields.items():
        allowed = each.metadata.get("allowed", "")
        if name not in value:
            if each.default is MISSING:
                problems.append(f"{prefix}{name}: missing: expected {allowed or 'a value'}")
                found[name] = MISSING
            continue
        found[name] = built = build(each.type, value[name], prefix + name, problems, allowed)
        check = each.metadata.get("check")
        if built is not MISSING and built is not None and check and not check(built):
            problems.append(f"{prefix}{name}: {quoted(value[name])}: expected {allowed}")
            found[name] = MISSING
    return MISSING if MISSING in found.values() else kind(**found)


def is_finite(value: Any) -> bool:
    """Tell whether a scalar is fit for arithmetic: YAML and JSON can carry NaN, and integers of any length."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return not isinstance(value, float) or math.isfinite(value)
