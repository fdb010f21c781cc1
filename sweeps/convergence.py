"""How the hypervolume of the front grew, over trials and over what they cost. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sweeps.pareto import Point, front, hypervolume
from sweeps.records import CLOSED, TrialRecord
from sweeps.summary import objective_values


class Step(NamedTuple):
    """The sweep after one more trial has ended, however it ended."""

    trials: int
    """Trials that have ended, failed ones included."""
    seconds: float
    """What they have cost in all."""
    hypervolume: float
    """Of the exact ones among them, with the values that they have by now; from the origin, nothing scaled."""


def hypervolume_steps(
    trials: Sequence[TrialRecord], objectives: Sequence[str], seconds: Mapping[int, float]
) -> list[Step]:
    """Return one step for each closed trial, in the order in which they ended.

    Attacks that were run later count with the trial that they were run on, so that a path shows what was found when,
    and not how the bounds fell. Args: seconds: what each trial cost, by number.
    """
    ended = sorted((t for t in trials if t.state in CLOSED), key=lambda t: (t.ended_at or t.updated_at, t.number))
    members: list[Point] = []
    steps: list[Step] = []
    spent = 0.0
    for count, trial in enumerate(ended, start=1):
        spent += seconds.get(trial.number, 0.0)
        values = objective_values(trial, objectives)
        if trial.exact and values is not None:
            points = [*members, values]
            members = [points[place] for place in front(points)]
        steps.append(Step(count, spent, hypervolume(members)))
    return steps
