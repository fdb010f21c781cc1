from __future__ import annotations

from pathlib import Path

from sweeps.reference import render_reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_reference_page_is_what_the_configuration_models_say() -> None:
    assert PAGE.read_text() == render_reference(), "run: python -m sweeps.reference > docs/configuration.md"
