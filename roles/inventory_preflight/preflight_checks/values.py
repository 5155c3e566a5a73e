"""Values of variables: types and choices as in argument_specs.yml, ranges and forms as in limits.yml.

A row of limits.yml is `{least: 1, most: 65535}` for a number, or `{form: REGEX, allowed: WORDS}` for a text. Rows of
lists are for each element. Variables that become settings of config.yml have no row: the script's schema has theirs.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from . import specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Option = dict[str, Any]

LONGEST = 120  # characters of a value in a message
# Spellings that Ansible's filter `bool` reads.
BOOLEANS = dict.fromkeys(("true", "yes", "on", "1", "y", "t"), True) | dict.fromkeys(
    ("false", "no", "off", "0", "n", "f"), False
)
WORDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "path": "a text",
    "str": "a text",
}


def plain(value: object, kind: str) -> object:
    """Return a value as its type, if it is a text that can be converted: ansible-core 2.16 turns values into texts."""
    if not isinstance(value, str | int | float):
        return value
    text = str(value).strip()
    if kind == "bool":
        return BOOLEANS.get(text.lower(), value)
    if kind == "int" and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text) if not isinstance(value, bool) else value
    if kind in ("int", "float") and isinstance(value, str):
        try:
            number = float(text)
        except ValueError:
            return value
        return number if math.isfinite(number) and kind == "float" else value
    return value


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number. Python counts True as one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FITS: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "dict": lambda value: isinstance(value, dict),
    "float": is_number,
    "int": lambda value: is_number(value) and isinstance(value, int),
    "list": lambda value: isinstance(value, list | tuple),
    "path": lambda value: isinstance(value, str),
    "raw": lambda _: True,
    "str": lambda value: isinstance(value, str),
}


def shown(value: object, option: Option) -> str:
    """Return ` is VALUE`, or that it is a secret. A long value is cut."""
    if is_secret(option):
        return " (not shown)"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f" is {text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}"


def is_secret(option: Option) -> bool:
    """Tell whether a variable or any part of it is a secret."""
    return bool(option.get("no_log")) or any(is_secret(each) for each in option.get("options", {}).values())


def hint(value: object, option: Option) -> str:
    """Return what to do about a wrong value."""
    if option.get("type") in ("str", "path") and isinstance(value, bool):
        return "put it in quotes, because YAML reads off, on, yes and no without quotes as true or false"
    if option.get("type") in ("str", "path") and is_number(value):
        return "put it in quotes, because YAML reads it as a number"
    return "correct it"


def bounds(limit: Mapping[str, Any], words: str) -> str:
    """Return what a limit allows."""
    if "allowed" in limit:
        return str(limit["allowed"])
    if "most" in limit:
        return f"{words} from {limit['least']} to {limit['most']}"
    return f"{words} from {limit['least']}" if "least" in limit else words


def is_within(value: Any, limit: Mapping[str, Any]) -> bool:
    """Tell whether a value of the right type is within its range, or has its form."""
    if "form" in limit:
        return re.fullmatch(limit["form"], value) is not None
    return bool(limit.get("least", -math.inf) <= value <= limit.get("most", math.inf))


def problems_of(where: str, value: object, option: Option, limit: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each fault of a value.

    Args:
        where: the name of the variable, or the place within it.
        value: without templates.
        option: its entry in argument_specs.yml.
        limit: its row of limits.yml, or nothing.
    """
    kind = option.get("type", "str")
    value = plain(value, kind)
    scalar = kind not in ("list", "dict")
    words = bounds(limit, WORDS.get(kind, "")) if scalar else WORDS[kind]
    if "choices" in option:
        words = f"one of {', '.join(map(str, option['choices']))}"
    fits = FITS[kind](value)
    if fits and "choices" in option:
        fits = value in option["choices"]
    elif fits and scalar and limit:
        fits = is_within(value, limit)
    if not fits:
        yield f"{where}{shown(value, option)}; allowed is {words}; {hint(value, option)}"
    elif isinstance(value, list | tuple):
        inner = {"type": option.get("elements", "raw"), "options": option.get("options", {})}
        inner["no_log"] = is_secret(option)
        for index, each in enumerate(value):
            yield from problems_of(f"{where}[{index}]", each, inner, limit)
    elif isinstance(value, dict) and option.get("options"):
        yield from key_problems(where, value, option["options"])


def key_problems(where: str, value: dict[str, Any], options: dict[str, Option]) -> Iterator[str]:
    """Yield a line for each key of a dict that is unknown, missing or wrong."""
    for key in value:
        if key not in options:
            yield f"{where} has {json.dumps(key)}; allowed is {', '.join(options)}; correct or remove it"
    for key, option in options.items():
        if key in value:
            yield from problems_of(f"{where}.{key}", value[key], option, {})
        elif option.get("required"):
            yield f"{where}: {key} is missing; add it"


def typed(value: Any, option: Option) -> Any:
    """Return a value with the types of its entry in argument_specs.yml, as the templates cast it."""
    if option.get("type") == "list" and isinstance(value, list | tuple):
        inner = {"type": option.get("elements", "raw"), "options": option.get("options", {})}
        return [typed(each, inner) for each in value]
    if option.get("options") and isinstance(value, dict):
        return {key: typed(each, option["options"].get(key, {"type": "raw"})) for key, each in value.items()}
    return plain(value, option.get("type", "str"))


def variable_problems(role: str, found: Mapping[str, object]) -> dict[str, str]:
    """Return the lines about the values of a role's variables, by name of the variable."""
    limits = specs.limits(role)
    lines = {
        name: list(problems_of(name, found[name], option, limits.get(name, {})))
        for name, option in specs.variables(role).items()
        if name in found
    }
    return {name: "\n".join(each) for name, each in lines.items() if each}
