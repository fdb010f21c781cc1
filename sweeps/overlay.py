"""Several sweeps over each other: their fronts in one figure, one page that opens offline; from the ledgers alone.

The fronts are joined only if the sweeps asked the same question: same images, same attacks, same objectives. If they
did not, the page lists the differences and shows the fronts all the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from search_spaces.errors import ConfigError, Problem
from sweeps.columns import pixels
from sweeps.convergence import hypervolume_steps
from sweeps.differences import configuration_diff
from sweeps.ledger import Ledger
from sweeps.pareto import front, hypervolume
from sweeps.records import LAUNCHED, SweepRecord, TrialRecord
from sweeps.snapshot import ABSENT, PALETTE, Snapshot, accuracy, exactness, searched
from sweeps.summary import headline, objective_values, robust_interval, sweep_state

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "hexagon", "pentagon")
"""Of the methods, the same in every sweep."""
INK, GRID = "#3b4252", "#e6e9ef"
LONGEST = 200
"""Characters of a file's name that is made of sweeps' names."""
_COSTS_ONLY = ("batch_size", "keep_images", "passes", "plan")
"""Fields of a planned stage that decide no figure."""


def build_overlay(ledgers: Sequence[Ledger], storage: Path, to: Path | None = None) -> Path:
    """Write the page of several sweeps and return its path. Args: to: default: A+B.html in the storage folder."""
    snapshots = [Snapshot.read(ledger) for ledger in ledgers]
    name = "+".join(s.sweep.name for s in snapshots)
    if to is None and len(name) > LONGEST:
        message = f"the names of {len(snapshots)} sweeps are too long for a file's name; found {len(name)} characters."
        raise ConfigError([Problem((), message, "Say where with --out FILE.", "report")])
    path = storage / f"{name}.html" if to is None else to
    page = render_overlay(snapshots, [sweep_state(ledger) for ledger in ledgers])
    partial = path.with_name(f".{path.name[-LONGEST:]}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def render_overlay(snapshots: Sequence[Snapshot], states: Sequence[str]) -> str:
    """Return the page of at least two sweeps. Everything that comes from a ledger is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    differences = [line for other in snapshots[1:] for line in incomparable(snapshots[0].sweep, other.sweep)]
    joint = None if differences else joint_front(snapshots)
    figure, growth = fronts_figure(snapshots, joint), growth_figure(snapshots)
    template = Path(__file__).with_name("overlay.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(template)
        .render(
            title=" + ".join(s.sweep.name for s in snapshots),
            written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            sweeps=[
                _sweep_row(s, state, place, joint)
                for place, (s, state) in enumerate(zip(snapshots, states, strict=True))
            ],
            differences=differences,
            joint=None if joint is None else [_trial_row(snapshots[p], p, t) for p, t in joint],
            fronts=[_trial_row(s, place, t) for place, s in enumerate(snapshots) for t in s.front],
            figure=Markup(_script_json(figure)),
            growth=growth and Markup(_script_json(growth)),
            plotly_js=Markup(str(get_plotlyjs())),
        )
    )


def incomparable(one: SweepRecord, other: SweepRecord) -> list[str]:
    """Return why figures of two sweeps do not mean the same, a line each; empty if they do.

    Names, seeds of the search, models and recipes may differ: they are what is compared.
    """
    return [f"{one.name} and {other.name}: {line}" for line in dict.fromkeys(_differences(one, other))]


def _differences(one: SweepRecord, other: SweepRecord) -> Iterator[str]:
    if one.data_digest != other.data_digest:
        yield f"other images: {one.data_digest[:12]} and {other.data_digest[:12]}"
    for split in dict.fromkeys((*one.split_sizes, *other.split_sizes)):
        sizes = one.split_sizes.get(split), other.split_sizes.get(split)
        if sizes[0] != sizes[1]:
            yield f"other {split} split: {sizes[0]} and {sizes[1]} images"
    if set(one.objectives) != set(other.objectives):
        yield f"other objectives: {', '.join(one.objectives)} and {', '.join(other.objectives)}"
    mine, its = _cascade(one), _cascade(other)
    if list(mine) != list(its):
        yield f"other attacks: {', '.join(mine) or 'none'} and {', '.join(its) or 'none'}"
        return
    for label in mine:
        for line in configuration_diff(mine[label], its[label]):
            yield f"{label.partition('.')[0]}: {line}"  # the parts of an attack as one


