"""Choosing a configuration: the best finished trial under conditions, and the knee of the front."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.errors import ConfigError, Problem
from search_spaces.problems import did_you_mean
from sweeps.pareto import knee
from sweeps.records import State, TrialRecord
from sweeps.snapshot import Snapshot, flatten
from sweeps.summary import objective_values

FIGURES = ("clean_acc", "robust_acc", "feature_cosine", "test_clean_acc", "test_robust_acc", "epochs", "train_seconds")
"""What may be maximised, or compared, beside the numbers of a configuration."""
CONDITION = re.compile(r"\s*([A-Za-z_][\w.+/@-]*)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")
COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """``clean_acc>=0.9``"""

    name: str
    comparison: str
    value: float | str

    def holds(self, facts: dict[str, float | str]) -> bool:
        """Return whether a trial meets it; one that lacks the fact does not. Args: facts: by name."""
        found = facts.get(self.name)
        if found is None or isinstance(found, str) != isinstance(self.value, str):
            return False
        return bool(COMPARE[self.comparison](found, self.value))


@dataclass(frozen=True)
class Choice:
    """The trials that meet the conditions."""

    ranked: tuple[TrialRecord, ...]
    """Exact ones, the best first."""
    open: tuple[TrialRecord, ...]
    """Trials that might be better than the best: of them only an upper bound is known."""


def parse_conditions(texts: Sequence[str], snapshot: Snapshot) -> list[Condition]:
    """Read conditions, several in one text joined by commas.

    Raises: ConfigError that names what cannot be read and what is allowed.
    """
    known = {name for trial in snapshot.trials for name in facts_of(trial)} | set(FIGURES)
    conditions, problems = [], []
    for text in (part for whole in texts for part in whole.split(",")):
        found = CONDITION.fullmatch(text)
        if found is None:
            expected = f"expected a condition such as clean_acc>=0.9; found {text!r}."
            problems.append(Problem((), expected, source="--where"))
        elif found[1] not in known:
            hint = did_you_mean(found[1], sorted(known))
            problems.append(Problem((), f"no trial has {found[1]!r}.", hint, source="--where"))
        else:
            conditions.append(Condition(found[1], found[2], _value(found[3])))
    if problems:
        raise ConfigError(problems)
    return conditions


def choose(snapshot: Snapshot, conditions: Sequence[Condition], maximize: str, method: str | None = None) -> Choice:
    """Rank the finished trials that meet the conditions by one figure; ties go to the other objectives, then numbers.

    A bound is an upper one: a trial with a bound is never chosen, and named if its bound is above the best.

    Args: maximize: one of FIGURES; method: label, None is any.
    Raises: ConfigError if the figure or the method does not exist.
    """
    labels = sorted({trial.label for trial in snapshot.trials})
    if method is not None and method not in labels:
        hint = did_you_mean(method, labels)
        message = f"no trial is of {method!r}; found {', '.join(labels)}."
        raise ConfigError([Problem((), message, hint, source="--method")])
    if maximize not in FIGURES:
        allowed = ", ".join(FIGURES)
        raise ConfigError([Problem((), f"expected one of {allowed}; found {maximize!r}.", source="--maximize")])
    finished = [t for t in snapshot.trials if t.state is State.FINISHED and method in (None, t.label)]
    meeting = [t for t in finished if all(c.holds(facts_of(t)) for c in conditions)]
    valued = [t for t in meeting if maximize in facts_of(t)]
    objectives = snapshot.sweep.objectives
    exact = [t for t in valued if t.exact or "robust_acc" not in (*objectives, maximize)]
    exact.sort(key=lambda t: (-_number(t, maximize), [-(t.value(o) or 0.0) for o in objectives], t.number))
    best = _number(exact[0], maximize) if exact else float("-inf")
    bounds = [t for t in valued if t not in exact and _number(t, maximize) > best]
    return Choice(tuple(exact), tuple(bounds))


def knee_of(snapshot: Snapshot) -> TrialRecord | None:
    """Return the member of the front at its knee; None if it has none."""
    valued = [(t, v) for t in snapshot.front if (v := objective_values(t, snapshot.sweep.objectives)) is not None]
    place = knee([v for _, v in valued])
    return None if place is None else valued[place][0]


def facts_of(trial: TrialRecord) -> dict[str, float | str]:
    """Return what conditions may speak of: figures, and the configuration, ``training.epochs``, ``jasmin.k``."""
    figures = {name: getattr(trial, name) for name in FIGURES}
    config = {key.removeprefix("methods."): value for key, value in flatten(trial.config).items()}
    facts = {"method": trial.label, **config, **figures}
    return {
        name: value if isinstance(value, str) else float(value)
        for name, value in facts.items()
        if isinstance(value, int | float | str)
    }


def _number(trial: TrialRecord, name: str) -> float:
    return float(getattr(trial, name))


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")
