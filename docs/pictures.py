"""The pictures of the pages, taken from a real run: ``python -m docs.pictures runs/quickstart``.

By hand, when the report or MLflow's view has changed: a finished sweep, a Chromium on the PATH and playwright (an extra
of `dev`) are needed. Each picture is written with a palette, so that it stays below 200 kB.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Error, sync_playwright

from sweeps.conclude import front_of
from sweeps.config import parse_sweep
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.report import build_report
from sweeps.tracking_ui import links, start_ui, stop_ui

HERE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1320, 1280
LARGEST_BYTES = 200_000
COLOURS = (256, 128, 64, 32)
"""Tried in turn until a picture is small enough."""
TABLE = "trials"
"""The section of the report that is the second picture, by its anchor."""
SETTLE_MS = 4000
"""After the first points of a chart the others and the rest of the page still come."""
PATIENCE_MS = 120_000
"""MLflow's pages are slow the first time."""


def take_pictures(folder: SweepFolder, target: Path = HERE) -> list[Path]:
    """Take report.png, report_table.png and mlflow.png of a finished sweep and return where they are.

    The report is built anew. RuntimeError if a picture cannot be made small enough.
    """
    ledger = Ledger.at(folder.ledger)
    report = next(path for path in build_report(ledger, folder) if path.suffix == ".html")
    sweep, trials = ledger.sweep(), ledger.trials()
    ledger.close()
    runs = [t.mlflow_run_id for t in front_of(trials, sweep.objectives) if t.mlflow_run_id]
    uri = parse_sweep(sweep.document).tracking.uri or folder.default_tracking_uri
    server, address = start_ui(uri)
    try:
        with _browser() as page:
            page.goto(report.as_uri())
            page.wait_for_timeout(SETTLE_MS)
            written = [_save(page.screenshot(), target / "report.png")]
            written.append(_save(_section(page, TABLE), target / "report_table.png"))
            page.goto(links(sweep, address, runs)["Pareto view"])
            page.wait_for_selector(".js-plotly-plot .scatterlayer .point", state="attached", timeout=PATIENCE_MS)
            _close_what_covers(page)
            page.wait_for_timeout(SETTLE_MS)
            written.append(_save(page.screenshot(), target / "mlflow.png"))
    finally:
        stop_ui(server)
    return written


@contextmanager
def _browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise RuntimeError(f"there is no browser ({', '.join(NAMES)}) on the PATH")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        browser.close()


def _section(page: Any, anchor: str) -> bytes:
    """Return a section of the report, from its title to the next one, at most as high as the window."""
    page.evaluate(f"document.getElementById('{anchor}').scrollIntoView()")
    page.wait_for_timeout(500)
    find = f"[...document.querySelectorAll('h2')].find(h => h.id !== '{anchor}' && h.offsetTop > {anchor}.offsetTop)"
    end = page.evaluate(f"{find}?.getBoundingClientRect().top ?? innerHeight")
    picture: bytes = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": min(end, HEIGHT)})
    return picture


def _close_what_covers(page: Any) -> None:
    """Close MLflow's panels that are no part of the view; where their names have changed, they stay."""
    for name in ("Close", "Dismiss"):
        for button in page.get_by_role("button", name=name).all():
            with suppress(Error):
                button.click(timeout=2000)


def _save(picture: bytes, place: Path) -> Path:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for colours in COLOURS:
        packed = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        if len(packed.getvalue()) <= LARGEST_BYTES:
            place.write_bytes(packed.getvalue())
            return place
    raise RuntimeError(f"{place}: {len(packed.getvalue()):,} bytes with {COLOURS[-1]} colours; make the window smaller")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m docs.pictures FOLDER/NAME: the folder of a finished sweep")
    run = Path(sys.argv[1]).resolve()
    for path in take_pictures(SweepFolder.existing(run.parent, run.name)):
        print(f"{path}: {path.stat().st_size:,} bytes")
