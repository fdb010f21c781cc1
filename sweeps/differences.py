"""What differs between two configurations, in lines that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.errors import dotted_path
from search_spaces.problems import Path

ABSENT = "(absent)"


def configuration_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for every value that differs: ``attacks.epsilon: 0.06 -> 0.1``; empty if none does."""
    return [f"{dotted_path(path)}: {_show(one)} -> {_show(other)}" for path, one, other in _walk(old, new, ())]


def _walk(old: Any, new: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _walk(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif _nested(old) and _nested(new):
        for position in range(max(len(old), len(new))):
            one, other = (side[position] if position < len(side) else ABSENT for side in (old, new))
            yield from _walk(one, other, (*path, position))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield path, old, new


def _nested(value: Any) -> bool:
    """Whether a list has mappings in it, so that its entries are compared one by one; plain lists are one value."""
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _show(value: Any) -> str:
    return value if value is ABSENT else json.dumps(value, ensure_ascii=False)
