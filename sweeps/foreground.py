"""One trial in this process, without Ray: for a debugger, and to repeat a trial of a sweep."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import ConfigError, Problem
from sweeps.attack_plan import planned_stages
from sweeps.cascade import left_standing
from sweeps.config import AttackPlan, SweepConfig
from sweeps.records import StageRecord
from sweeps.stage_job import StageJob, judge_here
from trainables.config import TrialConfig


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
    entry = config.methods[labels.index(method)]
    return TrialConfig(
        model=config.model.at_defaults(),
        data=config.data,
        training=config.training.at_defaults(),
        methods={name: space.at_defaults() for name, space in entry.spaces.items()},
        monitor=config.monitor,
        threads=config.resources.threads,
        plugins=config.plugins,
    )


def run_trial(
    trial: TrialConfig, seed: int, plan: AttackPlan | None, say: Callable[[str], None], folder: Path | None = None
) -> ForegroundResult:
    """Train and attack one trial here and now.

    Args:
        say: takes a line per epoch and stage.
        folder: where its files go, for a look afterwards; None uses a temporary folder that is removed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _run(trial, seed, plan, say, folder or Path(scratch))


def _run(
    trial: TrialConfig, seed: int, plan: AttackPlan | None, say: Callable[[str], None], folder: Path
) -> ForegroundResult:
    from trainables.training import Training
    from trainables.trial import find_splits

    training = Training(trial, seed, folder)
    for note in training.notes:
        say(note)
    while not training.is_done:
        metrics = training.run_epoch()
        say(f"epoch {training.epochs_done}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    outcome = training.finish()
    say(f"trained: clean {outcome.clean_acc:.4f}")
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
