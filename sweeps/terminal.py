"""What the terminal shows at the end of a sweep: the front as a short table and as a small picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase

from rich.style import Style
from rich.table import Table
from rich.text import Text

from sweeps.records import TrialRecord
from sweeps.snapshot import Snapshot, accuracy, exactness, searched, spread
from sweeps.summary import objective_values

Point = tuple[float, float, TrialRecord]


def front_table(snapshot: Snapshot) -> Table:
    """Return the front, one row per trial, by falling clean accuracy; "!" marks trials with flags."""
    return trials_table(snapshot, snapshot.front, _title(snapshot))


def trials_table(snapshot: Snapshot, trials: Sequence[TrialRecord], title: str) -> Table:
    """Return some trials, one row each, in their order; "!" marks those with flags."""
    short, colours = snapshot.short_names, snapshot.colours
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("", justify="right")
    table.add_column("method", overflow="fold", min_width=8)
    table.add_column("searched", min_width=18, overflow="fold")
    cosine = ("cosine",) if snapshot.has_cosines else ()
    for name in ("clean", *cosine, "robust [95 %]", "", "test\nclean", "test\nrobust"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for trial in trials:
        table.add_row(
            f"{'! ' if trial.number in snapshot.flags else ''}{trial.number}",
            Text(trial.label, colours[trial.label]),
            searched(trial, short),
            accuracy(trial.clean_acc),
            *((accuracy(trial.feature_cosine),) if cosine else ()),
            snapshot.robust(trial),
            exactness(trial),
            accuracy(trial.test_clean_acc),
            snapshot.test_robust(trial),
        )
    table.caption, table.caption_justify = _caption(snapshot, trials), "left"
    return table


def _caption(snapshot: Snapshot, trials: Sequence[TrialRecord]) -> str | None:
    if not any(trial.number in snapshot.flags for trial in trials):
        return None
    return "! The robustness of these trials may be an attack's failure: see Warnings and flags in the report."


def replicates_table(snapshot: Snapshot) -> Table | None:
    """Return mean ± standard deviation of the configurations that were trained more than once; None without any."""
    if not snapshot.replicates:
        return None
    title = "Replicates: mean ± standard deviation over seeds (validation)"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold", min_width=8)
    table.add_column("searched", min_width=18, overflow="fold")
    for name in ("n", "clean", "robust", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for found in snapshot.replicates:
        first = found.trials[0]
        table.add_row(
            Text(first.label, snapshot.colours[first.label]),
            searched(first, snapshot.short_names),
            str(found.count),
            spread(found.spread("clean_acc")),
            spread(found.spread("robust_acc"), found.exact),
            exactness(found),
        )
    return table


def _title(snapshot: Snapshot) -> str:
    count = len(snapshot.front)
    if not count:
        return "The front is empty: no trial has all its values yet."
    settled = "" if snapshot.is_settled() else ", not settled yet: attacks that are still to run may change it"
    return f"Pareto front: {count} trial{'s' * (count != 1)} (validation{settled})"


def front_scatter(snapshot: Snapshot, width: int = 60, height: int = 16) -> Text:
    """Return clean against robust accuracy as text, width × height characters within the axes; empty without a point.

    Every method has a letter: a bold capital on the front, a small one elsewhere, dim where robust is only a bound.
    """
    across, up, points = _points(snapshot)
    if not points:
        return Text()
    colours = snapshot.colours
    letters, first = choose_letters(list(colours)), snapshot.on_front
    xs, ys = _limits([x for x, _, _ in points]), _limits([y for _, y, _ in points])
    cells: dict[tuple[int, int], tuple[str, Style]] = {}
    for x, y, trial in sorted(
        points, key=lambda p: (p[2].number in snapshot.on_front, p[2].exact)
    ):  # the front is drawn last
        letter, leads = letters[trial.label], trial.number in first
        style = Style(color=colours[trial.label], bold=leads, dim=not trial.exact)
        cells[_scale(y, ys, height), _scale(x, xs, width)] = letter.upper() if leads else letter, style
    picture = Text(f"{up}\n") + _rows(cells, ys, width, height) + _axis(xs, width)
    picture.append(f"{' ' * 8}{across} →   ")
    for label, letter in letters.items():
        picture.append(letter.upper(), Style(color=colours[label], bold=True)).append(f" {label}   ")
    return picture.append("capital: on the front" + (", dim: bound" if not all(t.exact for _, _, t in points) else ""))


def _points(snapshot: Snapshot) -> tuple[str, str, list[Point]]:
    """Name the axes and list the finished trials; a sweep without robust accuracies goes against the trial's number."""
    valued = [t for t in snapshot.trials if objective_values(t, snapshot.sweep.objectives)]
    up = snapshot.vertical
    both = [(t.clean_acc, y, t) for t in valued if t.clean_acc is not None and (y := t.value(up)) is not None]
    if both:
        return "clean", up.removesuffix("_acc").replace("_", " "), both
    return "trial", "clean", [(float(t.number), t.clean_acc, t) for t in valued if t.clean_acc is not None]


def choose_letters(labels: Sequence[str]) -> dict[str, str]:
    """Return a small letter per method, its first one that is free: ["msvp", "max"] → {"msvp": "m", "max": "a"}."""
    taken: dict[str, str] = {}
    for label in labels:
        wanted = [c for c in label.lower() + ascii_lowercase if c in ascii_lowercase]
        taken[label] = next((c for c in wanted if c not in taken.values()), "?")
    return taken


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def _scale(value: float, limits: tuple[float, float], cells: int) -> int:
    return round((value - limits[0]) / (limits[1] - limits[0]) * (cells - 1))


def _rows(
    cells: Mapping[tuple[int, int], tuple[str, Style]], limits: tuple[float, float], width: int, height: int
) -> Text:
    """Lay the cells out from the highest row down, every fifth row with its value."""
    rows = Text()
    for row in reversed(range(height)):
        value = limits[0] + (limits[1] - limits[0]) * row / (height - 1)
        rows.append(f"{value:6.3f} ┤" if row % 5 == 0 else " " * 7 + "│")
        for column in range(width):
            rows.append(*cells.get((row, column), (" ", None)))
        rows.rstrip()
        rows.append("\n")
    return rows


def _axis(limits: tuple[float, float], width: int) -> Text:
    low, middle, high = (f"{value:.3g}" for value in (limits[0], sum(limits) / 2, limits[1]))
    numbers = f"{low}{middle.center(width - len(low) - len(high))}{high}"
    return Text(f"{' ' * 7}└{'─' * width}\n{' ' * 8}{numbers}\n")
