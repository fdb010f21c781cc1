"""Columns: the attacks of every plan as people read them, one figure for each attack and split. Pure.

An attack may have parts. Its figure is exact once none of them is missing, and an upper bound before: what is still to
run can only break more images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sweeps.records import LAUNCHED, PlannedStage, Split, StageRecord
from sweeps.summary import wilson

LEGACY_BUDGET = "legacy_normalized_budget"
"""Setting of an attack whose ε is in units of the normalised image, not of pixels."""
SURROGATE = "surrogate"
"""Key of the model that an attack sees instead of the judged one."""


@dataclass(frozen=True)
class Column:
    """One entry of a plan on one split."""

    split: Split
    plan: str
    name: str
    stages: tuple[PlannedStage, ...]
    """Its parts in order; at least one."""
    before: tuple[PlannedStage, ...] = ()
    """Stages of the cascade that come first; none for a column that stands for itself."""

    @property
    def cumulative(self) -> bool:
        """Whether it is a part of its plan's cascade."""
        return self.stages[0].cumulative

    @property
    def key(self) -> str:
        """Its name for programs: ``validation.autoattack``, or ``paper.validation.autoattack`` of a plan paper."""
        return f"{'' if self.plan == LAUNCHED else f'{self.plan}.'}{self.split}.{self.name}"

    @property
    def threat(self) -> dict[str, Any]:
        """Norm and epsilon, the legacy setting if ε is in normalised units, and the surrogate if there is one."""
        first = self.stages[0]
        legacy = {LEGACY_BUDGET: True} if first.config.get(LEGACY_BUDGET) else {}
        surrogate = {SURROGATE: first.surrogate} if first.surrogate else {}
        return {**first.threat, **legacy, **surrogate}

    def title(self, usual: Mapping[str, Any] | None = None) -> str:
        """Return its name for people, with its threat where that is not the usual one: ``test FGSM4, ε = 4/255``."""
        name = (
            f"{'test ' if self.split == 'test' else ''}{'' if self.plan == LAUNCHED else f'{self.plan}: '}{self.name}"
        )
        notes = [] if self.threat == usual else threat_notes(self.threat, usual)
        return ", ".join([name, *notes])


@dataclass(frozen=True)
class Cell:
    """What is known of one trial in one column."""

    planned: int
    """Parts of the column."""
    done: int = 0
    """Parts that have run."""
    images: int | None = None
    survivors: int | None = None
    """Images that all parts so far left standing; None before the first."""
    exact: bool = False
    """Whether `survivors` is final; otherwise it is an upper bound."""
    trouble: Literal["", "running", "failed"] = ""
    """What became of a part that was begun and is not done."""
    verdicts: NDArray[np.bool_] | None = field(default=None, compare=False)
    """(images,) still correct, in the order of the plan's images."""

    @property
    def accuracy(self) -> float | None:
        """Share of the images that stand; None before the first part."""
        return None if self.survivors is None or not self.images else self.survivors / self.images

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (Wilson) of the accuracy."""
        return None if self.survivors is None or not self.images else wilson(self.survivors, self.images)

    @property
    def figure(self) -> str:
        """The accuracy as people read it: ``0.412``, or ``≤ 0.412`` of a bound; empty before the first part."""
        return "" if self.accuracy is None else bounded(self.accuracy, self.exact)

    @property
    def progress(self) -> str:
        """What is missing: ``3 of 12 parts, failed``; empty when nothing is."""
        if self.exact or self.survivors is None:
            return self.trouble
        return f"{self.done} of {self.planned} parts" + (f", {self.trouble}" if self.trouble else "")


def columns_of(planned: Iterable[PlannedStage]) -> tuple[Column, ...]:
    """Group stages: validation before test, the launched plan first, in a plan the cascade before what stands alone."""
    planned = list(planned)
    plans = list(dict.fromkeys((LAUNCHED, *(stage.plan for stage in planned))))
    order = sorted(planned, key=lambda s: (s.split != "validation", plans.index(s.plan), not s.cumulative, s.position))
    groups: dict[tuple[Split, str, str], list[PlannedStage]] = {}
    for stage in order:
        groups.setdefault((stage.split, stage.plan, stage.column), []).append(stage)
    return tuple(
        Column(split, plan, name, tuple(stages), tuple(_ahead(order, stages[0])))
        for (split, plan, name), stages in groups.items()
    )


def _ahead(planned: Iterable[PlannedStage], first: PlannedStage) -> Iterable[PlannedStage]:
    mine = (first.split, first.plan, True)
    for stage in planned:
        if first.cumulative and (stage.split, stage.plan, stage.cumulative) == mine and stage.position < first.position:
            yield stage


def cell_of(column: Column, stages: Sequence[StageRecord]) -> Cell:
    """Return a trial's cell. Args: stages: of that trial; those of other columns are left aside."""
    found = {stage.position: stage for stage in stages if stage.split == column.split}
    mine = [found[part.position] for part in column.stages if part.position in found]
    ahead = [found[part.position] for part in column.before if part.position in found]
    done = [stage for stage in mine if is_done(stage)]
    states = {stage.state for stage in mine}
    trouble: Literal["", "running", "failed"] = (
        "failed" if "failed" in states else "running" if "running" in states else ""
    )
    count, nobody = len(column.stages), next((s for s in (*ahead, *mine) if is_done(s) and s.survivors == 0), None)
    if nobody is not None:
        images = nobody.images or 0
        return Cell(count, len(done), images, 0, True, "", np.zeros(images, dtype=bool))
    if not done:
        return Cell(count, trouble=trouble)
    verdicts, survivors = _standing(done)
    return Cell(count, len(done), done[-1].images, survivors, len(done) == count, trouble, verdicts)


