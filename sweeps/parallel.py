"""Parallel coordinates: one line per trial of a method through its parameters to its accuracies; data for plotly.

Drawn with scatter lines, which are SVG: plotly's own `parcoords` needs WebGL, which a browser may lack, and leaves
nothing on the page then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sweeps.records import TrialRecord
from sweeps.snapshot import Snapshot, number
from sweeps.summary import objective_values

INK, GRID = "#3b4252", "#e6e9ef"
SCALE = ("#440154", "#414487", "#2a788e", "#22a884", "#63b83f", "#b3a800")
"""Viridis in six steps, its light end darkened, which does not show on white."""
NAMES = {"clean_acc": "clean", "robust_acc": "robust", "feature_cosine": "cosine"}
STYLES: Mapping[str, Mapping[str, Any]] = {
    "bound": {"width": 1.2, "dash": "dot"},
    "exact": {"width": 1.8},
    "front": {"width": 3.5},
}
MANY = 60
"""Lines from which on all but the front are drawn faintly."""


@dataclass(frozen=True)
class Axis:
    """One axis: what stands at it and where."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()
    """Of a categorical parameter, from the bottom; empty for numbers."""

    def place(self, value: Any) -> float:
        """Return the height of a value, 0 at the bottom and 1 at the top."""
        if self.choices:
            at = self.choices.index(choice_text(value))
            return 0.5 if len(self.choices) == 1 else at / (len(self.choices) - 1)
        if self.high <= self.low:
            return 0.5
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        return (here - low) / (high - low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return (height, text) of the labels."""
        if self.choices:
            return [(self.place(choice), choice) for choice in self.choices]
        values = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return [(self.place(value), number(value)) for value in values]


def choice_text(value: object) -> str:
    """Write a choice as its label."""
    return value if isinstance(value, str) else number(value)


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round values in [low, high], or its ends."""
    step = 10 ** math.floor(math.log10((high - low) / 2)) if high > low else 1.0
    step = next((step * times for times in (1, 2, 5, 10) if (high - low) / (step * times) < 6), step)
    values = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [float(f"{value:.9g}") for value in values] if len(values) > 1 else sorted({low, high})


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten in [low, high]; with fewer than three of them 2 and 5 times these too, or the ends."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        values = [float(f"{f}e{d}") for d in decades for f in factors]
        inside = [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(inside) > 2:
            return inside
    return inside if len(inside) > 1 else sorted({low, high})


def parameter_axis(name: str, domains: Sequence[str]) -> Axis:
    """Return the axis that covers every domain a parameter ever had. Args: domains: Optuna's JSON."""
    found = [json.loads(text)["attributes"] for text in dict.fromkeys(domains)]
    if "choices" in found[0]:
        return Axis(name, choices=tuple(dict.fromkeys(choice_text(c) for d in found for c in d["choices"])))
    low, high = min(d["low"] for d in found), max(d["high"] for d in found)
    return Axis(name, low, high, all(d["log"] for d in found) and low > 0)


def figures_by_method(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Return plotly's data and layout by method: those that searched something and have two finished trials."""
    objectives, figures = snapshot.sweep.objectives, {}
    for label in snapshot.colours:
        mine = [t for t in snapshot.trials if t.label == label and objective_values(t, objectives) is not None]
        names = dict.fromkeys(name for t in mine for name, value in t.params.items() if value != label)
        if len(mine) > 1 and names:
            figures[label] = _figure(snapshot, mine, list(names))
    return figures


def axes_in(figure: Mapping[str, Any]) -> int:
    """Return how many axes a figure of `figures_by_method` has; a page gives each its room."""
    return len(figure["layout"]["xaxis"]["tickvals"])


def _figure(snapshot: Snapshot, trials: Sequence[TrialRecord], names: Sequence[str]) -> dict[str, Any]:
    axes = {name: _axis(snapshot, trials, name) for name in names}
    objectives = snapshot.sweep.objectives
    accuracies = {o: _objective_axis(o, [t.value(o) or 0.0 for t in trials]) for o in objectives}
    steered = snapshot.vertical if snapshot.vertical in objectives else objectives[-1]
    colour_of = accuracies[steered]
    strokes: dict[tuple[str, int], list[TrialRecord]] = {}
    for trial in sorted(trials, key=lambda t: t.value(steered) or 0.0):
        step = min(int(colour_of.place(trial.value(steered)) * len(SCALE)), len(SCALE) - 1)
        strokes.setdefault((_kind(snapshot, trial), step), []).append(trial)
    order = sorted(strokes, key=lambda key: (list(STYLES).index(key[0]), key[1]))
    faint = 0.35 if len(trials) > MANY else 1
    traces = [_stroke(strokes[key], axes, accuracies, *key, 1 if key[0] == "front" else faint) for key in order]
    return {"data": [*traces, _colour_bar(colour_of)], "layout": _layout([*axes.values(), *accuracies.values()])}


def _axis(snapshot: Snapshot, trials: Sequence[TrialRecord], name: str) -> Axis:
    short = snapshot.short_names.get(name, name)
    return parameter_axis(short, [t.distributions[name] for t in trials if name in t.distributions])


def _objective_axis(objective: str, values: Sequence[float]) -> Axis:
    return Axis(NAMES[objective], min(values), max(values))


def _kind(snapshot: Snapshot, trial: TrialRecord) -> str:
    return "front" if trial.number in snapshot.on_front else "exact" if trial.exact else "bound"


def _stroke(
    trials: Sequence[TrialRecord],
    axes: Mapping[str, Axis],
    accuracies: Mapping[str, Axis],
    kind: str,
    step: int,
    opacity: float,
) -> dict[str, Any]:
    """Return one trace for all trials of a colour and kind, their lines parted by gaps."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for trial in trials:
        heights = [axes[n].place(trial.params[n]) if n in trial.params else None for n in axes]
        heights += [axis.place(trial.value(o)) for o, axis in accuracies.items()]
        x += [*range(len(heights)), None]
        y += [*(None if h is None else round(h, 4) for h in heights), None]
        numbers += [*[trial.number] * len(heights), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "customdata": numbers,
        "line": {"color": SCALE[step], **STYLES[kind]},
        "opacity": opacity,
        "hovertemplate": f"trial %{{customdata}} ({kind})<extra></extra>",
        "showlegend": False,
    }


def _colour_bar(axis: Axis) -> dict[str, Any]:
    """Return a trace that shows nothing but the meaning of the colours."""
    steps = [(i / len(SCALE), colour) for i, colour in enumerate(SCALE)]
    scale = [[edge, colour] for at, colour in steps for edge in (at, at + 1 / len(SCALE))]
    scale[-1][0] = 1
    ends = [axis.low, axis.high if axis.high > axis.low else axis.low + 1e-3]
    bar = {"title": {"text": axis.name, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    marker = {"color": ends, "colorscale": scale, "showscale": True, "size": 0.001, "opacity": 0, "colorbar": bar}
    place = {"x": [0, 0], "y": [0, 0], "hoverinfo": "skip", "showlegend": False}
    return {"type": "scatter", "mode": "markers", **place, "marker": marker}


def _layout(axes: Sequence[Axis]) -> dict[str, Any]:
    lines = [
        {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"color": INK, "width": 1}, "layer": "below"}
        for i in range(len(axes))
    ]
    label = {"showarrow": False, "xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,0.75)", "borderpad": 1}
    texts = [
        {**label, "x": i, "y": height, "text": escape(text), "font": {"size": 11, "color": INK}}
        for i, axis in enumerate(axes)
        for height, text in axis.ticks
    ]
    across = {
        "tickvals": list(range(len(axes))),
        "ticktext": [escape(axis.name) for axis in axes],
        "side": "top",
        "range": [-0.15, len(axes) - 0.6],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    return {
        "xaxis": across,
        "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
        "shapes": lines,
        "annotations": texts,
        "plot_bgcolor": "#fff",
        "paper_bgcolor": "#fff",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 24, "r": 16, "t": 36, "b": 16},
        "hovermode": "closest",
        "height": 360,
    }
