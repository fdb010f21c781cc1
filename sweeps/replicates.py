"""Replicates: the finished trials of one configuration, which differ in their seeds alone, as mean and spread."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.config import digest_of
from sweeps.records import State, TrialRecord


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n − 1) of at least two values."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of the values; n >= 2."""
        return cls(statistics.fmean(values), statistics.stdev(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class Replicates:
    """At least two finished trials of one configuration, by number."""

    trials: tuple[TrialRecord, ...]

    @property
    def count(self) -> int:
        return len(self.trials)

    @property
    def exact(self) -> bool:
        """Whether every robust accuracy is final; otherwise their mean is an upper bound."""
        return all(trial.exact for trial in self.trials)

    def spread(self, objective: str) -> Spread | None:
        """Return the spread of clean_acc or robust_acc; None if a trial lacks it."""
        values = [value for trial in self.trials if (value := trial.value(objective)) is not None]
        return Spread.of(values) if len(values) == self.count else None

    def public(self) -> dict[str, Any]:
        """Return what the export shows."""
        first = self.trials[0]
        figures = {name: self.spread(name) for name in ("clean_acc", "robust_acc")}
        return {
            "trials": [trial.number for trial in self.trials],
            "n": self.count,
            "method": first.label,
            "params": dict(first.params),
            **{name: found and {"mean": found.mean, "std": found.std} for name, found in figures.items()},
            "exact": self.exact,
        }


def find_replicates(trials: Iterable[TrialRecord]) -> list[Replicates]:
    """Return every configuration that more than one finished trial has, in the order of their first trials."""
    groups: dict[tuple[str, str], list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        if trial.state is State.FINISHED:
            groups[trial.label, digest_of(dict(trial.config))].append(trial)
    return [Replicates(tuple(group)) for group in groups.values() if len(group) > 1]
