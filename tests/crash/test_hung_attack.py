"""Attacks that hang under a real driver: their workers are ended, they are tried again, and not for ever."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sweeps.records import State
from tests.crash.drivers import ROOT, Driver, open_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
model: {name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}
data: {name: digits, train_images: 100, validation_images: 20, test_images: 20}
training: {epochs: 1, batch_size: 50, learning_rate: {log_uniform: [1.0e-3, 3.0e-3]}}
plugins: [PLUGIN]
methods: [plain]
attacks: {epsilon: 0.03, images: 16, batch_size: 4, stages: [{stuck: {times: 5, marks: MARKS}}], test: null}
resources: {concurrent: 2, cpus: 0.5, evaluation: {workers: 2, cpus: 0.5}}
search: {trials: 2, sampler: random}
tracking: {enabled: false}
"""


def test_an_attack_that_hangs_is_tried_once_more_and_then_its_trial_has_failed_as_a_hang(tmp_path: Path) -> None:
    """The first driver waits for ever, its successor does not: a worker of a training may need longer to start."""
    text = SWEEP.replace("PLUGIN", str(ROOT / "tests" / "crash" / "stuck.py")).replace("MARKS", str(tmp_path))
    (tmp_path / "s.yaml").write_text(text)
    patient = Driver(tmp_path, "launch", "s.yaml", "--name", "s", "--storage", ".")
    patient.signal_when(signal.SIGINT, lambda: len(list(tmp_path.glob("stuck-*"))) == 2)
    assert patient.wait() == 130, patient.text()
    limit = ("--set", "failures.hang_after_s=6")
    driver = Driver(tmp_path, "resume", "s", "s.yaml", "--storage", ".", *limit)
    assert driver.wait() == 1, driver.text()
    assert len(list(tmp_path.glob("stuck-*"))) == 5, "two, then one try of each trial, then the second of one"
    ledger = open_ledger(tmp_path)
    tries = [(event.kind, event.detail["kind"]) for event in ledger.events() if "failed" in event.kind]
    assert tries == [("stage try failed", "hang"), ("stage try failed", "hang"), ("failed", "hang")]
    failed, finished = sorted(ledger.trials(), key=lambda trial: trial.state)
    assert (failed.state, failed.error_kind, failed.robust_acc) == (State.FAILED, "hang", None)
    assert "judged nothing for" in str(failed.error)
    assert (finished.state, finished.error, finished.exact) == (State.FINISHED, None, True)
    assert (ledger.sweep().completed_at is None, ledger.lease()) == (False, None)
    assert not (tmp_path / "s" / "scratch").exists()
    assert "is tried again" in driver.text()
