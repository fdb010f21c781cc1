"""Figures for a paper: the front, the hypervolume and what decides it, one column wide, as PDF and PNG.

Equal ledgers give equal bytes: no date is written into the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.errors import SweepError
from sweeps.choosing import knee_of
from sweeps.convergence import hypervolume_steps
from sweeps.importances import CHANCE, Importances, importances
from sweeps.records import TrialRecord
from sweeps.snapshot import Snapshot
from sweeps.summary import objective_values, robust_interval, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["pdf", "png"]
FORMATS: tuple[Format, ...] = ("pdf", "png")
COLUMN = 3.3
"""Width of a figure in inches: one column of a two-column page."""
DPI = 300
MARKERS = "os^DvPX<>*hdp8"
"""Of the methods, in the order of their colours."""
INK = "#3b4252"
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ef",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handletextpad": 0.3,
    "legend.columnspacing": 1.0,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.02,
    "pdf.fonttype": 42,  # TrueType: what publishers ask for
}
"""Settings of matplotlib; their names are a type of its own, which is not worth repeating."""
UNDATED: Mapping[Format, dict[str, None]] = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
OBJECTIVES = {
    "clean_acc": "clean accuracy",
    "robust_acc": "robust accuracy",
    "feature_cosine": "feature cosine under attack",
}


def write_figures(snapshot: Snapshot, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw what the sweep has enough trials for, each file whole or not at all, and return the paths.

    Raises: SweepError if not even a front can be drawn, or on a format that is none.
    """
    strange = [name for name in formats if name not in FORMATS]
    if strange or not formats:
        raise SweepError(f"--format: allowed are {' and '.join(FORMATS)}; found {', '.join(strange) or 'none'}.")
    import matplotlib

    figures = list(_figures(snapshot))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader's own settings say
        matplotlib.rcParams.update(STYLE)
        for name, draw in figures:
            figure = draw()
            written += [_write(figure, folder / f"{name}.{kind}", kind) for kind in FORMATS if kind in formats]
    return written


def _figures(snapshot: Snapshot) -> Iterator[tuple[str, Callable[[], Figure]]]:
    trials = _measured(snapshot)
    if not trials:
        raise SweepError(f"{snapshot.sweep.name}: no finished trial has both accuracies yet; there is nothing to draw.")
    yield "front", lambda: draw_front(snapshot)
    if len(snapshot.sweep.objectives) > 1 and len(trials) > 2:
        yield "hypervolume", lambda: draw_hypervolume(snapshot)
    decided = importances(snapshot)
    if decided:
        yield "importances", lambda: draw_importances(decided)


def _measured(snapshot: Snapshot) -> list[TrialRecord]:
    """Return the finished trials that have a place in the picture."""
    ended = [t for t in snapshot.trials if objective_values(t, snapshot.sweep.objectives) is not None]
    return [t for t in ended if t.clean_acc is not None and t.value(snapshot.vertical) is not None]


def draw_front(snapshot: Snapshot) -> Figure:
    """Return clean against robust accuracy: a colour and a marker for each method, bounds hollow, the front with its
    95 % intervals and the border of what it dominates, a ring around the knee."""
    figure = _canvas(2.6)
    axes = figure.add_subplot()
    trials, upwards = _measured(snapshot), snapshot.vertical
    members = sorted((t for t in trials if t.number in snapshot.on_front), key=lambda t: t.clean_acc or 0.0)
    values = [t.value(upwards) or 0.0 for t in members]
    axes.step([t.clean_acc or 0.0 for t in members], values, where="pre", color=INK, linewidth=0.8, zorder=2)
    _intervals(axes, snapshot, members)
    for place, (label, colour) in enumerate(snapshot.colours.items()):
        mine = [t for t in trials if t.label == label]
        if mine:
            _points(axes, snapshot, mine, colour, MARKERS[place % len(MARKERS)])
            axes.scatter([], [], s=18, marker=MARKERS[place % len(MARKERS)], color=colour, label=label)
    if any(_is_bound(snapshot, t) for t in trials):
        axes.scatter([], [], s=16, facecolors="none", edgecolors=INK, linewidths=0.8, label="upper bound")
    _ring(axes, knee_of(snapshot), upwards)
    axes.set_xlabel(f"{OBJECTIVES['clean_acc']} (validation)")
    axes.set_ylabel(f"{OBJECTIVES[upwards]} (validation)")
    _legend_above(axes, columns=3)
    return figure


