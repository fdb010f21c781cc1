"""Drivers on a small disk stop before it is full, refuse to start on one that is, and go on when there is room."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sweeps.disk import MARGIN_BYTES
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.summary import status
from tests.crash.disks import fill, mounted
from tests.crash.drivers import SWEEP, Driver, launch, ledger_says, open_ledger, resume

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LONG = ("search.trials=2", "training.epochs=60", "attacks.test=null")


def trains(ledger: Ledger) -> bool:
    return any(t.epochs >= 2 for t in ledger.trials([State.TRAINING]))


def test_a_driver_stops_before_the_disk_is_full_and_goes_on_when_there_is_room(disk: Path) -> None:
    driver = launch(disk, *LONG)
    driver.wait_until(ledger_says(disk, trains))
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(b"x" * (shutil.disk_usage(disk).free - MARGIN_BYTES // 2))
    assert driver.wait() == 3, driver.text()
    for said in ("are free, and", "gc s", "Nothing is lost", "run_sweep.py resume s"):
        assert said in driver.text()
    assert "Traceback" not in driver.text()
    assert status(open_ledger(disk))["state"] == "interrupted"
    refused = resume(disk)
    assert refused.wait() == 3, refused.text()
    assert "are free, and" in refused.text()
    ballast.unlink()
    assert_goes_on(disk)


def test_a_disk_that_fills_up_while_an_attack_runs_fails_no_trial(disk: Path) -> None:
    driver = launch(disk, *LONG, "training.epochs=4", "attacks.stages=[{pgd: {steps: 200}}]")
    driver.wait_until(ledger_says(disk, lambda ledger: any(s.state == "running" for s in ledger.stages())))
    fill(disk)
    assert driver.wait() == 3, driver.text()
    assert "Traceback" not in driver.text()
    (disk / "ballast").unlink()
    assert_goes_on(disk)


def test_on_a_read_only_disk_a_launch_is_refused_before_anything_starts(disk: Path) -> None:
    output = disk.parent / "out"
    output.mkdir()
    mounted("-o", "remount,ro", str(disk))
    (output / "s.yaml").write_text(SWEEP)
    driver = Driver(output, "launch", "s.yaml", "--storage", str(disk / "runs"))
    assert driver.wait() == 3, driver.text()
    assert "nothing can be written into" in driver.text()
    assert "Read-only file system" in driver.text()


def assert_goes_on(storage: Path) -> None:
    """Resume to the end: nothing failed, and no epoch was trained twice but the one that was under way."""
    last = resume(storage)
    assert last.wait() == 0, last.text()
    ledger = open_ledger(storage)
    assert status(ledger)["state"] == "finished"
    for trial in ledger.trials():
        assert (trial.state, trial.failures) == (State.FINISHED, 0)
        log = (storage / "s" / "trials" / f"{trial.number:05d}" / "log.txt").read_text()
        epochs = Counter(re.findall(r"epoch (\d+): ", log))
        assert sum(epochs.values()) <= len(epochs) + 1
    ledger.close()