def _cascade(sweep: SweepRecord) -> dict[str, dict[str, Any]]:
    """Return what decides robust accuracies: the launched plan's cascade on validation images, by label."""
    stages = [s for s in sweep.planned_stages if s.plan == LAUNCHED and s.split == "validation" and s.cumulative]
    found = {}
    for stage in stages:
        plain = {name: value for name, value in asdict(stage).items() if name not in _COSTS_ONLY}
        threat = {**plain["threat"], "epsilon": pixels(plain["threat"]["epsilon"])}
        found[stage.label] = {**plain, "config": dict(plain["config"]), "threat": threat}
    return found


def joint_front(snapshots: Sequence[Snapshot]) -> list[tuple[int, TrialRecord]]:
    """Return the front of all sweeps' fronts as (position of the sweep, trial), by falling first objective."""
    objectives = snapshots[0].sweep.objectives
    members = [(place, t) for place, s in enumerate(snapshots) for t in s.front]
    values = [objective_values(t, objectives) or () for _, t in members]
    chosen = sorted(front(values), key=lambda i: ([-v for v in values[i]], members[i][0], members[i][1].number))
    return [members[i] for i in chosen]


def fronts_figure(snapshots: Sequence[Snapshot], joint: Sequence[tuple[int, TrialRecord]] | None) -> dict[str, Any]:
    """Return plotly's data and layout: a colour for each sweep, a symbol for each method, bounds hollow, fronts large.

    Each front has the border of what it dominates; that of the joint one, if there is one, is dotted.
    """
    labels = list(dict.fromkeys(t.label for s in snapshots for t in s.trials))
    symbols = {label: SYMBOLS[place % len(SYMBOLS)] for place, label in enumerate(labels)}
    upwards = snapshots[0].vertical
    traces = [_border(s.front, upwards, PALETTE[p % len(PALETTE)], s.sweep.name) for p, s in enumerate(snapshots)]
    for place, snapshot in enumerate(snapshots):
        traces.append(_points(snapshot, upwards, PALETTE[place % len(PALETTE)], symbols))
    if joint is not None and len(joint) > 1:
        traces.append(_border([t for _, t in joint], upwards, INK, "joint front", dash="dot"))
    for label in labels:
        marker = {"symbol": symbols[label], "color": INK, "size": 9}
        traces.append({"type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": label, "marker": marker})
    title = {"robust_acc": "robust accuracy (validation)", "feature_cosine": "feature cosine under attack (validation)"}
    return {"data": traces, "layout": _layout("clean accuracy (validation)", title[upwards], 560)}


def growth_figure(snapshots: Sequence[Snapshot]) -> dict[str, Any] | None:
    """Return plotly's data and layout of each sweep's hypervolume over its trials; None if none has two objectives."""
    traces = []
    for place, snapshot in enumerate(snapshots):
        steps = hypervolume_steps(snapshot.trials, snapshot.sweep.objectives, snapshot.seconds)
        if len(snapshot.sweep.objectives) > 1 and steps:
            line = {"shape": "hv", "color": PALETTE[place % len(PALETTE)]}
            points = {"x": [step.trials for step in steps], "y": [step.hypervolume for step in steps]}
            traces.append({"type": "scatter", "mode": "lines", "name": snapshot.sweep.name, "line": line, **points})
    layout = _layout("trials that have ended", "hypervolume", 300)
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": {**layout, "showlegend": True}} if traces else None


