"""The tables "Beside the published figures" of the report, as plain values, and their part of the export."""

from __future__ import annotations

from typing import Any

from sweeps.columns import bounded, usual_threat
from sweeps.published import CLEAN, Beside, Comparison, compare_published, measured_columns, published_in
from sweeps.snapshot import ABSENT, Snapshot, searched

CAPTION = (
    "Ours are of the validation images, with their 95 % interval; ≤ marks an upper bound. Protocol, seed, split and "
    "checkpoint differ from the paper's, so that the differences within a column compare methods, not absolute values."
)
GAINS = (
    "What can be compared: each figure minus that of plain fine-tuning in the same table; ours minus the mean of our "
    "trials of it. – where both are upper bounds, which evaluate: all makes exact. Another seed alone moves gains, too."
)


def published_tables(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return source, captions, titles and rows of both tables; None if no finished trial has a published row.

    A row: number, method, colour, searched, and a cell for each title: published, ours, difference, published_gain and
    gain as texts, `bound` where ours is one.
    """
    compared = compare_published(snapshot)
    if not compared:
        return None
    columns = measured_columns(snapshot)
    names = [name for name in (CLEAN, *columns) if any(name in c.figures for c in compared)]
    usual = usual_threat(snapshot.columns)
    rows = [_row(snapshot, c, names) for c in compared]
    with_gains = [row for row in rows if any(cell["published_gain"] != ABSENT for cell in row["cells"])]
    return {
        "source": published_in(snapshot.sweep.document),
        "caption": CAPTION,
        "gains_caption": GAINS,
        "titles": ["clean" if name == CLEAN else columns[name].title(usual) for name in names],
        "rows": rows,
        "gains": with_gains,
    }


def public_published(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return what the export shows; None if no finished trial has a published row."""
    compared = compare_published(snapshot)
    if not compared:
        return None
    trials = [
        {"number": c.trial.number, "method": c.trial.label, "figures": {n: _public(f) for n, f in c.figures.items()}}
        for c in compared
    ]
    return {"source": published_in(snapshot.sweep.document), "trials": trials}


def _row(snapshot: Snapshot, compared: Comparison, names: list[str]) -> dict[str, Any]:
    trial = compared.trial
    return {
        "number": trial.number,
        "method": trial.label,
        "colour": snapshot.colours[trial.label],
        "searched": searched(trial, snapshot.short_names),
        "cells": [_cell(compared.figures.get(name)) for name in names],
    }


def _cell(found: Beside | None) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(("published", "ours", "difference", "published_gain", "gain"), ABSENT) | {"bound": False}
    span = "" if found.interval is None else f" [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
    return {
        "published": f"{found.published:.4f}",
        "ours": ABSENT if found.ours is None else bounded(found.ours, found.exact) + span,
        "difference": ABSENT if found.difference is None else str(found.difference),
        "published_gain": ABSENT if found.published_gain is None else f"{found.published_gain:+.4f}",
        "gain": ABSENT if found.gain is None else str(found.gain),
        "bound": found.ours is not None and not found.exact,
    }


def _public(found: Beside) -> dict[str, Any]:
    low, high = found.interval or (None, None)
    return {
        "published": found.published,
        "ours": found.ours,
        "exact": found.exact,
        "low": low,
        "high": high,
        "difference": found.difference and found.difference.public(),
        "published_gain": found.published_gain,
        "gain": found.gain and found.gain.public(),
    }
