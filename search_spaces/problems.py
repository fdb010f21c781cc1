"""Problems: what pydantic and the spaces find wrong, in words that say what was found and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from search_spaces.config import Config, value_types
from search_spaces.errors import Problem

Path = tuple[str | int, ...]

EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
}
"""Pydantic's types of error about a value of the wrong kind, and what a person would have written."""


def unknown_key(path: Path, key: object, allowed: Iterable[str]) -> Problem:
    """Say that a key does not exist, what exists, and which one was probably meant."""
    names = list(allowed)
    return Problem((*path, str(key)), f"unknown key; allowed: {', '.join(names) or 'none'}.", did_you_mean(key, names))


def did_you_mean(found: object, allowed: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the closest of the allowed names, or nothing if none is close."""
    close = difflib.get_close_matches(str(found), list(allowed), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


def problems_of(error: ValidationError, path: Path, config_type: type[Config]) -> list[Problem]:
    """Translate pydantic's errors about a section of type `config_type` that stands at `path`."""
    return [_translate(item, path, config_type) for item in error.errors(include_url=False)]


def validate(config_type: type[Config], section: object, path: Path) -> tuple[Any, list[Problem]]:
    """Return (configuration, []) for a YAML section, None standing for "all defaults"; or (None, problems)."""
    if not isinstance(section, Mapping | None):
        keys = ", ".join(config_type.model_fields)
        return None, [Problem(path, f"expected a mapping with the keys {keys}; found {section!r}.")]
    try:
        return config_type.model_validate(section or {}), []
    except ValidationError as error:
        return None, problems_of(error, path, config_type)


def _translate(item: Any, path: Path, config_type: type[Config]) -> Problem:
    where: Path = (*path, *item["loc"])
    if item["type"] == "extra_forbidden":
        return unknown_key(where[:-1], where[-1], _fields_at(config_type, item["loc"][:-1]))
    hint = ""
    if item["type"] == "literal_error":
        hint = did_you_mean(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    message = _message(item, config_type)
    if item["loc"] and item["type"] != "missing" and "found" not in message:
        message += f"; found {item['input']!r}"
    return Problem(where, f"{message}.", hint)


def _message(item: Any, config_type: type[Config]) -> str:
    if item["type"] in EXPECTED:
        return f"expected {EXPECTED[item['type']]}"
    if item["type"] == "model_type":
        return f"expected a mapping with the keys {', '.join(_fields_at(config_type, item['loc']))}"
    if item["type"] == "too_short":
        return f"expected at least {item['ctx']['min_length']} entry"
    if item["type"] == "missing":
        return "a value is needed; found none"
    text: str = item["msg"].removeprefix("Value error, ").replace("Input should be", "it should be").rstrip(".")
    return text[:1].lower() + text[1:]


def _fields_at(config_type: type[BaseModel], loc: Iterable[str | int]) -> Iterable[str]:
    """Return the keys that are allowed below `loc`, which leads through nested configurations."""
    here: object = config_type
    for part in loc:
        if isinstance(part, int):
            here = next(iter(get_args(here)), None) if get_origin(here) is tuple else None
        elif isinstance(here, type) and issubclass(here, Config) and part in here.model_fields:
            here = next((t for t in value_types(here, part) if isinstance(t, type) or get_origin(t) is tuple), None)
    return here.model_fields if isinstance(here, type) and issubclass(here, Config) else ()
