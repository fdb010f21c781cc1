"""The report's figures of accuracies and of their growth, as the plain data that plotly.js draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sweeps.convergence import hypervolume_steps
from sweeps.records import TrialRecord
from sweeps.report_rows import cell_texts, titles
from sweeps.snapshot import Snapshot, accuracy, exactness, searched
from sweeps.summary import objective_values, robust_interval

INK, GRID = "#3b4252", "#e6e9ef"


def front_figure(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return plotly's data and layout, one colour per method; None while no trial has its values.

    Exact points are filled and bounds hollow; members of the front are large, with their 95 % interval, and joined by
    the border of what they dominate. A thin line in its colour is the own front of each method, of several; dotted
    where it has bounds. Without robust accuracies the clean one goes against the trial's number.
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
    layout, own = layout_of(across, snapshot.vertical), _own_fronts(snapshot) if both else []
    if own:
        layout["updatemenus"] = [_switch("fronts of the methods", range(len(own)))]
        layout["margin"] = {**layout["margin"], "t": 44}
    return {"data": [*own, *traces], "layout": layout}


def hypervolume_figure(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return plotly's data and layout of the hypervolume over trials and over hours; None with fewer than three."""
    steps = hypervolume_steps(snapshot.trials, snapshot.sweep.objectives, snapshot.seconds)
    if len(steps) < 3 or len(snapshot.sweep.objectives) < 2:
        return None
    y = [step.hypervolume for step in steps]
    line = {"type": "scatter", "mode": "lines", "y": y, "line": {"shape": "hv", "color": INK}, "showlegend": False}
    over_trials = {**line, "x": [step.trials for step in steps], "name": "trials"}
    over_cost = {**line, "x": [step.seconds / 3600 for step in steps], "name": "hours", "xaxis": "x2", "yaxis": "y2"}
    layout = layout_of("clean", "robust_acc")
    axis = {name: value for name, value in layout["xaxis"].items() if name != "title"}
    names = {"xaxis": "trials that have ended", "xaxis2": "hours of training and attacks", "yaxis": "hypervolume"}
    axes = {name: {**axis, "title": {"text": text}} for name, text in names.items()}
    axes["xaxis"]["domain"], axes["xaxis2"]["domain"] = [0, 0.47], [0.53, 1]
    axes["yaxis2"] = {**axis, "anchor": "x2", "matches": "y"}
    axes["yaxis"]["rangemode"] = "tozero"
    return {"data": [over_trials, over_cost], "layout": {**layout, **axes, "height": 300}}


def _own_fronts(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The staircase of each method's own front; none for a sweep of one method."""
    if len(snapshot.by_method) < 2:
        return []
    by_number, up = {t.number: t for t in snapshot.trials}, snapshot.vertical
    traces = []
    for row in snapshot.by_method:
        members = [by_number[n] for n in reversed(row.front) if by_number[n].value(up) is not None]
        dash = "solid" if row.exact else "dot"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"front of {row.label}",
                "legendgroup": row.label,
                "showlegend": False,
                "x": [t.clean_acc for t in members],
                "y": [t.value(up) for t in members],
                "line": {"shape": "vh", "color": snapshot.colours[row.label], "width": 1.2, "dash": dash},
                "opacity": 0.7,
                "hoverinfo": "skip",
            }
        )
    return traces


def _switch(name: str, traces: Iterable[int]) -> dict[str, Any]:
    """A button that switches traces off and on again."""
    places = list(traces)
    button = {"label": name, "method": "restyle"}
    states = {"args": [{"visible": False}, places], "args2": [{"visible": True}, places]}
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 6}}
    look = {"bgcolor": "#fff", "bordercolor": GRID, "font": {"size": 12}}
    return {"type": "buttons", "showactive": False, "buttons": [{**button, **states}], **place, **look}


def _points(
    snapshot: Snapshot, trials: Sequence[TrialRecord], across: str, colour: str, marker: dict[str, Any]
) -> dict[str, Any]:
    short, heads = snapshot.short_names, [escape(title) for title in titles(snapshot)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [t.number if across == "number" else t.clean_acc for t in trials],
        "y": [t.clean_acc if across == "number" else t.value(snapshot.vertical) for t in trials],
        "marker": {"color": colour, **marker},
        "customdata": [t.number for t in trials],
        "hovertext": [_hover(snapshot, t, searched(t, short), heads) for t in trials],
        "hoverinfo": "text",
    }
    return trace


def _hover(snapshot: Snapshot, trial: TrialRecord, drawn: str, heads: Sequence[str]) -> str:
    lines = [f"<b>trial {trial.number}</b> · {escape(trial.label)}", escape(drawn).replace(" ", "<br>")]
    lines += [f"clean {accuracy(trial.clean_acc)}", f"robust {snapshot.robust(trial)} {exactness(trial)}"]
    if trial.feature_cosine is not None:
        lines.append(f"feature cosine under attack {accuracy(trial.feature_cosine)}")
    if trial.test_robust_acc is not None:
        lines.append(f"test: clean {accuracy(trial.test_clean_acc)}, robust {snapshot.test_robust(trial)}")
    for head, cell in zip(heads, snapshot.cells(trial), strict=True):
        told = cell_texts(cell)
        if cell.interval is not None:
            lines.append(f"<i>{head}</i> {told['text']} {'exact' if cell.exact else 'bound'}")
        elif cell.trouble:
            lines.append(f"<i>{head}</i> {cell.trouble}")
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


def layout_of(across: str, up: str) -> dict[str, Any]:
    """Return the look that the report's figures share. Args: across: "clean" or "number"; up: an objective."""
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
