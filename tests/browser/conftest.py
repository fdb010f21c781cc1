"""A headless Chromium, and MLflow's server over the mirror of a made-up sweep of twelve trials.

The browser is the distribution's (`apt-get install chromium`); nothing is downloaded. Without one the tests are
skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot
from sweeps.tracking import Mirror
from sweeps.tracking_ui import links, start_ui, stop_ui
from tests.sweeps import ledgers

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000
METHODS = ("plain", "jasmin", "adversarial")


class Site(NamedTuple):
    """MLflow's pages of a sweep."""

    folder: SweepFolder
    snapshot: Snapshot
    pages: dict[str, str]
    """What `links` promises: name → address."""
    experiment: str
    """Address of the experiment's page."""

    def trial(self, number: int, part: str = "") -> str:
        """Address of a trial's page."""
        run = self.snapshot.trials[number].mlflow_run_id
        return f"{self.experiment}/runs/{run}{part}?workflowType=machine_learning"


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """A headless browser. It brings an event loop, which other folders' tests must not meet."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no browser ({', '.join(NAMES)}); `apt-get install chromium` brings one")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: make check installs it"
    )
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # which the superuser cannot have
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=[*arguments, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page of a visitor who was never here; at the end no script may have failed."""
    high = {"width": 1600, "height": 2400}  # MLflow draws only what is in sight
    context = chromium.new_context(viewport=high)
    context.set_default_timeout(PATIENCE_MS)
    visited = context.new_page()
    failures: list[str] = []
    visited.on("pageerror", lambda error: failures.append(str(error)))
    yield visited
    context.close()
    assert not failures


def make_ledger(folder: SweepFolder) -> Ledger:
    """Twelve trials of three methods, the last one failed; the front judged on test images; complete."""
    ledger = ledgers.empty(folder, requested=12)
    with Lease(ledger):
        for number in range(11):
            robust = (60 + 12 * number) // (2 if number in (4, 7) else 1)
            ledgers.finish(ledger, number, METHODS[number % 3], 0.96 - number / 50, robust, None)
        ledgers.propose(ledger, 11, "jasmin")
        ledgers.start(ledger, 11)
        ledger.fail(11, "nan", ledgers.TRACEBACK)
        ledgers.settle(ledger)
        ledger.complete()
        Mirror(ledger, folder, None, "paretune").sync()
    return ledger


@pytest.fixture(scope="package")
def site(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = ledgers.folder_at(tmp_path_factory.mktemp("site"))
    ledger = make_ledger(folder)
    snapshot = Snapshot.read(ledger)
    ledger.close()
    server, address = start_ui(folder.default_tracking_uri)
    front = [t.mlflow_run_id for t in snapshot.front if t.mlflow_run_id]
    pages = links(snapshot.sweep, address, front)
    yield Site(folder, snapshot, pages, f"{address}/#/experiments/{snapshot.sweep.mlflow_experiment_id}")
    stop_ui(server)


@pytest.fixture(scope="package")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of such a sweep."""
    from sweeps.report import build_report

    folder = ledgers.folder_at(tmp_path_factory.mktemp("report"))
    ledger = ledgers.large(folder, 30)
    html, _ = build_report(ledger, folder)
    ledger.close()
    return Path(html)
