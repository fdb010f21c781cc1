"""The cascade: which attack stage to run next, and the job that runs it. Pure functions of what the ledger holds.

The first validation stage is every trial's objective. Later ones run lazily and always on a trial that lies on the
front of (clean, upper bound), so that the front equals that of full evaluation; test figures and columns describe it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from search_spaces.errors import ObjectiveMissing
from sweeps.folder import SweepFolder
from sweeps.pareto import next_unsettled, spread
from sweeps.records import LAUNCHED, PlannedStage, Split, StageRecord, State, TrialRecord
from sweeps.stage_job import StageJob
from sweeps.summary import front_of, objective_values
from trainables.config import TrialConfig


class Target(NamedTuple):
    """A stage of a trial."""

    number: int
    stage: PlannedStage


@dataclass(frozen=True)
class Standing:
    """What has been planned and done so far."""

    planned: Sequence[PlannedStage]
    """Of the launched plan."""
    objectives: Sequence[str]
    trials: Sequence[TrialRecord]
    """All of the sweep; only finished ones are looked at."""
    stages: Sequence[StageRecord]
    """All of the ledger. A trial with a failed stage gets no further one on that split."""
    running: Sequence[Target]

    @cached_property
    def finished(self) -> list[TrialRecord]:
        return [t for t in self.trials if t.state is State.FINISHED]

    @cached_property
    def _by_trial(self) -> Mapping[tuple[int, Split], list[StageRecord]]:
        found: dict[tuple[int, Split], list[StageRecord]] = defaultdict(list)
        for stage in self.stages:
            if stage.plan == LAUNCHED:
                found[stage.number, stage.split].append(stage)
        return found

    def chain(self, split: Split, *, cumulative: bool) -> list[PlannedStage]:
        """Return the stages of a split's cascade, or its columns, in order."""
        return [s for s in self.planned if s.split == split and s.cumulative == cumulative]

    def next_in_cascade(self, number: int, split: Split) -> PlannedStage | None:
        """Return the next stage of a trial's cascade; None if it is through, a stage failed, or one runs."""
        had = [s for s in self.had(number, split) if s.cumulative]
        chain = self.chain(split, cumulative=True)
        if any(s.state == "failed" for s in had) or self._runs(number, chain) or is_through(chain, had):
            return None
        done = {s.position for s in had if s.state == "done"}
        return next((s for s in chain if s.position not in done), None)

    def next_column(self, number: int, split: Split) -> PlannedStage | None:
        """Return a column of a trial that is not there and does not run."""
        had = {s.position for s in self.had(number, split) if s.state != "running"}
        chain = self.chain(split, cumulative=False)
        return next((s for s in chain if s.position not in had and not self._runs(number, [s])), None)

    def had(self, number: int, split: Split) -> list[StageRecord]:
        """Return a trial's stages of the launched plan on a split."""
        return self._by_trial.get((number, split), [])

    def _runs(self, number: int, stages: Iterable[PlannedStage]) -> bool:
        positions = {(s.split, s.position) for s in stages}
        return any(t.number == number and (t.stage.split, t.stage.position) in positions for t in self.running)


def is_through(chain: Iterable[PlannedStage], done: Iterable[StageRecord]) -> bool:
    """Return whether a cascade is at its end: every stage has run, or one left nothing standing."""
    ran = {s.position: s for s in done if s.state == "done"}
    return all(s.position in ran for s in chain) or any(
        ran[s.position].survivors == 0 for s in chain if s.position in ran
    )


def next_target(
    at: Standing, *, evaluate: Literal["front", "all"], test_trials: int | None, final: bool
) -> Target | None:
    """Return the stage to run next once every trial has had its first one; None if nothing may start now.

    Args:
        evaluate: whom the later stages and the columns judge.
        test_trials: at most so many members of the front are judged on test images; None is every finished trial.
        final: whether all trials are in. Before that only the cascade runs, and what it finds on the front of the
            trials so far.
    """
    target = _next_on_validation(at, evaluate)
    if target is not None or not final or any(t.stage.split == "validation" and t.stage.cumulative for t in at.running):
        return target
    return _next_on_test(at, test_trials) or _next_column(at, evaluate, test_trials)


def _next_on_validation(at: Standing, evaluate: Literal["front", "all"]) -> Target | None:
    failed = {
        s.number
        for s in at.stages
        if s.plan == LAUNCHED and s.split == "validation" and s.cumulative and s.state == "failed"
    }
    busy = {t.number for t in at.running if t.stage.split == "validation" and t.stage.cumulative}
    trials = [t for t in at.finished if t.number not in failed]
    settled = [t.exact or t.number in busy for t in trials]
    if evaluate == "all":
        chosen = next((i for i, done in enumerate(settled) if not done), None)
    else:
        chosen = next_unsettled([objective_values(t, at.objectives) or () for t in trials], settled)
    if chosen is None:
        return None
    number = trials[chosen].number
    stage = at.next_in_cascade(number, "validation")
    return None if stage is None else Target(number, stage)


def _next_on_test(at: Standing, test_trials: int | None) -> Target | None:
    for number in _tested(at, test_trials):
        stage = at.next_in_cascade(number, "test")
        if stage is not None:
            return Target(number, stage)
    return None


def _next_column(at: Standing, evaluate: Literal["front", "all"], test_trials: int | None) -> Target | None:
    judged = at.finished if evaluate == "all" else front_of(at.finished, at.objectives)
    wanted: list[tuple[int, Split]] = [(t.number, "validation") for t in judged]
    wanted += [(number, "test") for number in _tested(at, test_trials)]
    for number, split in wanted:
        stage = at.next_column(number, split)
        if stage is not None:
            return Target(number, stage)
    return None


def _tested(at: Standing, limit: int | None) -> list[int]:
    """Return the trials that are judged on test images: members of the front evenly along it, or all."""
    if limit is None:
        return [t.number for t in at.finished]
    members = front_of(at.finished, at.objectives)
    points = [objective_values(t, at.objectives) or () for t in members]
    return [members[i].number for i in spread(points, limit)]


def stage_job(
    target: Target, trial: TrialRecord, stages: Sequence[StageRecord], folder: SweepFolder, data_digest: str
) -> StageJob:
    """Build the job of a stage.

    Args:    stages: those of the trial.
    Raises:  ObjectiveMissing if the trial has no weights.
    """
    if trial.weights_digest is None:
        raise ObjectiveMissing(f"trial {trial.number} is {trial.state} and has no weights.")
    config = TrialConfig.model_validate(trial.config)
    return StageJob(
        number=trial.number,
        stage=target.stage,
        trial_folder=folder.trial_place(trial.number),
        verdict_folder=folder.verdict_place,
        weights_digest=trial.weights_digest,
        data_digest=data_digest,
        standing=left_standing(target.stage, stages),
        threads=config.threads,
        plugins=tuple(config.plugins),
    )


def left_standing(stage: PlannedStage, stages: Iterable[StageRecord]) -> tuple[bool, ...] | None:
    """Return what the stages before one in its cascade left standing; None if it is the first, or a column."""
    before = [
        s
        for s in stages
        if stage.cumulative
        and s.cumulative
        and (s.plan, s.split) == (stage.plan, stage.split)
        and s.position < stage.position
        and s.verdicts is not None
    ]
    last = max(before, key=lambda s: s.position, default=None)
    return None if last is None or last.verdicts is None else tuple(bool(v) for v in last.verdicts)
