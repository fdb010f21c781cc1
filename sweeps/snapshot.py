"""Snapshot: one reading of a whole ledger, and how its figures are written; terminal, report and MLflow share it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweeps.by_method import MethodSummary, summarise
from sweeps.columns import Cell, Column, bounded, cell_of, columns_of, last_of_cascade
from sweeps.costs import Cost, cost_of
from sweeps.ledger import Ledger
from sweeps.overfitting import MethodOverfitting
from sweeps.parents import booked
from sweeps.pareto import next_unsettled
from sweeps.records import Split, StageRecord, State, SweepRecord, TrialRecord
from sweeps.replicates import Replicates, Spread, find_replicates
from sweeps.summary import front_of, objective_values, robust_interval
from sweeps.trust import Flag, flags_of

if TYPE_CHECKING:
    from sweeps.confirmed import Confirming

ABSENT = "–"
"""Stands where nothing was measured."""

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A5195",
    "#8C6D31",
    "#5B8C2A",
    "#7F7F7F",
    "#B2182B",
    "#1B9E9E",
    "#4D4D9F",
    "#C49A6C",
    "#A6761D",
    "#3E5C3A",
)
"""Colours of the methods, the same in report, terminal and MLflow; the first six are Okabe and Ito's, made to be told
apart by everyone (Okabe and Ito 2008, without yellow and black, which do not show on every background)."""


@dataclass(frozen=True)
class Snapshot:
    """What a ledger held at one moment."""

    sweep: SweepRecord
    trials: tuple[TrialRecord, ...]
    stages: Mapping[int, tuple[StageRecord, ...]]
    """Attack stages by trial number; validation before test, in the order of the plan."""
    front: tuple[TrialRecord, ...]
    """By falling first objective."""
    prior: Mapping[str, int] = field(default_factory=dict)
    """How many trials of which other sweeps inform the sampler."""
    parents: tuple[TrialRecord, ...] = ()
    """Models that trials start from and that the sweep trains; they are among no trials."""
    overfitting: tuple[MethodOverfitting, ...] = ()
    """Robust overfitting of each method that was monitored; read for the report alone, because it needs the curves."""
    confirming: Confirming | None = None
    """What became of the front with new seeds; read for the report alone: it stands in another ledger."""
    resources: tuple[Mapping[str, float], ...] = ()
    """What one training and one attack got, by driver: `Shares.public`."""
    granted: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """What a training got of Ray's resources, by number, as far as it is in the ledger."""

    @classmethod
    def read(cls, ledger: Ledger) -> Snapshot:
        """Read everything but the curves and the events."""
        sweep, trials = ledger.sweep(), tuple(ledger.trials())
        stages: dict[int, list[StageRecord]] = defaultdict(list)
        for stage in ledger.stages():
            stages[stage.number].append(stage)
        front = tuple(front_of(trials, sweep.objectives))
        by_trial = {number: tuple(found) for number, found in stages.items()}
        resources = tuple(event.detail for event in ledger.driver_events("resources"))
        parents, granted = tuple(ledger.parents()), ledger.granted()
        prior = ledger.prior_counts()
        return cls(sweep, trials, by_trial, front, prior, parents, resources=resources, granted=granted)

    def stages_of(self, trial: TrialRecord, split: Split | None = None) -> tuple[StageRecord, ...]:
        """Return a trial's attack stages (on one split)."""
        return tuple(s for s in self.stages.get(trial.number, ()) if split in (None, s.split))

    def in_state(self, *states: State) -> list[TrialRecord]:
        """Return the trials in these states."""
        return [t for t in self.trials if t.state in states]

    @cached_property
    def on_front(self) -> frozenset[int]:
        """The numbers of the front's trials."""
        return frozenset(t.number for t in self.front)

    def is_settled(self) -> bool:
        """Return whether no attack stage that is still to come can change the front of the trials so far."""
        valued = [(t, v) for t in self.trials if (v := objective_values(t, self.sweep.objectives)) is not None]
        return next_unsettled([v for _, v in valued], [t.exact for t, _ in valued]) is None

    @cached_property
    def replicates(self) -> list[Replicates]:
        """The configurations that more than one finished trial has; usually none."""
        return find_replicates(self.trials)

    @cached_property
    def colours(self) -> dict[str, str]:
        """Method → colour; it never changes while the sweep grows."""
        labels = dict.fromkeys(t.label for t in self.trials)
        return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}

    @cached_property
    def short_names(self) -> dict[str, str]:
        """Searched parameter → the shortest end of its dotted name that no other one shares."""
        return shorten(dict.fromkeys(name for t in self.trials for name in t.params))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every attack of every plan, as the tables show them."""
        return columns_of(self.sweep.planned_stages)

    @cached_property
    def _cells(self) -> dict[int, tuple[Cell, ...]]:
        return {t.number: tuple(cell_of(c, self.stages_of(t)) for c in self.columns) for t in self.trials}

    def cells(self, trial: TrialRecord) -> tuple[Cell, ...]:
        """Return what is known of a trial, one cell for each of `columns`."""
        return self._cells[trial.number]

    @cached_property
    def flags(self) -> dict[int, tuple[Flag, ...]]:
        """Reasons not to trust a trial's figures, by the numbers of those trials that have any."""
        found = {t.number: flags_of(self.stages_of(t), self.sweep.planned_stages) for t in self.trials}
        return {number: flags for number, flags in found.items() if flags}

    @cached_property
    def costs(self) -> dict[int, Cost]:
        """What a trial's attacks took and spared, by its number."""
        return {t.number: cost_of(t, self.stages_of(t), self.sweep.planned_stages) for t in self.trials}

    @cached_property
    def attack_seconds(self) -> dict[int, float]:
        """What the attacks on each trial took, by its number."""
        return {t.number: sum(s.seconds or 0.0 for s in self.stages_of(t)) for t in self.trials}

    @cached_property
    def seconds(self) -> dict[int, float]:
        """What each trial cost, by its number: training, its share of its parent's, and attacks."""
        return {
            t.number: (t.train_seconds or 0.0) + self.parent_seconds.get(t.number, 0.0) + self.attack_seconds[t.number]
            for t in self.trials
        }

    @property
    def vertical(self) -> str:
        """What goes upwards in pictures: robust_acc, or feature_cosine where the search has that in its place."""
        in_its_place = "feature_cosine" in self.sweep.objectives and "robust_acc" not in self.sweep.objectives
        return "feature_cosine" if in_its_place else "robust_acc"

    @property
    def has_cosines(self) -> bool:
        """Whether the tables have a column for feature cosines: they are an objective."""
        return "feature_cosine" in self.sweep.objectives

    @cached_property
    def by_method(self) -> list[MethodSummary]:
        """What each method came to and what it cost."""
        seconds = self.attack_seconds, self.parent_seconds
        return summarise(self.trials, self.sweep.objectives, self.on_front, self.costs, *seconds)

    @cached_property
    def parent_seconds(self) -> dict[int, float]:
        """What each child bears of the training of its parent, by its number."""
        return booked(self.parents, self.trials)

    def is_test_exact(self, trial: TrialRecord) -> bool:
        """Return whether the launched plan's cascade is through on a trial's test images."""
        last = last_of_cascade(self.columns, "test")
        return last is not None and self.cells(trial)[self.columns.index(last)].exact

    def robust(self, trial: TrialRecord) -> str:
        """Return ``0.500 [0.439, 0.561]``: robust accuracy, marked with ≤ if it is a bound, and its 95 % interval."""
        if trial.robust_acc is None:
            return ABSENT
        interval = robust_interval(self.stages_of(trial), trial.number)
        span = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        return bounded(trial.robust_acc, trial.exact) + span

    def test_robust(self, trial: TrialRecord) -> str:
        """Return the robust accuracy on test images, marked with ≤ if it is a bound."""
        found = trial.test_robust_acc
        return ABSENT if found is None else bounded(found, self.is_test_exact(trial))


