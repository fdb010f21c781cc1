"""One trial in this process, without Ray: for a debugger, and to repeat a trial of a sweep."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.errors import ConfigError, Problem
from sweeps.attack_plan import planned_stages
from sweeps.cascade import left_standing
from sweeps.config import AttackPlan, SweepConfig
from sweeps.entries import GivenParent
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.parent_life import given_file, trained_file
from sweeps.records import StageRecord
from sweeps.stage_job import StageJob, judge_here
from sweeps.trained_parents import Parent
from trainables.config import TrialConfig
from trainables.parent import ParentFile
from trainables.trial_folder import open_folder

if TYPE_CHECKING:
    from trainables.training import Outcome


@dataclass(frozen=True)
class ForegroundResult:
    """What one trial came to."""

    clean_acc: float
    weights_digest: str
    stages: tuple[StageRecord, ...]
    """All validation stages of the plan, in order; once nothing stands, the rest of the cascade is left out."""

    @property
    def robust_acc(self) -> float | None:
        cascade = [stage for stage in self.stages if stage.cumulative]
        return cascade[-1].accuracy if cascade else None


def pinned_trial(config: SweepConfig, method: str | None) -> TrialConfig:
    """Return the trial that a sweep's file describes with each searched field at its default.

    Args: method: label of the method entry; None is fine when there is one entry.
    Raises: ConfigError if the label does not exist, or is needed and missing.
    """
    labels = [entry.label for entry in config.methods]
    if method is None and len(labels) == 1:
        method = labels[0]
    if method not in labels:
        found = "none was chosen" if method is None else f"found {method!r}"
        raise ConfigError([Problem(("methods",), f"choose one method with --method: {', '.join(labels)}; {found}.")])
    return config.at_defaults(config.methods[labels.index(method)])


def origin_of(trial: TrialConfig, config: SweepConfig) -> Parent | ParentFile | None:
    """Return what a trial of a sweep starts from: a parent that is to be trained, a checkpoint, or no parent."""
    if trial.start_from is None:
        return None
    parent = config.parent(trial.start_from.name)
    return given_file(parent) if isinstance(parent, GivenParent) else parent


def origin_in(
    trial: TrialConfig, config: SweepConfig, ledger: Ledger, folder: SweepFolder
) -> Parent | ParentFile | None:
    """Return what a trial that is repeated starts from: weights that its sweep has trained, where they are there."""
    origin = origin_of(trial, config)
    rows = {row.number: row for row in ledger.parents()}
    if not isinstance(origin, Parent) or origin.number not in rows:
        return origin
    is_there = open_folder(folder.trial_place(origin.number)).has_final()
    return trained_file(rows[origin.number], folder) if is_there else origin


def run_trial(
    trial: TrialConfig,
    seed: int,
    plan: AttackPlan | None,
    say: Callable[[str], None],
    folder: Path | None = None,
    origin: Parent | ParentFile | None = None,
) -> ForegroundResult:
    """Train and attack one trial here and now, and before it the parent that it starts from.

    Args:
        say: takes a line per epoch and stage.
        folder: where its files go, for a look afterwards; None uses a temporary folder that is removed. Those of a
            parent go into a folder "parent" in it.
        origin: what it starts from; None is what its section model says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        if isinstance(origin, Parent):
            say(f"parent {origin.label} ({origin.config.label}) first")
            trained = _train(origin.config, origin.seed, place / "parent", say)
            origin = ParentFile(str(place / "parent"), weights_digest=trained.weights_digest)
        return _run(trial, seed, plan, say, place, origin)


def _train(
    trial: TrialConfig, seed: int, folder: Path, say: Callable[[str], None], parent: ParentFile | None = None
) -> Outcome:
    from trainables.training import Training

    training = Training(trial, seed, folder, parent=parent)
    for note in training.notes:
        say(note)
    while not training.is_done:
        said = len(training.notes)
        metrics = training.run_epoch()
        for note in training.notes[said:]:
            say(note)
        say(f"epoch {training.epochs_done}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    outcome = training.finish()
    say(f"trained: clean {outcome.clean_acc:.4f}")
    return outcome


def _run(
    trial: TrialConfig,
    seed: int,
    plan: AttackPlan | None,
    say: Callable[[str], None],
    folder: Path,
    parent: ParentFile | None,
) -> ForegroundResult:
    from trainables.trial import find_splits

    outcome = _train(trial, seed, folder, say, parent)
    splits = find_splits(trial)
    stages: list[StageRecord] = []
    sizes = {"validation": len(splits.validation.labels), "test": len(splits.test.labels)}
    planned = planned_stages(plan, splits.num_classes, sizes) if plan is not None else ()
    for stage in (s for s in planned if s.split == "validation"):
        if stage.cumulative and stages and stages[-1].survivors == 0:
            continue
        job = StageJob(
            number=0,
            stage=stage,
            trial_folder=str(folder),
            verdict_folder=str(folder / "verdicts"),
            weights_digest=outcome.weights_digest,
            data_digest=splits.digest(),
            standing=left_standing(stage, stages),
            threads=trial.threads,
            plugins=trial.plugins,
        )
        stages.append(judge_here(job, time.time()).record)
        say(f"{stage.label}: {stages[-1].accuracy:.4f} of {stages[-1].images} validation images stand")
    return ForegroundResult(outcome.clean_acc, outcome.weights_digest, tuple(stages))
