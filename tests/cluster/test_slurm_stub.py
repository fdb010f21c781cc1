"""The rendered Slurm job, really run: two Ray nodes, the signal before the time limit, requeued, resumed, finished."""

from __future__ import annotations

import os
import shutil
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
from tests.cluster.fake_slurm import JOB, usable

ROOT = Path(__file__).resolve().parents[2]
TRIALS, EPOCHS = 4, 3
SWEEP = f"""
model: {{img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}}
data: {{name: digits, train_images: 400, validation_images: 40, test_images: 40}}
training: {{epochs: {EPOCHS}, learning_rate: 0.003, batch_size: 25}}
methods: [{{jasmin: {{k: [0, 4]}}}}]
attacks: {{epsilon: 0.05, images: 20, stages: [{{pgd: {{steps: 2}}}}], test: null}}
search: {{trials: {TRIALS}}}
tracking: {{enabled: false}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(not usable(), reason="needs Linux namespaces")]


class Job:
    """A submitted job and the files by which the test follows it."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "slurm"
        self.place.mkdir()
        self.sweep = SweepFolder(folder / "the runs", "two-nodes")
        self.sweep.storage.mkdir()
        (folder / "s.yaml").write_text(SWEEP)
        settings, problems = parse_settings(
            {
                "sweep": {
                    "file": str(folder / "s.yaml"),
                    "name": self.sweep.name,
                    "storage": str(self.sweep.storage),
                    "project": str(ROOT),
                },
                "nodes": {"count": 2, "cpus": 1, "gpus": 0, "setup": ["export OMP_NUM_THREADS=1"]},
                "wait_minutes": 3,
            },
            "slurm",
        )
        assert settings is not None, problems
        start = render("slurm", settings)
        (folder / start.file).write_text(start.text)
        path = f"{ROOT / 'tests' / 'cluster' / 'stubs'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "FAKE_SLURM": str(self.place)}
        for name in [name for name in environment if name.startswith("RAY_")]:
            del environment[name]
        self.process = subprocess.Popen(("sbatch", folder / start.file), env=environment, cwd=folder)
        self.log = self.sweep.storage / f"{self.sweep.name}-{JOB}.log"

    def until(self, true: Callable[[], bool], timeout_s: float = 240) -> None:
        end = time.monotonic() + timeout_s
        while not true():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.2)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else "nothing"

    def trained(self) -> int:
        """How many trials' training has ended."""
        if not self.sweep.ledger.exists():
            return 0
        ledger = Ledger.at(self.sweep.ledger)
        try:
            return sum(trial.clean_acc is not None for trial in ledger.trials())
        finally:
            ledger.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.process.kill()  # the first process of the namespaces: all of theirs end with it
    job.process.wait()
    shutil.rmtree(f"/tmp/paretune-{JOB}", ignore_errors=True)  # empty: each host had its own there


def test_a_job_that_meets_its_time_limit_is_requeued_and_its_sweep_finishes_with_everything_once(job: Job) -> None:
    job.until(lambda: job.trained() >= 1)
    (job.place / "time").touch()
    assert job.process.wait(timeout=300) == 0, job.said()
    ledger = Ledger.at(job.sweep.ledger)
    try:
        assert (job.place / "attempt0").exists(), "the job was not requeued"
        events = Counter(event.kind for event in ledger.events())
        assert events["driver started"] == 2, job.said()
        assert events["interrupted"] == 1
        assert sorted(t.number for t in ledger.trials()) == list(range(TRIALS))
        assert ledger.sweep().completed_at is not None
    finally:
        ledger.close()
    assert job.said().count("2 trials at once") == 2, "each node has one core, so that this takes both"
    assert not list(job.sweep.storage.glob(".*")), "the job's token is gone with it"