def shorten(names: Iterable[str]) -> dict[str, str]:
    """Return the shortest unambiguous end of each dotted name: ``jasmin.k`` → ``k`` if nothing else is called so."""
    parts = {name: name.split(".") for name in names}
    short = {}
    for name, mine in parts.items():
        ends = (".".join(mine[-length:]) for length in range(1, len(mine) + 1))
        short[name] = next((e for e in ends if sum(o == e or o.endswith(f".{e}") for o in parts) == 1), name)
    return short


def searched(trial: TrialRecord, short: Mapping[str, str]) -> str:
    """Return what the sampler drew for a trial, ``k=3 weight=0.00123``; the choice of the method is left out.

    So is the stack's label before a parameter's name: it stands beside it.
    """
    own = f"{trial.label}/"
    drawn = ((short.get(name, name).removeprefix(own), v) for name, v in trial.params.items() if v != trial.label)
    return " ".join(f"{name}={number(value)}" for name, value in drawn) or ABSENT


def number(value: object) -> str:
    """Write a value for people: floats with three significant digits, nothing as a dash."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return ABSENT if value is None else str(value)


def accuracy(value: float | None) -> str:
    """Write a fraction in [0, 1] with three decimals."""
    return ABSENT if value is None else f"{value:.3f}"


def exactness(found: TrialRecord | Replicates) -> str:
    """Return whether the robust accuracy is final (exact) or can still fall (bound); a dash before it is measured."""
    measured = found.robust_acc if isinstance(found, TrialRecord) else found.spread("robust_acc")
    if measured is None:
        return ABSENT
    return "exact" if found.exact else "bound"


def spread(value: Spread | None, exact: bool = True) -> str:
    """Write ``0.912 ± 0.004``: mean and standard deviation, marked with ≤ if the mean is a bound."""
    return ABSENT if value is None else f"{'' if exact else '≤ '}{value}"


def duration(seconds: float | None) -> str:
    """Write a time for people: 42 s, 3.5 min, 2.1 h."""
    if seconds is None:
        return ABSENT
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def last_line(text: str | None) -> str:
    """Return the last line of a traceback, which says what went wrong."""
    return next((line.strip() for line in reversed((text or "").splitlines()) if line.strip()), "")


def without_passwords(text: str) -> str:
    """Return a text that may be shown: ``http://user:secret@host`` → ``http://user:***@host``."""
    return re.sub(r"(://[^/\s:@\"']*):[^/\s@\"']+@", r"\1:***@", text)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested data under dotted names, lists as JSON: {"a": {"b": [1]}} → {"a.b": "[1]"}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat
