"""Parents as the ledger has them: whose they are, and what of their cost each child bears. Pure.

A parent that a sweep trains is a row like a trial's with a negative number: −1, −2, … Its life ends with its training.
It is never judged, never told to the sampler and in no count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sweeps.records import TrialRecord

BETWEEN_NAMES = ", "
"""Stands in the label of a parent's row where the configuration has several names."""


def parent_of(trial: TrialRecord) -> str | None:
    """Return the name of the parent that a trial starts from."""
    named = trial.config.get("start_from")
    return None if named is None else str(named["name"])


def names_of(parent: TrialRecord) -> list[str]:
    """Return the names that a parent's row stands for."""
    return parent.label.split(BETWEEN_NAMES)


def called(record: TrialRecord) -> str:
    """Return what people call a row: trial 7, parent robust."""
    return f"trial {record.number}" if record.number >= 0 else f"parent {record.label}"


def children_of(parent: TrialRecord, trials: Iterable[TrialRecord]) -> list[int]:
    """Return the numbers of the trials that start from a parent, in whatever state they are."""
    names = names_of(parent)
    return [trial.number for trial in trials if parent_of(trial) in names]


def count_siblings(trial: TrialRecord, parents: Iterable[TrialRecord], trials: Iterable[TrialRecord]) -> int:
    """Return how many trials start from the parent of a trial, itself included; 0 if the sweep trains none for it."""
    mine = next((parent for parent in parents if parent_of(trial) in names_of(parent)), None)
    return 0 if mine is None else len(children_of(mine, trials))


def booked(parents: Sequence[TrialRecord], trials: Sequence[TrialRecord]) -> dict[int, float]:
    """Return the seconds of its parent's training that each child bears, by number: equal parts.

    A parent without children, or that has not been trained, is booked to nobody; a trial without a parent has no entry.
    """
    seconds = {name: parent.train_seconds or 0.0 for parent in parents for name in names_of(parent)}
    rows = {name: parent.number for parent in parents for name in names_of(parent)}
    starts = {trial.number: name for trial in trials if (name := parent_of(trial)) in rows}
    counts = Counter(rows[name] for name in starts.values())
    return {number: seconds[name] / counts[rows[name]] for number, name in starts.items()}
