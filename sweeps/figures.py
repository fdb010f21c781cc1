"""The report's figure: clean against robust accuracy, as the plain data that plotly.js draws."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from sweeps.convergence import hypervolume_steps
from sweeps.records import TrialRecord
from sweeps.snapshot import Snapshot, accuracy, exactness, searched
from sweeps.summary import objective_values, robust_interval

INK, GRID = "#3b4252", "#e6e9ef"


def front_figure(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return plotly's data and layout, one colour per method; None while no trial has its values.

    Exact points are filled and bounds hollow; members of the front are large, with their 95 % interval, and joined by
    the border of what they dominate. Without robust accuracies the clean one goes against the trial's number.
    """
    shown = [t for t in snapshot.trials if objective_values(t, snapshot.sweep.objectives) is not None]
    both = [t for t in shown if t.value(snapshot.vertical) is not None and t.clean_acc is not None]
    across = "clean" if both else "number"
    trials = both or [t for t in shown if t.clean_acc is not None]
    if not trials:
        return None
    traces = [_border(snapshot)] if both and len(snapshot.front) > 1 else []
    for label, colour in snapshot.colours.items():
        of_method = [t for t in trials if t.label == label]
        first = [t for t in of_method if t.number in snapshot.on_front]
        kinds = (
            ("bound", [t for t in of_method if not t.exact], {"size": 8, "symbol": "circle-open"}),
            ("exact", [t for t in of_method if t.exact and t not in first], {"size": 8, "opacity": 0.65}),
            ("front", first, {"size": 15, "line": {"width": 2, "color": "#fff"}}),
        )
        named = next((kind for kind, members, _ in reversed(kinds) if members), None)
        for kind, members, marker in kinds:
            if members:
                trace = _points(snapshot, members, across, colour, marker)
                trace |= {"name": label, "legendgroup": label, "showlegend": kind == named}
                traces.append(trace)
    return {"data": traces, "layout": _layout(across, snapshot.vertical)}


def hypervolume_figure(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return plotly's data and layout of the hypervolume over trials and over hours; None with fewer than three."""
    steps = hypervolume_steps(snapshot.trials, snapshot.sweep.objectives, snapshot.seconds)
    if len(steps) < 3 or len(snapshot.sweep.objectives) < 2:
        return None
    y = [step.hypervolume for step in steps]
    line = {"type": "scatter", "mode": "lines", "y": y, "line": {"shape": "hv", "color": INK}, "showlegend": False}
    over_trials = {**line, "x": [step.trials for step in steps], "name": "trials"}
    over_cost = {**line, "x": [step.seconds / 3600 for step in steps], "name": "hours", "xaxis": "x2", "yaxis": "y2"}
    layout = _layout("clean", "robust_acc")
    axis = {name: value for name, value in layout["xaxis"].items() if name != "title"}
    names = {"xaxis": "trials that have ended", "xaxis2": "hours of training and attacks", "yaxis": "hypervolume"}
    axes = {name: {**axis, "title": {"text": text}} for name, text in names.items()}
    axes["xaxis"]["domain"], axes["xaxis2"]["domain"] = [0, 0.47], [0.53, 1]
    axes["yaxis2"] = {**axis, "anchor": "x2", "matches": "y"}
    axes["yaxis"]["rangemode"] = "tozero"
    return {"data": [over_trials, over_cost], "layout": {**layout, **axes, "height": 300}}


def _points(
    snapshot: Snapshot, trials: Sequence[TrialRecord], across: str, colour: str, marker: dict[str, Any]
) -> dict[str, Any]:
    short = snapshot.short_names
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [t.number if across == "number" else t.clean_acc for t in trials],
        "y": [t.clean_acc if across == "number" else t.value(snapshot.vertical) for t in trials],
        "marker": {"color": colour, **marker},
        "customdata": [t.number for t in trials],
        "hovertext": [_hover(snapshot, t, searched(t, short)) for t in trials],
        "hoverinfo": "text",
    }
    return trace


def _hover(snapshot: Snapshot, trial: TrialRecord, drawn: str) -> str:
    lines = [f"<b>trial {trial.number}</b> · {escape(trial.label)}", escape(drawn).replace(" ", "<br>")]
    lines += [f"clean {accuracy(trial.clean_acc)}", f"robust {snapshot.robust(trial)} {exactness(trial)}"]
    if trial.feature_cosine is not None:
        lines.append(f"feature cosine under attack {accuracy(trial.feature_cosine)}")
    if trial.test_robust_acc is not None:
        lines.append(f"test: clean {accuracy(trial.test_clean_acc)}, robust {snapshot.test_robust(trial)}")
    return "<br>".join(lines)


def _border(snapshot: Snapshot) -> dict[str, Any]:
    """The staircase under which everything is dominated, with the interval of each member of the front."""
    up = snapshot.vertical
    members = [t for t in reversed(snapshot.front) if t.value(up) is not None]
    values = [t.value(up) or 0.0 for t in members]
    found = [robust_interval(snapshot.stages_of(t), t.number) if up == "robust_acc" else None for t in members]
    spans = [span or (value, value) for span, value in zip(found, values, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [t.clean_acc for t in members],
        "y": values,
        "line": {"shape": "vh", "color": INK, "width": 1.5},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [(high or 0.0) - value for (_, high), value in zip(spans, values, strict=True)],
            "arrayminus": [value - (low or 0.0) for (low, _), value in zip(spans, values, strict=True)],
            "color": INK,
            "thickness": 0.8,
            "width": 3,
        },
        "hoverinfo": "skip",
    }


def _layout(across: str, up: str) -> dict[str, Any]:
    upwards = {"robust_acc": "robust accuracy", "feature_cosine": "feature cosine under attack"}[up]
    titles = ("clean accuracy (validation)", f"{upwards} (validation)")
    names = titles if across == "clean" else ("trial", titles[0])
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": INK, "ticks": "outside", "tickcolor": GRID}
    return {
        "xaxis": {**axis, "title": {"text": names[0]}},
        "yaxis": {**axis, "title": {"text": names[1]}},
        "plot_bgcolor": "#fff",
        "paper_bgcolor": "#fff",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 64, "r": 16, "t": 16, "b": 52},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.16},
        "height": 560,
    }