def _points(axes: Axes, snapshot: Snapshot, trials: Iterable[TrialRecord], colour: str, marker: str) -> None:
    """Draw the trials of a method: bounds hollow, members of the front large, the others small and lighter."""
    looks: dict[str, list[TrialRecord]] = {"bound": [], "exact": [], "front": []}
    for trial in trials:
        kind = "front" if trial.number in snapshot.on_front else "bound" if _is_bound(snapshot, trial) else "exact"
        looks[kind].append(trial)
    style: Mapping[str, dict[str, Any]] = {
        "bound": {"s": 13, "facecolors": "none", "edgecolors": colour},
        "exact": {"s": 13, "color": colour, "alpha": 0.6},
        "front": {"s": 30, "color": colour},
    }
    for kind, chosen in looks.items():
        x, y = [t.clean_acc or 0.0 for t in chosen], [t.value(snapshot.vertical) or 0.0 for t in chosen]
        axes.scatter(x, y, marker=marker, linewidths=0.8, zorder=3, **style[kind])


def _is_bound(snapshot: Snapshot, trial: TrialRecord) -> bool:
    return snapshot.vertical == "robust_acc" and not trial.exact


def _intervals(axes: Axes, snapshot: Snapshot, members: Iterable[TrialRecord]) -> None:
    """Draw the 95 % intervals (Wilson) of clean and robust accuracy, as far as the numbers of images are known."""
    images = snapshot.sweep.split_sizes.get("validation")
    style: dict[str, Any] = {"color": INK, "linewidth": 0.5, "alpha": 0.5, "zorder": 2}
    for trial in members:
        clean, up = trial.clean_acc or 0.0, trial.value(snapshot.vertical) or 0.0
        span = robust_interval(snapshot.stages_of(trial), trial.number) if snapshot.vertical == "robust_acc" else None
        if span is not None:
            axes.plot([clean, clean], span, **style)
        if images:
            axes.plot(wilson(round(clean * images), images), [up, up], **style)


def _legend_above(axes: Axes, columns: int) -> None:
    """Put the legend above the data, its entries row by row; matplotlib itself fills columns."""
    handles, labels = axes.get_legend_handles_labels()
    order = [place for column in range(columns) for place in range(column, len(labels), columns)]
    chosen = [handles[place] for place in order], [labels[place] for place in order]
    axes.legend(*chosen, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2)


def _ring(axes: Axes, knee: TrialRecord | None, upwards: str) -> None:
    if knee is None or knee.value(upwards) is None:
        return
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 0.8, "zorder": 4}
    axes.scatter([knee.clean_acc or 0.0], [knee.value(upwards) or 0.0], s=90, **ring)
    axes.scatter([], [], s=50, label="knee", **ring)


def draw_hypervolume(snapshot: Snapshot) -> Figure:
    """Return the hypervolume of the front, from the origin, over the trials that have ended and over their hours."""
    steps = hypervolume_steps(snapshot.trials, snapshot.sweep.objectives, snapshot.seconds)
    figure = _canvas(1.7)
    left, right = figure.subplots(1, 2, sharey=True)
    heights = [step.hypervolume for step in steps]
    left.step([step.trials for step in steps], heights, where="post", color=INK, linewidth=1)
    right.step([step.seconds / 3600 for step in steps], heights, where="post", color=INK, linewidth=1)
    left.set_xlabel("ended trials")
    right.set_xlabel("hours of work")
    left.set_ylabel("hypervolume")
    left.set_ylim(bottom=0)
    return figure


def draw_importances(found: Sequence[Importances]) -> Figure:
    """Return a bar for each parameter and objective; a line marks what chance alone explains."""
    names = list(dict.fromkeys((one.label, name) for one in found for name in one.shares if name != CHANCE))
    objectives = list(dict.fromkeys(one.objective for one in found))
    figure = _canvas(0.8 + 0.19 * len(names))
    panels = figure.subplots(1, len(objectives), sharey=True, squeeze=False)[0]
    for axes, objective in zip(panels, objectives, strict=True):
        by_label = {one.label: one for one in found if one.objective == objective}
        for place, (label, name) in enumerate(names):
            one = by_label.get(label)
            if one is not None and name in one.shares:
                axes.barh(place, one.shares[name], height=0.6, color="#0072B2")
                axes.plot([one.chance] * 2, [place - 0.4, place + 0.4], color="#D55E00", linewidth=1)
        axes.set_xlabel(OBJECTIVES[objective])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1])
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(names)), [_named(label, name) for label, name in names])
    panels[0].invert_yaxis()
    figure.supxlabel("share of the variance explained (line: by chance)", fontsize=8, color=INK)
    return figure


def _named(label: str, name: str) -> str:
    """Return a parameter with what it was told apart from: ``k`` of jasmin, ``learning_rate`` of all."""
    return f"{label}: {name.rpartition('.')[2]}" if label else name.removeprefix("training.")


def _canvas(height: float) -> Figure:
    """Return an empty figure, without any window or global state. Args: height: in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path, kind: Format) -> Path:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format=kind, dpi=DPI, metadata=UNDATED[kind])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
