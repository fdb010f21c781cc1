"""The report is one file that opens without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_the_report_opens_offline_and_draws_the_front(page: Any, report_file: Path) -> None:
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.context.set_offline(True)
    page.goto(report_file.as_uri())
    page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for(state="attached")
    points = page.evaluate("() => document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length")
    assert points >= 10
    assert "digits" in page.inner_text("body")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert said == []
