"""Published figures: what a paper reports for a known configuration, beside what this sweep measured for it. Pure.

``{method: plain, published: {clean_acc: 0.9856, PGD2: 0.4545}}`` in `search.known`; `search.published_in` says where
they stand. They decide nothing: no sampler reads them, and two sweeps that differ in them alone are comparable.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_spaces.domains import parse_number
from search_spaces.errors import Problem
from search_spaces.problems import did_you_mean
from sweeps.records import LAUNCHED, State, TrialRecord
from sweeps.summary import wilson

if TYPE_CHECKING:
    from sweeps.columns import Column
    from sweeps.snapshot import Snapshot

PUBLISHED, SOURCE = "published", "published_in"
CLEAN = "clean_acc"
"""Key of the clean accuracy; every other one is the name of an attack's column."""
BASELINE = "plain"
"""Label of the method that gains are measured against."""
_SHARED = ("model.", "training.")


@dataclass(frozen=True)
class PublishedRow:
    """A known configuration with figures."""

    label: str | None
    """Of its method; None where a sweep has only one."""
    params: Mapping[str, Any]
    """As the sweep's file spells them."""
    figures: Mapping[str, float]
    """CLEAN or a column's name → accuracy in [0, 1]."""

    def is_of(self, trial: TrialRecord) -> bool:
        """Return whether a trial has this configuration: all that was drawn for it is named here, with its value."""
        drawn = {name: value for name, value in trial.params.items() if name != "method"}
        if self.label not in (None, trial.label) or not drawn.keys() <= self.params.keys():
            return False
        return all(_same(value, self.params[name]) for name, value in drawn.items())

    def shares_with(self, other: PublishedRow) -> bool:
        """Return whether both say the same of model and training."""
        mine, its = ({n: v for n, v in row.params.items() if n.startswith(_SHARED)} for row in (self, other))
        return mine.keys() == its.keys() and all(_same(value, its[name]) for name, value in mine.items())


@dataclass(frozen=True)
class Bounded:
    """A number, or what it cannot exceed or fall below."""

    value: float
    sign: str = ""
    """Empty, ``≤`` or ``≥``."""

    def __str__(self) -> str:
        return f"{self.sign} {self.value:+.3f}".strip()

    def public(self) -> dict[str, Any]:
        """Return what the export shows."""
        return {"value": self.value, "is": {"": "exact", "≤": "at_most", "≥": "at_least"}[self.sign]}


@dataclass(frozen=True)
class Beside:
    """One figure of a paper and ours."""

    published: float
    ours: float | None
    interval: tuple[float, float] | None
    """The 95 % interval (Wilson) of ours."""
    exact: bool
    """Whether ours is final; otherwise it is an upper bound."""
    published_gain: float | None
    """Published, minus that of the paper's baseline; None for the baseline, or if there is none."""
    gain: Bounded | None
    """Ours, minus the mean of our trials of the baseline."""

    @property
    def difference(self) -> Bounded | None:
        """Ours minus published."""
        return None if self.ours is None else Bounded(self.ours - self.published, "" if self.exact else "≤")


@dataclass(frozen=True)
class Comparison:
    """A trial that has a published configuration."""

    trial: TrialRecord
    figures: Mapping[str, Beside]
    """By CLEAN or a column's name, as far as the paper has them."""


def published_rows(document: Mapping[str, Any]) -> list[PublishedRow]:
    """Return the known configurations of a sweep's document that have figures, in their order."""
    search = document.get("search")
    known = search.get("known") or () if isinstance(search, Mapping) else ()
    return [
        PublishedRow(entry.get("method"), {k: v for k, v in entry.items() if k not in ("method", PUBLISHED)}, figures)
        for entry in known
        if isinstance(entry, Mapping) and isinstance(figures := entry.get(PUBLISHED), Mapping)
    ]


def published_in(document: Mapping[str, Any]) -> str:
    """Return where the figures of a sweep's document stand; empty if it has none."""
    search = document.get("search")
    return str(search.get(SOURCE) or "") if isinstance(search, Mapping) else ""


