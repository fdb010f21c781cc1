"""Two trials, image by image: what each withstood that the other did not, and whether that can be chance.

All trials of a sweep are attacked on the same images, so that a paired comparison sees differences that the intervals
of two single accuracies would hide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from search_spaces.errors import SweepError
from sweeps.columns import Cell, Column, usual_threat
from sweeps.records import TrialRecord
from sweeps.snapshot import Snapshot, accuracy
from sweeps.summary import wilson


class NothingInCommon(SweepError):
    """No attack ran on both trials."""


@dataclass(frozen=True)
class Counts:
    """Images by who withstood the attack; at least one in all."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def images(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of A less that of B."""
        return (self.only_a - self.only_b) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference.

        Source: Newcombe 1998 (Statistics in Medicine 17, 2635–2650), method 10: the Wilson intervals of both
        accuracies, joined with their correlation, which is continuity-corrected when positive. Our choice, because it
        keeps its coverage near 0 and 1, where robust accuracies are and Wald's interval fails.
        """
        n, hits_a, hits_b = self.images, self.both + self.only_a, self.both + self.only_b
        share_a, share_b = hits_a / n, hits_b / n
        (low_a, high_a), (low_b, high_b) = wilson(hits_a, n), wilson(hits_b, n)
        down = _join(share_a - low_a, high_b - share_b, self._correlation())
        up = _join(high_a - share_a, share_b - low_b, self._correlation())
        return max(-1.0, self.difference - down), min(1.0, self.difference + up)

    def _correlation(self) -> float:
        """φ of the fourfold table, its numerator lessened by images/2 as far as 0; 0 if a margin is empty."""
        a, b, c, d = self.both, self.only_a, self.only_b, self.neither
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        cross = a * d - b * c
        if cross > 0:
            return max(cross - self.images / 2, 0.0) / math.sqrt(margins)
        return cross / math.sqrt(margins) if margins else 0.0

    @property
    def p_value(self) -> float:
        """Return how often images that only one withstood would be shared out so unevenly or more by a fair coin.

        Source: McNemar 1947, the exact, two-sided form.
        """
        count, fewer = self.only_a + self.only_b, min(self.only_a, self.only_b)
        tail = term = 1  # binomial coefficients, exactly: 2**count outgrows floats
        for i in range(fewer):
            term = term * (count - i) // (i + 1)
            tail += term
        return float(min(1.0, 2 * tail / 2**count))


def _join(own: float, other: float, correlation: float) -> float:
    return math.sqrt(max(own * own - 2 * correlation * own * other + other * other, 0.0))


@dataclass(frozen=True)
class Comparison:
    """Two trials in one column."""

    column: Column
    a: Cell
    b: Cell
    counts: Counts


def count_pairs(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Counts:
    """Return the counts of two rows of verdicts (images,), in the same order; ValueError if they differ in length."""
    if a.shape != b.shape or not a.size:
        raise ValueError(f"paired verdicts are of the same images, at least one; found {a.shape} and {b.shape}")
    return Counts(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def compare_cells(column: Column, first: int, a: Cell, second: int, b: Cell) -> Comparison:
    """Compare two trials in a column; SweepError unless both have figures, of the same images."""
    for number, cell in ((first, a), (second, b)):
        if cell.verdicts is None:
            state = f"is {cell.trouble}" if cell.trouble else "has not run"
            raise SweepError(f"{column.key} {state} on trial {number}; only attacks that ran on both can be compared.")
    assert a.verdicts is not None
    assert b.verdicts is not None
    if a.images != b.images or a.verdicts.shape != b.verdicts.shape:
        raise SweepError(
            f"{column.key} judged {a.images} images of trial {first} and {b.images} of trial {second}; a paired "
            "comparison needs the same images."
        )
    return Comparison(column, a, b, count_pairs(a.verdicts, b.verdicts))


def compare_rows(snapshot: Snapshot, a: int, b: int) -> list[Comparison]:
    """Return the comparison in every column that both trials have.

    Raises: SweepError if a trial does not exist, or if both are the same; NothingInCommon if no attack ran on both.
    """
    first, second = pair_of(snapshot, a, b)
    cells = zip(snapshot.columns, snapshot.cells(first), snapshot.cells(second), strict=True)
    rows = [
        compare_cells(column, a, mine, b, theirs)
        for column, mine, theirs in cells
        if mine.verdicts is not None and theirs.verdicts is not None
    ]
    if not rows:
        states = f"trial {a} is {first.state}, trial {b} is {second.state}"
        raise NothingInCommon(f"no attack ran on both trials ({states}); choose two trials with attacks in common.")
    return rows


def pair_of(snapshot: Snapshot, a: int, b: int) -> tuple[TrialRecord, TrialRecord]:
    """Return two trials; SweepError if one does not exist, or both are the same."""
    first, second = _trial(snapshot, a), _trial(snapshot, b)
    if a == b:
        raise SweepError(f"trial {a} is compared with itself; name two trials.")
    return first, second


def _trial(snapshot: Snapshot, number: int) -> TrialRecord:
    if not 0 <= number < len(snapshot.trials):
        known = f"0 to {len(snapshot.trials) - 1}" if snapshot.trials else "none"
        raise SweepError(f"there is no trial {number}; found trials: {known}.")
    return snapshot.trials[number]


def render_comparison(snapshot: Snapshot, a: int, b: int) -> Table:
    """Return `compare_rows` as a table that fits into 80 columns."""
    rows, usual = compare_rows(snapshot, a, b), usual_threat(snapshot.columns)
    first, second = _trial(snapshot, a), _trial(snapshot, b)
    title = (
        f"Trial {a} ({first.label}, clean {accuracy(first.clean_acc)}) against trial {b} ({second.label}, clean "
        f"{accuracy(second.clean_acc)}), image by image"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("attack", overflow="fold", min_width=10)
    for name in ("images", f"{a}", f"{b}", "both", f"only\n{a}", f"only\n{b}", "none", "difference\n[95 %]", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        counts, (low, high) = row.counts, row.counts.interval
        table.add_row(
            row.column.title(usual),
            str(counts.images),
            row.a.figure,
            row.b.figure,
            *map(str, (counts.both, counts.only_a, counts.only_b, counts.neither)),
            f"{counts.difference:+.3f}\n[{low:+.3f}, {high:+.3f}]",
            f"{counts.p_value:.2g}",
        )
    table.caption = _caption(rows)
    table.caption_justify = "left"
    return table


def _caption(rows: list[Comparison]) -> str:
    text = "p: exact McNemar test, not corrected for the number of rows."
    if all(row.a.exact and row.b.exact for row in rows):
        return text
    return f"{text} ≤: upper bound, parts of the attack are still to run or spared; that side can only fall."
