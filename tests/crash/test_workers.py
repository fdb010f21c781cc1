"""A worker that dies is an outcome: the trial goes on from its checkpoint, or has failed; the sweep goes on."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from sweeps.records import State
from tests.crash.drivers import launch, ledger_says, open_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def kill_worker(storage: Path, number: int) -> None:
    """`kill -9` of the process that trains a trial, by the pid that it wrote into the trial's log."""
    log = (storage / "s" / "trials" / f"{number:05d}" / "log.txt").read_text()
    os.kill(int(re.findall(r"pid (\d+)", log)[-1]), signal.SIGKILL)


def test_a_killed_worker_costs_one_attempt_and_the_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def trains(ledger: Ledger) -> bool:
        return any(t.number == 0 and 2 <= t.epochs < 50 for t in ledger.trials([State.TRAINING]))

    driver = launch(tmp_path, "training.epochs=60", "search.trials=2", "attacks.test=null")
    driver.wait_until(ledger_says(tmp_path, trains))
    kill_worker(tmp_path, 0)
    assert driver.wait() == 0, driver.text()
    ledger = open_ledger(tmp_path)
    first, second = ledger.trials()
    assert (first.state, first.failures, first.attempts) == (State.FINISHED, 1, 2)
    assert (second.state, second.failures) == (State.FINISHED, 0)
    assert first.error is None
    log = (tmp_path / "s" / "trials" / "00000" / "log.txt").read_text()
    epochs = [int(epoch) for epoch in re.findall(r"epoch (\d+): ", log)]
    assert len(set(epochs)) == len(epochs)
    assert "continues after epoch" in log


def test_without_retries_a_killed_worker_fails_its_trial_and_the_sweep_ends_with_exit_code_1(tmp_path: Path) -> None:
    def trains(ledger: Ledger) -> bool:
        return any(t.number == 0 and t.epochs >= 1 for t in ledger.trials([State.TRAINING]))

    driver = launch(
        tmp_path,
        "training.epochs=60",
        "search.trials=2",
        "attacks.test=null",
        "failures.retries=0",
        "tracking.enabled=false",
    )
    driver.wait_until(ledger_says(tmp_path, trains))
    kill_worker(tmp_path, 0)
    assert driver.wait() == 1, driver.text()
    ledger = open_ledger(tmp_path)
    first, second = ledger.trials()
    assert (first.state, first.error_kind, first.clean_acc, first.robust_acc) == (State.FAILED, "crash", None, None)
    assert second.state is State.FINISHED
    assert ledger.sweep().completed_at is not None
