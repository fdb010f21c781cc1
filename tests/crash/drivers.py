"""Real driver processes for the crash tests: launched as a user would, killed as a power cut would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0

SWEEP = """
model: {name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}
data: {name: digits, train_images: 400, validation_images: 80, test_images: 60}
training: {epochs: 4, learning_rate: {log_uniform: [2.0e-3, 8.0e-3]}, batch_size: 32}
methods:
  - plain
  - jasmin: {k: [0, 4, 8]}
attacks:
  epsilon: 0.04
  images: 60
  batch_size: 8
  stages: [{pgd: {steps: 5, restarts: 1}}, {pgd: {steps: 10, restarts: 2}}]
  test: {images: 20, stages: [fgsm], trials: 2}
search: {trials: 12, sampler: random, seed: 3}
"""
"""A unit is four batches, so that a stage on all images is judged and stored in two parts."""


class Driver:
    """One `run_sweep.py` process on a storage folder of the test's own."""

    def __init__(self, storage: Path, *arguments: str, kill_at: str | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        environment.pop("PARETUNE_KILL_AT", None)
        if kill_at is not None:
            environment["PARETUNE_KILL_AT"] = kill_at
        self.output = storage / f"driver-{time.monotonic_ns()}.txt"
        with self.output.open("w") as sink:
            command = [sys.executable, str(ROOT / "run_sweep.py"), *arguments]
            self.process = subprocess.Popen(command, cwd=storage, env=environment, stdout=sink, stderr=sink)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Return the exit code; negative is the signal that killed the process."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the driver did not end in {patience_s:.0f} s:\n{self.text()}") from None

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return as soon as something has happened; fails if the driver ends first."""
        limit = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, f"the driver ended before it could be interrupted:\n{self.text()}"
            assert time.monotonic() < limit, self.text()
            time.sleep(0.02)

    def signal_when(self, number: signal.Signals, happened: Callable[[], bool]) -> None:
        """Send a signal as soon as something has happened; fails if the driver ends first."""
        self.wait_until(happened)
        self.process.send_signal(number)

    def text(self) -> str:
        return self.output.read_text()


def launch(storage: Path, *overrides: str, **options: str | None) -> Driver:
    """Write the YAML into the storage folder and launch it as sweep "s", with values replaced by key=value."""
    (storage / "s.yaml").write_text(SWEEP)
    changes = [part for override in overrides for part in ("--set", override)]
    return Driver(storage, "launch", "s.yaml", "--name", "s", "--storage", ".", *changes, **options)


def resume(storage: Path, **options: str | None) -> Driver:
    """Resume sweep "s"."""
    return Driver(storage, "resume", "s", "--storage", ".", **options)


def evaluate(storage: Path, plan: Path) -> Driver:
    """Judge all trials of sweep "s" by a further plan."""
    return Driver(storage, "evaluate", "s", "--plan", str(plan), "--trials", "all", "--storage", ".")


def units(storage: Path) -> dict[Path, int]:
    """Return the files in the verdict store of sweep "s" with the time of their last change, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in (storage / "s" / "verdicts").rglob("*.npz")}


def open_ledger(storage: Path) -> Ledger:
    """Open the ledger of sweep "s" for reading."""
    return Ledger.at(SweepFolder.existing(storage, "s").ledger)


def ledger_says(storage: Path, question: Callable[[Ledger], bool]) -> Callable[[], bool]:
    """Return a question to ask again and again; false while there is no ledger yet."""

    def ask() -> bool:
        if not (storage / "s" / "ledger.db").exists():
            return False
        ledger = open_ledger(storage)
        try:
            return question(ledger)
        finally:
            ledger.close()

    return ask
