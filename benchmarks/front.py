"""What the exact front of a real sweep costs: the lazy cascade beside pyautoattack on every trial.

    python -m benchmarks.front

The sweep is the quickstart without its test images: 20 small vision transformers on the digits, standard AutoAttack on
128 validation images as their cascade. Passes are counted by hooks on both sides, backward passes as two, the
evaluator's own included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from pyautoattack import AutoAttack as Package
from torch import Tensor

from benchmarks.rows import Row, measured
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.pareto import front
from sweeps.records import State, TrialRecord
from sweeps.summary import front_of
from trainables.attack import Attack, Model, Threat
from trainables.config import AttackConfig
from trainables.dataset import balanced_subset
from trainables.trial import load_final
from trainables.verdicts import judge, judge_clean

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m benchmarks.front"
CHANGES = ("attacks.test=null",)
AT_MOST = 0.40
CPU = torch.device("cpu")


class PackageAutoAttack(Attack[AttackConfig]):
    """The peer: pyautoattack's standard version, whole, in one batch."""

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        norm = {"linf": "Linf", "l2": "L2"}[self.threat.norm]
        with torch.random.fork_rng(devices=[]), redirect_stdout(StringIO()):
            package = Package(model, norm=norm, eps=self.threat.epsilon, seed=seed, device=images.device)
            attacked, _ = package.run_standard_evaluation(images, labels, batch_size=len(images))
        result: Tensor = attacked.detach()
        return result


def rows() -> list[Row]:
    """Run the sweep, then the package on every trial."""
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "run_sweep.py", "launch", "sweeps/presets/quickstart.yaml", "--storage", storage]
        options = [part for change in CHANGES for part in ("--set", change)]
        subprocess.run(
            [*command, "--name", "front", *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr
        )
        return compare(SweepFolder(Path(storage), "front"))


def compare(folder: SweepFolder) -> list[Row]:
    """Compare a finished sweep, whose cascade is standard AutoAttack, with the package on every one of its trials."""
    torch.set_num_threads(1)
    ledger = Ledger.at(folder.ledger)
    sweep, trials = ledger.sweep(), ledger.trials([State.FINISHED])
    ours = sum(stage.passes or 0 for stage in ledger.stages() if stage.split == "validation")
    seconds = sum(stage.seconds or 0.0 for stage in ledger.stages() if stage.split == "validation")
    stage = sweep.planned_stages[0]
    theirs, their_seconds, robust = 0, 0.0, []
    for trial in trials:
        model, splits, _ = load_final(folder.trial(trial.number), device=CPU)
        images = splits.validation
        everything = torch.arange(len(images.labels))
        ids = balanced_subset(images.labels, everything, stage.images, torch.Generator().manual_seed(stage.seed))
        started = time.monotonic()
        clean = judge_clean(model, images, ids, batch_size=stage.batch_size, device=CPU)
        attack = PackageAutoAttack(AttackConfig(), Threat(**stage.threat))
        found = judge(model, attack, images, ids[clean.correct], seed=stage.seed, batch_size=len(ids), device=CPU)
        their_seconds += time.monotonic() - started
        theirs += clean.forward_images + found.forward_images + 2 * found.backward_images
        robust.append(int(found.correct.sum()) / len(ids))
        sys.stderr.write(f"trial {trial.number}: {trial.robust_acc} here, {robust[-1]} by the package\n")
    peer = _agreement(trials, robust, sweep.objectives)
    unit = f"of pyautoattack's passes on every one of {len(trials)} trials"
    row = measured("front_passes", [ours / theirs], unit, COMMAND, at_most=AT_MOST)
    clock = measured(
        "front_seconds",
        [seconds / their_seconds],
        "of its seconds in the attacks, ours beside trainings on the same cores",
        COMMAND,
    )
    return [{**row, "peer": peer}, clock]


def _agreement(trials: Sequence[TrialRecord], robust: Sequence[float], objectives: Sequence[str]) -> str:
    """Say how the fronts compare: the package draws other random numbers."""
    ours = front_of(trials, objectives)
    points = [(t.clean_acc or 0.0, value) for t, value in zip(trials, robust, strict=True)]
    members = {trials[i].number for i in front(points)}
    found = {t.number: value for t, value in zip(trials, robust, strict=True)}
    apart = max(abs((t.robust_acc or 0.0) - found[t.number]) for t in trials if t.exact)
    same = "the same trials" if members == {t.number for t in ours} else f"trials {sorted(members)}"
    return f"front of {len(ours)}; the package's: {same}; exact accuracies differ by at most {apart:.4f}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(rows(), indent=2, ensure_ascii=False) + "\n")
