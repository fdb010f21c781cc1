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
from sweeps.records import State
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

    def __init__(self, folder: Path, file: str, name: str, cpus: int) -> None:
        self.place = folder / "slurm"
        self.place.mkdir()
        self.sweep = SweepFolder(folder / "the runs", name)
        self.sweep.storage.mkdir()
        settings, problems = parse_settings(
            {
                "sweep": {"file": file, "name": name, "storage": str(self.sweep.storage), "project": str(ROOT)},
                "nodes": {"count": 2, "cpus": cpus, "gpus": 0, "setup": ["export OMP_NUM_THREADS=1"]},
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


Submit = Callable[[str, str, int], Job]


@pytest.fixture
def submitted(tmp_path: Path) -> Iterator[Submit]:
    jobs = []

    def submit(file: str, name: str, cpus: int) -> Job:
        jobs.append(Job(tmp_path, file, name, cpus))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.process.kill()  # the first process of the namespaces: all of theirs end with it
        job.process.wait()
    shutil.rmtree(f"/tmp/paretune-{JOB}", ignore_errors=True)  # empty: each host had its own there


def test_a_job_that_meets_its_time_limit_is_requeued_and_its_sweep_finishes_with_everything_once(
    submitted: Submit, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    job = submitted(str(tmp_path / "s.yaml"), "two-nodes", 1)
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
    shares = "1 trials at once (1 CPU each), 1 evaluation (1 CPU)"
    assert job.said().count(shares) == 2, "each node has one core, so that this takes both"
    assert not list(job.sweep.storage.glob(".*")), "the job's token is gone with it"


def test_the_quickstart_as_it_is_finishes_on_two_nodes_of_which_one_is_killed_on_the_way(submitted: Submit) -> None:
    job = submitted("sweeps/presets/quickstart.yaml", "quickstart", 2)
    job.until(lambda: job.trained() >= 4)
    (job.place / "pt-node2" / "kill").touch()
    assert job.process.wait(timeout=600) == 0, job.said()
    assert (job.place / "pt-node2" / "killed").exists()
    ledger = Ledger.at(job.sweep.ledger)
    try:
        trials = ledger.trials()
        assert sorted(trial.number for trial in trials) == list(range(20))
        assert {trial.state for trial in trials} == {State.FINISHED}, job.said()
        assert all(len(ledger.history(trial.number)) == 40 for trial in trials), "each epoch is there, and once"
        events = Counter(event.kind for event in ledger.events())
        assert events["driver started"] == 1, "the driver has outlived the node"
        assert ledger.sweep().completed_at is not None
    finally:
        ledger.close()
    assert "lost node" in job.said(), "the node was killed while the sweep ran"
    assert job.sweep.report_html.exists()