def _points(snapshot: Snapshot, upwards: str, colour: str, symbols: Mapping[str, str]) -> dict[str, Any]:
    objectives = snapshot.sweep.objectives
    shown = [t for t in snapshot.trials if objective_values(t, objectives) is not None]
    shown = [t for t in shown if t.clean_acc is not None and t.value(upwards) is not None]
    on_front = [t.number in snapshot.on_front for t in shown]
    hollow = [not t.exact and upwards == "robust_acc" for t in shown]
    marker = {
        "color": colour,
        "symbol": [symbols[t.label] + ("-open" if h else "") for t, h in zip(shown, hollow, strict=True)],
        "size": [13 if member else 7 for member in on_front],
        "opacity": [1.0 if member else 0.55 for member in on_front],
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": snapshot.sweep.name,
        "showlegend": False,
        "legendgroup": snapshot.sweep.name,
        "x": [t.clean_acc for t in shown],
        "y": [t.value(upwards) for t in shown],
        "marker": marker,
        "hovertext": [_hover(snapshot, t) for t in shown],
        "hoverinfo": "text",
    }


def _hover(snapshot: Snapshot, trial: TrialRecord) -> str:
    head = f"<b>{escape(snapshot.sweep.name)} · trial {trial.number}</b> · {escape(trial.label)}"
    drawn = escape(searched(trial, snapshot.short_names)).replace(" ", "<br>")
    figures = f"clean {accuracy(trial.clean_acc)}<br>robust {snapshot.robust(trial)} {exactness(trial)}"
    return "<br>".join((head, drawn, figures))


def _border(
    members: Sequence[TrialRecord], upwards: str, colour: str, name: str, dash: str = "solid"
) -> dict[str, Any]:
    """The staircase under which everything is dominated."""
    found = sorted((t.clean_acc or 0.0, -(t.value(upwards) or 0.0)) for t in members)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "x": [clean for clean, _ in found],
        "y": [-up for _, up in found],
        "line": {"shape": "vh", "color": colour, "width": 1.5, "dash": dash},
        "hoverinfo": "skip",
    }


def _layout(across: str, upwards: str, height: int) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": INK, "ticks": "outside", "tickcolor": GRID}
    return {
        "xaxis": {**axis, "title": {"text": across}},
        "yaxis": {**axis, "title": {"text": upwards}},
        "plot_bgcolor": "#fff",
        "paper_bgcolor": "#fff",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 64, "r": 16, "t": 16, "b": 52},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.16},
        "height": height,
    }


def _sweep_row(
    snapshot: Snapshot, state: str, place: int, joint: Sequence[tuple[int, TrialRecord]] | None
) -> dict[str, Any]:
    objectives = snapshot.sweep.objectives
    points = [v for t in snapshot.front if (v := objective_values(t, objectives)) is not None]
    return {
        "name": snapshot.sweep.name,
        "colour": PALETTE[place % len(PALETTE)],
        "headline": headline(snapshot.sweep, snapshot.trials),
        "state": state,
        "settled": snapshot.is_settled(),
        "front": len(snapshot.front),
        "hypervolume": f"{hypervolume(points):.3f}" if points and len(objectives) > 1 else ABSENT,
        "joint": ABSENT if joint is None else sum(where == place for where, _ in joint),
    }


def _trial_row(snapshot: Snapshot, place: int, trial: TrialRecord) -> dict[str, Any]:
    interval = robust_interval(snapshot.stages_of(trial), trial.number)
    return {
        "sweep": snapshot.sweep.name,
        "colour": PALETTE[place % len(PALETTE)],
        "number": trial.number,
        "method": trial.label,
        "searched": searched(trial, snapshot.short_names),
        "clean": accuracy(trial.clean_acc),
        "cosine": accuracy(trial.feature_cosine) if snapshot.has_cosines else "",
        "robust": accuracy(trial.robust_acc),
        "interval": ABSENT if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        "test_clean": accuracy(trial.test_clean_acc),
        "test_robust": snapshot.test_robust(trial),
    }


def _script_json(data: Any) -> str:
    """JSON that may stand inside <script>: nothing in it can end the element."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
