"""What each method of a sweep came to and what it cost, side by side. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.costs import Cost
from sweeps.pareto import front, hypervolume
from sweeps.records import State, TrialRecord
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
    objectives: Sequence[str],
    on_front: frozenset[int],
    costs: Mapping[int, Cost],
    attack_seconds: Mapping[int, float],
    parent_seconds: Mapping[int, float],
) -> list[MethodSummary]:
    """Return one summary per method, in the order in which the methods first appear.

    Args: on_front: numbers on the sweep's front; costs, attack_seconds, parent_seconds: by trial number.
    """
    summaries = []
    for label in dict.fromkeys(t.label for t in trials):
        mine = [t for t in trials if t.label == label]
        valued = [(t, v) for t in mine if (v := objective_values(t, objectives)) is not None]
        own = [valued[place] for place in front([values for _, values in valued])]
        own.sort(key=lambda pair: ([-value for value in pair[1]], pair[0].number))
        summaries.append(
            MethodSummary(
                label=label,
                trials=len(mine),
                finished=sum(t.state is State.FINISHED for t in mine),
                failed=sum(t.state is State.FAILED for t in mine),
                front=tuple(t.number for t, _ in own),
                exact=all(t.exact for t, _ in own),
                on_front=sum(t.number in on_front for t in mine),
                hypervolume=hypervolume([values for _, values in own]),
                epochs=sum(t.epochs for t in mine),
                train_seconds=sum(t.train_seconds or 0.0 for t in mine),
                parent_seconds=sum(parent_seconds.get(t.number, 0.0) for t in mine),
                attack_seconds=sum(attack_seconds[t.number] for t in mine),
                passes=sum(costs[t.number].passes for t in mine),
            )
        )
    return summaries
