"""The cascade: which attack stage to run next, and the job that runs it. Pure functions of what the ledger holds.

The first validation stage is every trial's objective. Later ones run lazily and always on a trial that lies on the
front of (clean, upper bound), so that the front equals that of full evaluation; test figures are for its members, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from search_spaces.errors import ObjectiveMissing
from sweeps.evaluation import StageJob
from sweeps.folder import SweepFolder
from sweeps.pareto import next_unsettled, spread
from sweeps.records import Split, StageRecord, State, TrialRecord
from sweeps.summary import front_of, objective_values
from trainables.config import TrialConfig

if TYPE_CHECKING:
    from sweeps.sections import AttackPlan, Stage


class Target(NamedTuple):
    """A stage of a trial."""

    number: int
    split: Split
    position: int
    """0-based, within the plan of that split."""


def planned_stages(plan: AttackPlan, split: Split) -> tuple[Stage, ...]:
    """Return the stages of a split, in order."""
    if split == "validation":
        return plan.stages
    return plan.test.stages if plan.test is not None else ()


def next_target(
    plan: AttackPlan,
    objectives: Sequence[str],
    trials: Sequence[TrialRecord],
    stages: Sequence[StageRecord],
    running: Sequence[Target],
) -> Target | None:
    """Return the stage to run next once every trial has had its first one; None if nothing may start now.

    Args:
        trials: all of the sweep; only finished ones are looked at.
        stages: all of the ledger. A trial with a failed stage gets no further one on that split.
        running: what runs already. The test waits until the front is settled.
    """
    finished = [t for t in trials if t.state is State.FINISHED]
    target = _next_on_validation(plan, objectives, finished, stages, running)
    if target is not None or any(t.split == "validation" for t in running):
        return target
    return _next_on_test(plan, objectives, finished, stages, running)


def _next_on_validation(
    plan: AttackPlan,
    objectives: Sequence[str],
    finished: Sequence[TrialRecord],
    stages: Sequence[StageRecord],
    running: Sequence[Target],
) -> Target | None:
    failed = {s.number for s in stages if s.split == "validation" and s.state == "failed"}
    busy = {t.number for t in running if t.split == "validation"}
    trials = [t for t in finished if t.number not in failed]
    settled = [t.exact or t.number in busy for t in trials]
    if plan.evaluate == "all":
        chosen = next((i for i, done in enumerate(settled) if not done), None)
    else:
        chosen = next_unsettled([objective_values(t, objectives) or () for t in trials], settled)
    if chosen is None:
        return None
    number = trials[chosen].number
    return Target(number, "validation", _done(stages, number, "validation"))


def _next_on_test(
    plan: AttackPlan,
    objectives: Sequence[str],
    finished: Sequence[TrialRecord],
    stages: Sequence[StageRecord],
    running: Sequence[Target],
) -> Target | None:
    if plan.test is None:
        return None
    out = {s.number for s in stages if s.split == "test" and s.state == "failed"} | {t.number for t in running}
    members = front_of(finished, objectives)
    points = [objective_values(t, objectives) or () for t in members]
    for number in (members[i].number for i in spread(points, plan.test.trials)):
        position = _done(stages, number, "test")
        if number not in out and position < len(plan.test.stages):
            return Target(number, "test", position)
    return None


def _done(stages: Iterable[StageRecord], number: int, split: Split) -> int:
    return sum(s.number == number and s.split == split and s.state == "done" for s in stages)


def stage_job(
    plan: AttackPlan,
    target: Target,
    trial: TrialRecord,
    stages: Sequence[StageRecord],
    folder: SweepFolder,
    data_digest: str,
) -> StageJob:
    """Build the job of a stage.

    Args:    stages: those of the trial.
    Raises:  ObjectiveMissing if the trial has no weights.
    """
    if trial.weights_digest is None:
        raise ObjectiveMissing(f"trial {trial.number} is {trial.state} and has no weights.")
    stage = planned_stages(plan, target.split)[target.position]
    before = [s.verdicts for s in stages if s.split == target.split and s.position == target.position - 1]
    config = TrialConfig.model_validate(trial.config)
    return StageJob(
        number=trial.number,
        split=target.split,
        position=target.position,
        label=stage.label,
        attack=stage.attack,
        config=stage.config.plain(),
        threat=plan.threat.plain(),
        images=plan.test.images if target.split == "test" and plan.test is not None else plan.images,
        batch_size=plan.batch_size,
        seed=plan.seed,
        trial_folder=str(folder.trial(trial.number)),
        verdict_folder=str(folder.verdicts),
        weights_digest=trial.weights_digest,
        data_digest=data_digest,
        standing=tuple(bool(v) for v in before[0]) if before and before[0] is not None else None,
        threads=config.threads,
        plugins=tuple(config.plugins),
    )
