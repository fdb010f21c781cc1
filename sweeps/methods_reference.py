"""The tables of docs/methods.md, written from the configuration models: ``python -m sweeps.methods_reference PAGE``.

The prose of the page is written by hand; between ``<!-- fields of NAME -->`` and ``<!-- end -->`` stands the table of
that method. A test compares the two, so that the page cannot fall behind the code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from search_spaces.config import Config, value_types
from sweeps.reference import written
from trainables.registry import find

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
TABLE = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(page: str) -> str:
    """Return the page with every table between markers written anew; UnknownName if a marker names no method."""
    return TABLE.sub(lambda found: f"{found[1]}{_table(find('methods', found[2]).Config)}{found[3]}", page)


def documented_methods(page: str) -> list[str]:
    """Return the methods that have a table, in the order of the page."""
    return [name for _, name, _ in TABLE.findall(page)]


def allowed(config: type[Config], name: str) -> str:
    """Say in words what a field allows: "0 to 1", "a whole number ≥ 0", "max or mean", "null, or > 0"."""
    types = list(value_types(config, name))
    field = config.model_fields[name]
    said = " or ".join(filter(None, (_kind(value_type) for value_type in types if value_type is not NoneType)))
    text = " ".join(filter(None, (said, _range(dict(_bounds(field.metadata, field.annotation))))))
    return f"null, or {text}" if NoneType in types else text


def _kind(value_type: object) -> str:
    if get_origin(value_type) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(value_type))
    return {bool: "true or false", int: "a whole number"}.get(value_type, "")  # type: ignore[call-overload, no-any-return]


def _range(bounds: Mapping[str, float]) -> str:
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']:g} to {bounds['le']:g}"
    return " and ".join(f"{sign} {bounds[key]:g}" for key, sign in SIGNS.items() if key in bounds)


def _bounds(metadata: Iterable[Any], annotation: Any) -> Iterator[tuple[str, float]]:
    """Yield the limits that stand beside a field's type, or beside a member of its union."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata, None)
        yield from ((key, getattr(item, key)) for key in SIGNS if hasattr(item, key))
    for member in get_args(annotation):
        if get_origin(member) is Annotated:
            yield from _bounds(member.__metadata__, None)


def _table(config: type[Config]) -> str:
    rows = list(_rows(config))
    if not rows:
        return "No fields of its own.\n"
    return "\n".join(["| field | default | allowed | searched in | meaning |", "|---|---|---|---|---|", *rows, ""])


def _rows(config: type[Config]) -> Iterator[str]:
    domains = config.domains()
    for name, field in config.model_fields.items():
        meaning = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
        domain = domains.get(name, "no domain of its own")
        yield f"| `{name}` | `{written(field.default)}` | {allowed(config, name)} | {domain} | {meaning} |"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(fill_tables(target.read_text()))