def is_done(stage: StageRecord) -> bool:
    """Return whether a stage has its figures."""
    return stage.state == "done" and stage.survivors is not None and bool(stage.images)


def _standing(done: Sequence[StageRecord]) -> tuple[NDArray[np.bool_] | None, int | None]:
    """Return who withstood all parts that ran, and how many; without verdicts the last part's count."""
    verdicts = [stage.verdicts for stage in done if stage.verdicts is not None]
    if len(verdicts) < len(done):
        return None, done[-1].survivors
    standing = np.logical_and.reduce(verdicts)
    return standing, int(standing.sum())


def usual_threat(columns: Iterable[Column]) -> dict[str, Any] | None:
    """Return the threat of the launched plan's cascade, which heads do not repeat; None without a cascade."""
    return next((column.threat for column in columns if column.cumulative and column.plan == LAUNCHED), None)


def last_of_cascade(columns: Sequence[Column], split: Split) -> Column | None:
    """Return the column after which the launched plan's cascade is through on a split."""
    cascade = [c for c in columns if c.cumulative and c.plan == LAUNCHED and c.split == split]
    return cascade[-1] if cascade else None


def threat_notes(threat: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> list[str]:
    """Return what to say about a threat: its norm unless that is the usual one's, its ε, odd units, a surrogate."""
    norm = [] if usual is not None and threat["norm"] == usual["norm"] else [str(threat["norm"])]
    units = ["normalised units"] if threat.get(LEGACY_BUDGET) else []
    surrogate = [f"made on the {threat[SURROGATE]}"] if threat.get(SURROGATE) else []
    return [*norm, f"ε = {pixels(threat['epsilon'])}", *units, *surrogate]


def pixels(epsilon: float) -> str:
    """Write a radius on the [0, 1] pixel scale: 8/255 where neither 0.5 is exact nor 0.0123 shorter."""
    scaled = epsilon * 255
    in_255ths = abs(scaled - round(scaled, 1)) < 1e-6 and epsilon != round(epsilon, 2)
    return f"{scaled:.4g}/255" if in_255ths else f"{epsilon:.3g}"


def bounded(value: float, exact: bool) -> str:
    """Write a figure of robustness: ``0.412``, and ``≤ 0.412`` for an upper bound."""
    return f"{'' if exact else '≤ '}{value:.3f}"
