"""Lines on the terminal that a person may copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_as_is(console: Console, text: str, style: str | None = None) -> None:
    """Print text that is no markup and is not wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
