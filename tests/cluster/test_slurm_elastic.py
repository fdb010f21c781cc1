"""The rendered elastic start, really run: a head and two nodes as jobs, one of which ends in the middle and returns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.render import render
from cluster.settings import parse_settings
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State
from tests.cluster.fake_slurm import usable

ROOT = Path(__file__).resolve().parents[2]
TRIALS, EPOCHS = 6, 10
SWEEP = f"""
model: {{img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}}
data: {{name: digits, train_images: 800, validation_images: 40, test_images: 40}}
training: {{epochs: {EPOCHS}, learning_rate: 0.003, batch_size: 5}}
methods: [{{jasmin: {{k: [0, 4]}}}}]
attacks: {{epsilon: 0.05, images: 20, stages: [{{pgd: {{steps: 2}}}}], test: null}}
search: {{trials: {TRIALS}}}
tracking: {{enabled: false}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(not usable(), reason="needs Linux namespaces")]


class Jobs:
    """The two submitted files, and the folders by which the test follows them."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "slurm"
        self.place.mkdir()
        self.sweep = SweepFolder(folder / "the runs", "elastic")
        self.sweep.storage.mkdir()
        (folder / "s.yaml").write_text(SWEEP)
        (self.place / "silent-1").touch()  # else its end would be a moment of the clock, and none of the sweep
        place = {"file": str(folder / "s.yaml"), "name": "elastic", "storage": str(self.sweep.storage)}
        settings, problems = parse_settings(
            {
                "sweep": {**place, "project": str(ROOT)},
                "nodes": {"cpus": 2, "gpus": 0, "setup": ["export OMP_NUM_THREADS=1"]},
                "slurm": {"array": 2},
                "wait_minutes": 3,
            },
            "slurm",
        )
        assert settings is not None, problems
        start = render("slurm", settings)
        assert start.second is not None
        path = f"{ROOT / 'tests' / 'cluster' / 'stubs'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = {**kept, "PATH": path, "FAKE_SLURM_ARRAY": str(self.place)}
        self.processes = []
        for name, text in (start.second, (start.file, start.text)):  # nodes first: they wait for the head
            (folder / name).write_text(text)
            self.processes.append(subprocess.Popen(("sbatch", folder / name), env=environment, cwd=folder))

    def until(self, true: Callable[[], bool], timeout_s: float = 600) -> None:
        end = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < end, self.said()
            time.sleep(0.5)

    def training(self) -> int:
        """How many trials are being trained and have an epoch behind them."""
        if not self.sweep.ledger.exists():
            return 0
        ledger = Ledger.at(self.sweep.ledger)
        try:
            return sum(trial.state is State.TRAINING and trial.epochs > 0 for trial in ledger.trials())
        finally:
            ledger.close()

    def said(self) -> str:
        logs = sorted(self.sweep.storage.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    for process in jobs.processes:
        process.terminate()
        process.wait()


def test_a_node_that_ends_in_the_middle_cuts_nothing_short_and_the_sweep_finishes_with_everything_once(
    jobs: Jobs,
) -> None:
    jobs.until(lambda: jobs.training() == 3)  # beside an attack's share they fill both nodes
    (jobs.place / "time-1").touch()
    jobs.until(lambda: all(process.poll() is not None for process in jobs.processes))
    said = jobs.said()
    assert [process.returncode for process in jobs.processes] == [0, 0], said
    assert int((jobs.place / "runs-1").read_text()) >= 2, "the first node's time was up, and it came again"
    assert (jobs.place / "runs-2").read_text() == (jobs.place / "runs-head").read_text() == "1"
    assert not list(jobs.place.glob("cut-*")), "no job has met its limit"
    assert "leaves a node that ends" in said
    ledger = Ledger.at(jobs.sweep.ledger)
    try:
        trials = ledger.trials()
        assert sorted(trial.number for trial in trials) == list(range(TRIALS))
        assert {trial.state for trial in trials} == {State.FINISHED}
        assert [trial.failures for trial in trials] == [0] * TRIALS, "nothing was lost, not an epoch"
        assert [len(ledger.history(trial.number)) for trial in trials] == [EPOCHS] * TRIALS
        events = Counter(event.kind for event in ledger.events())
        assert events["driver started"] == 1
    finally:
        ledger.close()
    assert not list(jobs.sweep.storage.glob(".*")), "the token and the address are gone with the head"
