"""A clock that jumps back and forth under a driver and its workers: no trial, no lease and no order depends on it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from sweeps.records import State
from tests.crash.drivers import launch, ledger_says, open_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HOUR_S = 3600.0
CLOCK = """
import os, time
_time, _time_ns = time.time, time.time_ns
def _offset():
    try:
        with open(os.environ["CLOCK_OFFSET"]) as file:
            return float(file.read() or 0)
    except (KeyError, OSError):
        return 0.0
time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
"""
"""Python runs this when it starts, in the driver and in its workers."""


def test_a_sweep_under_a_jumping_clock_ends_with_no_duration_below_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, offset = tmp_path / "site", tmp_path / "offset"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("CLOCK_OFFSET", str(offset))
    driver = launch(tmp_path, "search.trials=3", "training.epochs=20")
    driver.wait_until(
        ledger_says(tmp_path, lambda ledger: ledger.trials()[0].epochs >= 2 if ledger.trials() else False)
    )
    offset.write_text(str(2 * HOUR_S))
    driver.wait_until(ledger_says(tmp_path, some_trained))
    offset.write_text(str(-HOUR_S))  # the first trials end before they began
    assert driver.wait() == 0, driver.text()
    assert "has taken over" not in driver.text()
    ledger = open_ledger(tmp_path)
    events = ledger.events()
    assert max(e.at for e in events) - min(e.at for e in events) > HOUR_S  # the clock did jump
    assert [e.sequence for e in events] == sorted(e.sequence for e in events)
    for trial in ledger.trials():
        assert (trial.state, trial.failures, trial.attempts) == (State.FINISHED, 0, 1)
        assert 0 < (trial.train_seconds or 0) < 600
    assert all(0 <= (stage.seconds or 0) < 600 for stage in ledger.stages())
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        runs = connection.execute("SELECT start_time, end_time FROM runs").fetchall()
    connection.close()
    assert len(runs) == 4
    assert all(end >= start for start, end in runs)
    ledger.close()


def some_trained(ledger: Ledger) -> bool:
    return bool(ledger.trials([State.TRAINED, State.EVALUATING, State.FINISHED]))
