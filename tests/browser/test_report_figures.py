"""The report's figures and tables in a browser: what is drawn when it is reached, and what a click does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.report import render_html
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers


@pytest.fixture(scope="module")
def long_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 120 trials, more than a table shows at first."""
    folder = ledgers.folder_at(tmp_path_factory.mktemp("long"))
    ledger = ledgers.large(folder, 20)
    few = Snapshot.read(ledger)
    ledger.close()
    trials = tuple(replace(few.trials[n % 20], number=n) for n in range(120))
    stages = {n: few.stages.get(n % 20, ()) for n in range(120)}
    html = folder.report_html
    html.write_text(render_html(replace(few, trials=trials, stages=stages), "finished", "ui"))
    return html


def test_figures_are_drawn_when_they_are_reached_and_rows_shown_when_asked_for(page: Any, long_report: Path) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.set_viewport_size({"width": 420, "height": 800})
    page.goto(long_report.as_uri())
    page.locator("#figure .point").first.wait_for(state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420  # what is wider scrolls by itself
    for name, drawn in (("importance-figure", ".bars .point"), ("growth-figure", ".js-line"), ("lines-0", ".js-line")):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.locator(f"#{name} {drawn}").first.wait_for(state="attached")
    visible = "[...document.querySelectorAll('tr[id]')].filter((row) => row.offsetParent).length"
    assert page.evaluate(visible) == 100
    hidden = page.evaluate("[...document.querySelectorAll('tr[id]')].find((row) => !row.offsetParent).id")
    page.evaluate(f"location.hash = '{hidden}'")
    assert page.locator(f"#{hidden}").is_visible()
    head = page.locator("table.sortable th", has_text="clean").first
    head.click()
    first = page.locator("table.sortable tbody tr").first.locator("td").nth(4).inner_text()
    best = max(page.evaluate("[...document.querySelectorAll('tr[id]')].map((row) => +row.cells[4].innerText || 0)"))
    assert float(first) == best
    page.locator("button.more").click()
    assert page.evaluate(visible) == 120
    assert said == []
