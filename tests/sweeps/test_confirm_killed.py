"""A confirmation with real trainings: `kill -9` in its middle, and `confirm` again ends with the same figures."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from sweeps.confirmed import find_confirmation
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State
from tests.crash.drivers import Driver, launch

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = ("search.trials=3", "training.epochs=2", "attacks.images=20", "tracking.enabled=false")


def confirm(storage: Path) -> Driver:
    return Driver(storage, "confirm", "s", "--seeds", "2", "--storage", ".")


def finished(storage: Path) -> int:
    path = storage / "s-confirm" / "ledger.db"
    if not path.exists():
        return 0
    ledger = Ledger.at(path)
    try:
        return len(ledger.trials([State.FINISHED], bare=True))
    finally:
        ledger.close()


def result(storage: Path) -> dict[str, Any]:
    folder = SweepFolder(storage, "s")
    ledger = Ledger.at(folder.ledger)
    found = find_confirmation(folder, ledger.sweep().id)
    ledger.close()
    assert found is not None
    assert found.is_whole
    return found.public()


def test_a_confirmation_that_was_killed_ends_with_the_figures_of_one_that_was_not(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    search = launch(calm, *SMALL)
    assert search.wait() == 0, search.text()
    assert "python run_sweep.py confirm s" in search.text()
    shutil.copytree(calm, killed)
    undisturbed = confirm(calm)
    assert undisturbed.wait() == 0, undisturbed.text()
    driver = confirm(killed)
    driver.signal_when(signal.SIGKILL, lambda: finished(killed) > 0)
    assert driver.wait() == -signal.SIGKILL
    again = confirm(killed)
    assert again.wait() == 0, again.text()
    assert "Confirmation of s with new seeds" in again.text()
    assert result(killed) == result(calm)
