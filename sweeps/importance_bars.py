"""The report's figure of importances: one bar per parameter, one column per objective, as plotly's plain data."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from sweeps.figures import INK, layout_of
from sweeps.importances import CHANCE, Importances
from sweeps.snapshot import Snapshot

GREY = "#b9bfca"
NAMES = {"clean_acc": "clean accuracy", "robust_acc": "robust accuracy", "feature_cosine": "feature cosine"}


def importance_figure(snapshot: Snapshot, found: Sequence[Importances]) -> dict[str, Any] | None:
    """Return plotly's bars, one column for each objective; None where nothing can be told."""
    if not found:
        return None
    objectives = [o for o in snapshot.sweep.objectives if any(i.objective == o for i in found)]
    groups = list(dict.fromkeys(i.label for i in found))
    names = [_bar_name(snapshot, label, name) for label in groups for name in _columns(found, label)]
    places = {objective: str(place + 1) if place else "" for place, objective in enumerate(objectives)}
    bars = [_bars(snapshot, one, _columns(found, one.label), places[one.objective]) for one in found]
    layout = layout_of("clean", "robust_acc") | {"height": 90 + 24 * len(names), "bargap": 0.25}
    line = {name: value for name, value in layout["xaxis"].items() if name != "title"}
    for place, objective in enumerate(objectives):
        left, right = place / len(objectives) + 0.02 * bool(place), (place + 1) / len(objectives) - 0.02
        title, place_of = {"text": NAMES[objective]}, places[objective]
        span = {"range": [0, 1], "domain": [left, right], "anchor": f"y{place_of}"}
        layout[f"xaxis{place_of}"] = {**line, "title": title, **span}
        layout[f"yaxis{place_of}"] = {**_rows(names), "anchor": f"x{place_of}", "showticklabels": not place}
    return {"data": bars, "layout": layout}


def _bars(snapshot: Snapshot, one: Importances, columns: Sequence[str], place: str) -> dict[str, Any]:
    shares = {name: one.shares[name] for name in columns if name in one.shares}
    colour = snapshot.colours.get(one.label, INK)
    return {
        "type": "bar",
        "orientation": "h",
        "x": [round(share, 4) for share in shares.values()],
        "y": [_bar_name(snapshot, one.label, name) for name in shares],
        "marker": {"color": [GREY if name == CHANCE else colour for name in shares]},
        "xaxis": f"x{place}",
        "yaxis": f"y{place}",
        "hovertemplate": f"%{{y}}: %{{x:.2f}}<extra>{one.trials} trials</extra>",
        "showlegend": False,
    }


def _rows(names: Sequence[str]) -> dict[str, Any]:
    """An axis of categories from the top, every name on it whether a column has it or not."""
    order = {"categoryorder": "array", "categoryarray": names[::-1], "range": [-0.6, len(names) - 0.4]}
    return {**order, "automargin": True, "ticks": ""}


def _columns(found: Sequence[Importances], label: str) -> list[str]:
    """Return a group's parameters in the order of their first figure, chance last."""
    names = dict.fromkeys(name for i in found if i.label == label for name in i.shares if name != CHANCE)
    return [*names, CHANCE]


def _bar_name(snapshot: Snapshot, label: str, name: str) -> str:
    short = snapshot.short_names.get(name, name).removeprefix(f"{label}/").removeprefix(f"{label}.")
    return escape(f"{label or 'all methods'} · {short}")
