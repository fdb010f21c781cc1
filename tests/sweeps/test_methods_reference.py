"""docs/methods.md: every method has its section, and the tables are what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from search_spaces.config import Config, Number
from sweeps.methods_reference import allowed, documented_methods, fill_tables
from trainables.registry import UnknownName, built_in_names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
PARTS = ("Purpose", "Equation", "Hyper-parameters", "What differs from the paper", "Published", "Pitfalls", "Citation")


class Example(Config):
    share: Annotated[Number, Field(ge=0, le=1)] = 0.5
    positive: Annotated[Number, Field(gt=0)] | None = None
    count: Annotated[int, Field(ge=1)] = 1
    below: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    which: Literal["max", "mean"] = "max"
    flag: bool = True


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("share", "0 to 1"),
        ("positive", "null, or > 0"),
        ("count", "a whole number ≥ 1"),
        ("below", "≥ 0 and < 1"),
        ("which", "`max` or `mean`"),
        ("flag", "true or false"),
    ],
)
def test_a_range_is_said_in_words(field: str, text: str) -> None:
    assert allowed(Example, field) == text


def test_only_what_stands_between_markers_is_written() -> None:
    page = "# Prose\n<!-- fields of jasmin -->\nold\n<!-- end -->\nmore `k`\n"
    filled = fill_tables(page)
    assert filled.startswith("# Prose\n<!-- fields of jasmin -->\n| field |")
    assert filled.endswith("|\n<!-- end -->\nmore `k`\n")
    assert "| `k` | `10` | a whole number ≥ 0 |" in filled
    assert fill_tables(filled) == filled
    with pytest.raises(UnknownName):
        fill_tables("<!-- fields of nothing -->\n<!-- end -->")


def test_the_tables_of_the_page_are_what_the_code_says() -> None:
    page = PAGE.read_text()
    assert page == fill_tables(page), "run: python -m sweeps.methods_reference docs/methods.md"


def test_every_built_in_method_has_a_section_with_all_its_parts() -> None:
    page = PAGE.read_text()
    assert sorted(documented_methods(page)) == built_in_names("methods")
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        if documented_methods(section):
            assert re.findall(r"^\*\*(.+?)\.\*\*", section, flags=re.MULTILINE) == list(PARTS), section[:40]
