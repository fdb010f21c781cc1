"""Names and their settings: from an entry of methods, attacks or parents to parsed configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import Problem
from search_spaces.problems import Path
from search_spaces.space import Space, read_space
from trainables.registry import Kind, UnknownName, find


def read_stack(
    value: Any, path: Path, *, search_by_default: bool = True
) -> tuple[dict[str, Space[Any]], list[Problem]]:
    """Read a method, or several that are stacked; problems, and what could be read. Args: as `read_space`."""
    named, problems = read_entry(value, path)
    spaces: dict[str, Space[Any]] = {}
    for name, section in named.items():
        where = path if isinstance(value, str) else (*path, name)
        if name in ("model", "training", "method"):
            problems.append(Problem(where, f"{name!r} cannot be a method: its parameters would look like the sweep's."))
            continue
        config_type, unknown = find_type("methods", name, where)
        problems += unknown
        if config_type is not None:
            space, found = read_space(config_type, section, where, search_by_default=search_by_default)
            problems += found
            spaces |= {name: space} if space is not None else {}
    return spaces, problems


def read_entry(value: Any, path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Read a name, or a mapping of names to settings."""
    if isinstance(value, str):
        return {value: None}, []
    if isinstance(value, Mapping) and value:
        return dict(value), []
    return {}, [Problem(path, f"expected a name, or a mapping from names to settings; found {value!r}.")]


def find_type(kind: Kind, name: Any, path: Path) -> tuple[Any, list[Problem]]:
    """Return (configuration type, []), or (None, problems) if no class has that name."""
    if not isinstance(name, str):
        return None, [Problem(path, f"expected a name; found {name!r}.")]
    try:
        return find(kind, name).Config, []
    except UnknownName as error:
        return None, [Problem(path, str(error))]
