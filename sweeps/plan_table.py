"""The figures of one plan on some trials, for the terminal."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table

from sweeps.columns import usual_threat
from sweeps.snapshot import ABSENT, Snapshot, accuracy


def plan_table(snapshot: Snapshot, plan: str, numbers: Collection[int]) -> Table:
    """Return a row for each trial and a column for each attack, its 95 % interval below."""
    columns = [(i, column) for i, column in enumerate(snapshot.columns) if column.plan == plan]
    table = Table(title=f"Plan {plan}", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("", justify="right")
    table.add_column("method", overflow="fold", min_width=8)
    table.add_column("clean", justify="right")
    usual = usual_threat(snapshot.columns)
    for _, column in columns:
        table.add_column(column.title(usual).replace(f"{plan}: ", ""), justify="right")
    for trial in (t for t in snapshot.trials if t.number in numbers):
        cells = snapshot.cells(trial)
        shown = []
        for place, _ in columns:
            cell = cells[place]
            interval = cell.interval
            below = "" if interval is None else f"\n[{interval[0]:.3f}, {interval[1]:.3f}]"
            shown.append((cell.figure or ABSENT) + below)
        table.add_row(str(trial.number), trial.label, accuracy(trial.clean_acc), *shown)
    return table
