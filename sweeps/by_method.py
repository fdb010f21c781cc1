"""What each method of a sweep came to and what it cost, side by side. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.costs import Cost
from sweeps.pareto import front, hypervolume
from sweeps.records import StageRecord, State, TrialRecord
from sweeps.summary import objective_values


@dataclass(frozen=True)
class MethodSummary:
    """All trials of one method."""

    label: str
    trials: int
    finished: int
    failed: int
    front: tuple[int, ...]
    """Its trials that no other trial of the same method dominates, bounds included, by falling first objective."""
    exact: bool
    """Whether no value on `front` is a bound: a cascade stops where a trial of whatever method dominates it."""
    on_front: int
    """How many of its trials are on the sweep's front."""
    hypervolume: float
    """Of `front`, from the origin; an upper bound if `exact` is false."""
    epochs: int
    train_seconds: float
    parent_seconds: float
    """Its share of what training its parents took."""
    attack_seconds: float
    passes: int
    """Forward passes of its attacks, a backward pass counted as two."""


def summarise(
    trials: Sequence[TrialRecord],
    stages: Mapping[int, Sequence[StageRecord]],
    costs: Mapping[int, Cost],
    on_front: frozenset[int],
    objectives: Sequence[str],
    parent_seconds: Mapping[int, float],
) -> list[MethodSummary]:
    """Return one summary per method, in the order in which the methods first appear.

    Args: stages, costs, parent_seconds: by trial number; on_front: numbers on the sweep's front.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(trial.label, []).append(trial)
    return [
        _summary(label, members, stages, costs, on_front, objectives, parent_seconds)
        for label, members in groups.items()
    ]


def _summary(
    label: str,
    trials: Sequence[TrialRecord],
    stages: Mapping[int, Sequence[StageRecord]],
    costs: Mapping[int, Cost],
    on_front: frozenset[int],
    objectives: Sequence[str],
    parent_seconds: Mapping[int, float],
) -> MethodSummary:
    valued = [(t, v) for t in trials if (v := objective_values(t, objectives)) is not None]
    own = [valued[place] for place in front([values for _, values in valued])]
    own.sort(key=lambda pair: ([-value for value in pair[1]], pair[0].number))
    return MethodSummary(
        label=label,
        trials=len(trials),
        finished=sum(t.state is State.FINISHED for t in trials),
        failed=sum(t.state is State.FAILED for t in trials),
        front=tuple(t.number for t, _ in own),
        exact=all(t.exact for t, _ in own),
        on_front=sum(t.number in on_front for t in trials),
        hypervolume=hypervolume([values for _, values in own]),
        epochs=sum(t.epochs for t in trials),
        train_seconds=sum(t.train_seconds or 0.0 for t in trials),
        parent_seconds=sum(parent_seconds.get(t.number, 0.0) for t in trials),
        attack_seconds=sum(s.seconds or 0.0 for t in trials for s in stages.get(t.number, ())),
        passes=sum(costs[t.number].passes for t in trials),
    )
