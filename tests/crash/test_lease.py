"""Two drivers on one ledger: the second is refused, or takes over, and then the first writes nothing more."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sweeps.ledger import Ledger
from sweeps.records import State
from tests.crash.drivers import Driver, launch, ledger_says, open_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LIGHT = ("search.trials=1", "training.epochs=30", "attacks.test=null", "attacks.stages=[fgsm]")


def test_a_stopped_driver_that_wakes_up_after_losing_its_lease_writes_nothing_more(tmp_path: Path) -> None:
    asleep = launch(tmp_path, *LIGHT)
    stop_between_transactions(asleep, tmp_path)
    third = Driver(tmp_path, "resume", "s", "--storage", ".", "--take-over")
    assert third.wait() == 0, third.text()
    before = everything(tmp_path)
    asleep.process.send_signal(signal.SIGCONT)
    assert asleep.wait() == 3, asleep.text()
    assert "another driver has taken over" in asleep.text()
    assert everything(tmp_path) == before
    assert_whole(tmp_path)


def test_a_stopped_driver_may_wake_up_while_its_successor_works(tmp_path: Path) -> None:
    asleep = launch(tmp_path, *LIGHT)
    stop_between_transactions(asleep, tmp_path)
    second = Driver(tmp_path, "resume", "s", "--storage", ".")
    assert second.wait() == 2, second.text()
    assert f"process {asleep.process.pid} on " in second.text()
    assert "resume NAME --take-over" in second.text()
    epochs = open_ledger(tmp_path).trial(0).epochs
    third = Driver(tmp_path, "resume", "s", "--storage", ".", "--take-over")
    third.wait_until(ledger_says(tmp_path, lambda ledger: ledger.trial(0).epochs > epochs + 2))
    asleep.process.send_signal(signal.SIGCONT)
    assert asleep.wait() == 3, asleep.text()
    assert third.wait() == 0, third.text()
    assert_whole(tmp_path)


def stop_between_transactions(driver: Driver, storage: Path) -> None:
    """SIGSTOP while a trial trains; again if it came in the middle of a write, which would only lock the ledger."""

    def trains(ledger: Ledger) -> bool:
        return any(t.epochs >= 2 for t in ledger.trials([State.TRAINING]))

    driver.wait_until(ledger_says(storage, trains))
    while True:
        driver.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # its workers end the epoch that they are at
        connection = sqlite3.connect(storage / "s" / "ledger.db", timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            driver.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        finally:
            connection.close()


def everything(storage: Path) -> dict[str, Any]:
    """What a driver may write: every row of the ledger and of MLflow, every file and its last change."""
    databases = (storage / "s" / "ledger.db", storage / "mlflow.db")
    rows = {database.name: rows_of(database) for database in databases}
    own = [path for path in (storage / "s").rglob("*") if "scratch" not in path.parts]
    said = ("driver.log", "ledger.db", "ledger.db-wal", "ledger.db-shm")  # sqlite moves what is there already
    files = {path: path.stat().st_mtime_ns for path in own if path.is_file() and path.name not in said}
    return {**rows, "files": files}


def rows_of(database: Path) -> dict[str, list[Any]]:
    """Return the content of a sqlite database, table by table."""
    connection = sqlite3.connect(database)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
    finally:
        connection.close()


def assert_whole(storage: Path) -> None:
    """The trial finished once, no epoch was trained twice beyond the one at which the first driver was stopped, and
    MLflow has one finished run for it and one for the sweep."""
    ledger = open_ledger(storage)
    assert ledger.sweep().completed_at is not None
    kinds = Counter((event.number, event.kind) for event in ledger.events())
    for trial in ledger.trials():
        assert trial.state is State.FINISHED
        assert all(kinds[trial.number, kind] == 1 for kind in ("proposed", "trained", "finished"))
        log = (storage / "s" / "trials" / f"{trial.number:05d}" / "log.txt").read_text()
        epochs = Counter(re.findall(r"epoch (\d+): ", log))
        assert len(epochs) == 30
        assert sum(epochs.values()) <= 31
    runs = dict(rows_of(storage / "mlflow.db"))["runs"]
    assert len(runs) == 2
    assert all("FINISHED" in run for run in runs)
