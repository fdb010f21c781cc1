"""A sweep on real CIFAR images, where a folder with them is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_on_cifar_arrays_runs_through(tmp_path: Path) -> None:
    images = Path(os.environ.get("PARETUNE_DATA", "")) / "cifar10_subset.npz"
    if not images.is_file():
        pytest.skip("PARETUNE_DATA names no folder with cifar10_subset.npz")
    preset = ROOT / "sweeps" / "presets" / "cifar10_arrays.yaml"
    changes = [f"data.path={images}", "attacks.images=64", "attacks.stages=[{pgd: {steps: 10}}]", "attacks.test=null"]
    changes += ["training.epochs=1", "data.train_images=1000"]
    options = [part for change in changes for part in ("--set", change)]
    command = [sys.executable, str(ROOT / "run_sweep.py"), "launch", str(preset), "--storage", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = Ledger.at(SweepFolder.existing(tmp_path, "cifar10").ledger)
    assert len(ledger.trials([State.FINISHED])) == 5
