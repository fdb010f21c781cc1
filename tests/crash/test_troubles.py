"""Trials that hang, run out of memory or are stopped from another terminal, under a real driver."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.summary import sweep_state
from tests.crash.drivers import ROOT, Driver, launch, ledger_says, open_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
model: {name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}
data: {name: digits, train_images: 100, validation_images: 40, test_images: 20}
training: {epochs: 3, batch_size: 50}
plugins: [PLUGIN]
methods: [{troubled: {trouble: [none, hang, memory, slow], marks: MARKS}}]
objectives: [clean_acc]
resources: {concurrent: 2}
failures: {retries: 0, hang_after_s: 12, hang: {retries: 3}, memory: {retries: 1}}
search: {known: [{troubled.trouble: hang}, {troubled.trouble: slow}, {troubled.trouble: memory},
                 {troubled.trouble: none}], trials: 4}
tracking: {enabled: false}
"""


def test_a_hang_and_a_lack_of_memory_cost_an_attempt_and_a_stopped_trial_ends_at_once(tmp_path: Path) -> None:
    text = SWEEP.replace("PLUGIN", str(ROOT / "tests" / "crash" / "troubled.py")).replace("MARKS", str(tmp_path))
    (tmp_path / "s.yaml").write_text(text)
    # the slow one would take many minutes
    driver = Driver(tmp_path, "launch", "s.yaml", "--name", "s", "--storage", ".", "--set", "training.epochs=60")

    def slow_trains(ledger: Ledger) -> bool:
        return any(t.number == 1 and t.epochs >= 1 for t in ledger.trials([State.TRAINING]))

    driver.wait_until(ledger_says(tmp_path, slow_trains))
    asked = Driver(tmp_path, "stop", "s", "1", "--storage", ".")
    assert asked.wait() == 0, asked.text()
    assert driver.wait() == 0, driver.text()
    ledger = open_ledger(tmp_path)
    hung, slow, short, calm = ledger.trials()
    assert [t.state for t in (hung, slow, short, calm)] == [
        State.FINISHED,
        State.STOPPED,
        State.FINISHED,
        State.FINISHED,
    ]
    assert set(hung.failed_as) == {"hang"}
    assert (short.failed_as["memory"], short.share) == (1, 2.0)
    assert calm.failed_as.keys() <= {"hang"}  # a machine under load may need longer than that to start a worker
    assert slow.epochs < 60
    for number in (0, 2, 3):
        log = (tmp_path / "s" / "trials" / f"{number:05d}" / "log.txt").read_text()
        epochs = [int(epoch) for epoch in re.findall(r"epoch (\d+): ", log)]
        assert epochs == list(range(1, 61)), "an epoch was lost or trained twice"
    assert "is tried again with 2 times the share" in driver.text()


def test_a_sweep_is_paused_goes_on_changed_and_learns_from_another(tmp_path: Path) -> None:
    """One sweep meets pause, resume with a changed file, more and known trials while it runs, and a prior sweep."""
    first = launch(tmp_path, "training.epochs=12", "tracking.enabled=false", "search.trials=3")
    first.wait_until(ledger_says(tmp_path, lambda ledger: any(t.epochs for t in ledger.trials())))
    assert Driver(tmp_path, "pause", "s", "--storage", ".").wait() == 0
    assert first.wait() == 130, first.text()
    assert sweep_state(open_ledger(tmp_path)) == "paused"
    overrides = ("training.epochs=12", "tracking.enabled=false", "search.trials=3", "resources.concurrent=1")
    changes = [part for override in overrides for part in ("--set", override)]
    second = Driver(tmp_path, "resume", "s", "s.yaml", "--storage", ".", *changes)
    second.wait_until(ledger_says(tmp_path, lambda ledger: any(t.clean_acc is not None for t in ledger.trials())))
    (tmp_path / "known.yaml").write_text("- {method: jasmin, jasmin.k: 4}\n")
    asked = Driver(tmp_path, "extend", "s", "--known", "known.yaml", "--storage", ".")
    assert asked.wait() == 0, asked.text()
    assert second.wait() == 0, second.text()
    ledger = open_ledger(tmp_path)
    trials = ledger.trials()
    assert [t.state for t in trials] == [State.FINISHED] * 4
    assert [e.detail["changes"] for e in ledger.events() if e.kind == "configuration"] == [
        ['resources.concurrent: "auto" -> 1']
    ]
    known = next(t for t in trials if t.params.get("jasmin.k") == 4 and t.number >= 2)
    assert "known configuration added" in second.text()
    third = Driver(tmp_path, "launch", "s.yaml", "--name", "after", "--storage", ".", "--prior", "s", *changes)
    assert third.wait() == 0, third.text()
    after = Ledger.at(SweepFolder.existing(tmp_path, "after").ledger)
    assert known.number in {t.number for t in after.prior()}
    assert after.prior_counts() == {"s": 4}
    assert len(after.trials()) == 3
    after.close()