def without_figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a known configuration without its figures."""
    return {name: value for name, value in entry.items() if name != PUBLISHED}


def published_problems(
    known: Sequence[Mapping[str, Any]], source: str | None, columns: Collection[str] | None
) -> Iterator[Problem]:
    """Yield what is wrong with the figures of known configurations.

    Args: source: search.published_in; columns: names of the launched plan's attacks; None if they could not be read.
    """
    strange: dict[str, tuple[str | int, ...]] = {}
    for position, entry in enumerate(known):
        if PUBLISHED not in entry:
            continue
        path, figures = ("search", "known", position, PUBLISHED), entry[PUBLISHED]
        if not isinstance(figures, Mapping) or not figures:
            yield Problem(path, f"expected figures by name, {{clean_acc: 0.98}}; found {figures!r}.")
            continue
        for name, value in figures.items():
            if columns is not None and name not in (CLEAN, *columns):
                strange.setdefault(name, (*path, name))
            else:
                yield from _figure_problems((*path, name), value)
    for name, place in strange.items():  # once, not for every row of a table whose plan was replaced
        allowed = [CLEAN, *(columns or ())]
        message = f"no attack of this plan; allowed: {', '.join(allowed)}."
        yield Problem(place, message, did_you_mean(name, allowed))
    if not source and any(PUBLISHED in entry for entry in known):
        message = "figures have a source; found none."
        yield Problem(("search", SOURCE), message, 'Write, say, published_in: "Yudin et al. 2025, arXiv:2507.07814".')


def _figure_problems(path: tuple[str | int, ...], value: Any) -> Iterator[Problem]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield Problem(path, f"expected a number from 0 to 1; found {value!r}.")
    elif not 0 <= value <= 1:
        hint = f"Accuracies are fractions: {value / 100:g} for {value:g} %." if 1 < value <= 100 else ""
        yield Problem(path, f"expected a number from 0 to 1; found {value:g}.", hint)


def compare_published(snapshot: Snapshot) -> list[Comparison]:
    """Return every finished trial that has a published configuration, replicates included, in the paper's order."""
    rows = published_rows(snapshot.sweep.document)
    columns = measured_columns(snapshot)
    finished = [t for t in snapshot.trials if t.state is State.FINISHED] if rows else []
    found = []
    for row in rows:
        baseline = _baseline_of(row, rows)
        ours = [t for t in finished if baseline is not None and baseline.is_of(t)]
        for trial in finished:
            if row.is_of(trial):
                names = [name for name in (CLEAN, *columns) if name in row.figures]
                figures = {n: _beside(snapshot, trial, row, baseline, ours, n, columns.get(n)) for n in names}
                found.append(Comparison(trial, figures))
    return found


def measured_columns(snapshot: Snapshot) -> dict[str, Column]:
    """Return the columns that figures may stand beside, by name: the launched plan's, on validation images."""
    return {c.name: c for c in snapshot.columns if c.split == "validation" and c.plan == LAUNCHED}


def _baseline_of(row: PublishedRow, rows: Iterable[PublishedRow]) -> PublishedRow | None:
    """Return the row of plain fine-tuning with the same model and training; None for that row itself."""
    if row.label == BASELINE:
        return None
    return next((other for other in rows if other.label == BASELINE and row.shares_with(other)), None)


def _beside(
    snapshot: Snapshot,
    trial: TrialRecord,
    row: PublishedRow,
    baseline: PublishedRow | None,
    ours: Sequence[TrialRecord],
    name: str,
    column: Column | None,
) -> Beside:
    value, interval, exact = _measured(snapshot, trial, column)
    before = [_measured(snapshot, t, column) for t in ours]
    base = None if baseline is None else baseline.figures.get(name)
    means = [v for v, _, _ in before if v is not None]
    gain = None
    if value is not None and means and len(means) == len(before):
        gain = _gain(value, exact, statistics.fmean(means), all(e for _, _, e in before))
    published = float(row.figures[name])
    return Beside(published, value, interval, exact, None if base is None else published - base, gain)


def _gain(value: float, exact: bool, base: float, base_exact: bool) -> Bounded | None:
    """Return the difference of two figures, either of which may be an upper bound; two bounds say nothing."""
    if not exact and not base_exact:
        return None
    return Bounded(value - base, "" if exact and base_exact else "≤" if base_exact else "≥")


def _measured(
    snapshot: Snapshot, trial: TrialRecord, column: Column | None
) -> tuple[float | None, tuple[float, float] | None, bool]:
    """Return a trial's figure, its interval, and whether it is exact. Args: column: None is the clean accuracy."""
    if column is not None:
        cell = snapshot.cells(trial)[snapshot.columns.index(column)]
        return cell.accuracy, cell.interval, cell.exact
    images = snapshot.sweep.split_sizes.get("validation")
    if trial.clean_acc is None or not images:
        return trial.clean_acc, None, True
    return trial.clean_acc, wilson(round(trial.clean_acc * images), images), True


def _same(drawn: Any, written: Any) -> bool:
    """Return whether a drawn value is the one that a file spells, which may be text: 2/255."""
    if isinstance(drawn, bool) or isinstance(written, bool) or drawn is None or written is None:
        return drawn is written
    try:
        return math.isclose(_number(drawn), _number(written), rel_tol=1e-9)
    except ValueError:
        return bool(drawn == written)


def _number(value: Any) -> float:
    return parse_number(value) if isinstance(value, str) else float(value)
