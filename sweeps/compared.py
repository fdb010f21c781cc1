"""Two trials side by side: what differs in their configurations, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from sweeps.records import TrialRecord
from sweeps.snapshot import ABSENT, Snapshot, accuracy, duration, flatten, number

ONLY = ("methods",)
"""Sections of which one trial may have parts that the other has not: they are named before their fields."""


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (dotted name, in A, in B) of what differs between two configurations, in A's order and then in B's.

    A method that only one has is one row of its own before those of its fields.

    differing({"methods": {"plain": {}}}, {"methods": {}})  # [("methods.plain", "yes", "–")]
    """
    rows = [(name, _yes(name, a), _yes(name, b)) for name in _only_one(a, b)]
    mine, theirs = flatten(a), flatten(b)
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        one, other = mine.get(name, ABSENT), theirs.get(name, ABSENT)
        if one != other or isinstance(one, bool) != isinstance(other, bool):
            rows.append((name, _shown(one, name in mine), _shown(other, name in theirs)))
    return rows


def _only_one(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    found = []
    for section in ONLY:
        mine, theirs = a.get(section) or {}, b.get(section) or {}
        found += [f"{section}.{name}" for name in [*mine, *theirs] if (name in mine) != (name in theirs)]
    return found


def _yes(name: str, config: Mapping[str, Any]) -> str:
    section, _, part = name.partition(".")
    return "yes" if part in (config.get(section) or {}) else ABSENT


def _shown(value: Any, there: bool) -> str:
    if not there:
        return ABSENT
    return json.dumps(value) if value is None or isinstance(value, bool) else number(value)


def configuration_table(a: TrialRecord, b: TrialRecord) -> Table:
    """Return what differs between two trials' configurations, one value a row; their seeds come last."""
    table = _table("What differs", a, b)
    rows = [*differing(a.config, b.config), *([("seed", str(a.seed), str(b.seed))] if a.seed != b.seed else [])]
    for row in rows:
        table.add_row(*row)
    if not rows:
        table.add_row("nothing: same configuration, same seed", "", "")
    elif len(rows) == 1 and rows[0][0] == "seed":
        table.add_row("nothing else: they are replicates", "", "")
    return table


def outcome_table(snapshot: Snapshot, a: TrialRecord, b: TrialRecord) -> Table:
    """Return what two trials came to: state, both objectives, epochs, and the seconds of training and attacks."""
    table = _table("What became of them", a, b)

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    row("state", str(a.state), str(b.state))
    row("clean accuracy", accuracy(a.clean_acc), accuracy(b.clean_acc))
    row("robust accuracy [95 %]", snapshot.robust(a), snapshot.robust(b))
    if snapshot.has_cosines:
        row("feature cosine", accuracy(a.feature_cosine), accuracy(b.feature_cosine))
    if a.test_clean_acc is not None or b.test_clean_acc is not None:
        row("test clean accuracy", accuracy(a.test_clean_acc), accuracy(b.test_clean_acc))
        row("test robust accuracy", snapshot.test_robust(a), snapshot.test_robust(b))
    for column, mine, theirs in zip(snapshot.columns, snapshot.cells(a), snapshot.cells(b), strict=True):
        if (mine.verdicts is None) != (theirs.verdicts is None):  # what both have is compared image by image
            row(column.key, mine.figure or ABSENT, theirs.figure or ABSENT)
    row("epochs", str(a.epochs), str(b.epochs))
    row("training", duration(a.train_seconds), duration(b.train_seconds))
    attacks = snapshot.attack_seconds
    row("attacks", duration(attacks[a.number]), duration(attacks[b.number]))
    return table


def _table(title: str, a: TrialRecord, b: TrialRecord) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold", max_width=44)
    for trial in (a, b):
        table.add_column(Text(f"{trial.number} {trial.label}"), overflow="fold", max_width=26)
    return table
