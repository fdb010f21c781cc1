"""The report: report.html, which opens offline and has everything, and report.md, its tables; from the ledger alone."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.advice import advice
from sweeps.columns import threat_notes, usual_threat
from sweeps.confirmation_view import confirmation_rows, confirmation_sentences, single_seed_note
from sweeps.confirmed import confirmation_of
from sweeps.figures import front_figure, hypervolume_figure
from sweeps.folder import SweepFolder
from sweeps.gains import gain_rows
from sweeps.importance_bars import importance_figure
from sweeps.importances import FEWEST, MOST, importances, what_is_missing
from sweeps.ledger import Ledger
from sweeps.overfitting import overfitting_by_method
from sweeps.parallel import axes_in, figures_by_method
from sweeps.published_tables import published_tables
from sweeps.records import LAUNCHED, OPEN, State, TrialRecord
from sweeps.report_markdown import render_markdown
from sweeps.report_rows import (
    cost_rows,
    failure_groups,
    flag_groups,
    method_rows,
    overfitting_rows,
    parts_table,
    replicate_row,
    titles,
    trial_row,
    warning_groups,
)
from sweeps.snapshot import Snapshot, accuracy, without_passwords
from sweeps.summary import headline, sweep_state

if TYPE_CHECKING:
    from markupsafe import Markup


ROWS_SHOWN = 100
"""Rows of the table of trials that are laid out at first: with 1,000 each click on a heading would take a second."""


def build_report(ledger: Ledger, folder: SweepFolder) -> tuple[Path, Path]:
    """Write report.html and report.md into the sweep's folder and return their paths; works at any time."""
    return write_report(*read_report(ledger, folder), folder)


def read_report(ledger: Ledger, folder: SweepFolder) -> tuple[Snapshot, str]:
    """Return what a report is made of: the snapshot with what only reports read, and the sweep's state."""
    snapshot, state = Snapshot.read(ledger), sweep_state(ledger)
    overfitting = tuple(overfitting_by_method(ledger, snapshot.trials))
    return replace(snapshot, overfitting=overfitting, confirming=confirmation_of(snapshot, state, folder)), state


def write_report(snapshot: Snapshot, state: str, folder: SweepFolder) -> tuple[Path, Path]:
    """Write what `read_report` returned as `build_report` does."""
    _write(folder.report_html, render_html(snapshot, state, folder.command("ui")))
    _write(folder.report_markdown, render_markdown(snapshot, state))
    return folder.report_html, folder.report_markdown


def render_html(snapshot: Snapshot, state: str, ui_command: str) -> str:
    """Return the page. Everything that comes from the ledger is escaped. Args: ui_command: starts MLflow's server."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    figure, decided, lines = front_figure(snapshot), importances(snapshot), figures_by_method(snapshot)
    bars, growth = importance_figure(snapshot, decided), hypervolume_figure(snapshot) if figure else None
    later = {"growth-figure": growth, "importance-figure": bars}
    later |= {f"lines-{place}": found for place, found in enumerate(lines.values())}
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        sweep=snapshot.sweep,
        headline=headline(snapshot.sweep, snapshot.trials),
        state=state,
        started=_date(snapshot.sweep.created_at),
        written=_date(time.time()),
        settled=snapshot.is_settled(),
        single_seed=_linked(single_seed_note(snapshot) or ""),
        confirmed=confirmation_rows(snapshot.confirming) if snapshot.confirming else [],
        confirmation=[_linked(text) for text in confirmation_sentences(snapshot.confirming)]
        if snapshot.confirming
        else [],
        how_to_read=_how_to_read(snapshot),
        cards=_cards(snapshot),
        advice=[(name, _linked(text)) for name, text in advice(snapshot)],
        gain=gain_rows(snapshot),
        figure=figure and Markup(_script_json(figure)),
        growth=growth is not None,
        bars=bars is not None,
        fewest=FEWEST,
        most=MOST,
        bars_missing=what_is_missing(snapshot, decided),
        lines=[
            {"method": label, "colour": snapshot.colours[label], "is_open": len(lines) < 4, "axes": axes_in(found)}
            for label, found in lines.items()
        ],
        later=Markup(_script_json({name: found for name, found in later.items() if found is not None})),
        plotly_js=figure and Markup(_plotly_js()),
        front=[trial_row(snapshot, t) for t in snapshot.front],
        methods=method_rows(snapshot),
        published=published_tables(snapshot),
        replicates=[replicate_row(snapshot, r) for r in snapshot.replicates],
        rows=[trial_row(snapshot, t) for t in snapshot.trials],
        shown=ROWS_SHOWN,
        columns=titles(snapshot),
        has_cosines=snapshot.has_cosines,
        parts=parts_table(snapshot),
        overfitting=overfitting_rows(snapshot),
        failures=failure_groups(snapshot.trials),
        flags=flag_groups(snapshot),
        warnings=warning_groups(snapshot),
        costs=cost_rows(snapshot),
        links=_links(snapshot),
        ui_command=ui_command,
        vertical=snapshot.vertical.replace("_acc", " accuracy").replace("_", " "),
        facts=_facts(snapshot),
        document=_shown(snapshot.sweep.document),
    )


def _linked(text: str) -> Markup:
    """Return a text escaped, each "trial 7" in it a link to that trial's row, what is in backquotes as code."""
    from markupsafe import Markup, escape

    linked = re.sub(r"\btrial (\d+)\b", r'<a href="#trial-\1">trial \1</a>', str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", linked))


def _how_to_read(snapshot: Snapshot) -> str:
    columns = [c for c in snapshot.columns if c.split == "validation" and c.plan == LAUNCHED and c.cumulative]
    usual = usual_threat(columns)
    within = f" ({', '.join(threat_notes(usual))}) on {columns[0].stages[0].images} validation images" if usual else ""
    attacks = " → ".join(c.name + (f" ({len(c.stages)} parts)" if len(c.stages) > 1 else "") for c in columns)
    return (
        "Large points are the front: no other trial is better in one accuracy without being worse in the other. Hollow "
        "points are upper bounds: the trial is dominated already, or its next attacks are still to run. Thin lines are "
        "each method's own front, dotted where bounds are on it; a button hides them, a click on a method hides that."
        + (f" Attacks: {attacks}{within}." if attacks else "")
    )


def _cards(snapshot: Snapshot) -> list[tuple[str, str]]:
    trials, done = snapshot.trials, snapshot.in_state(State.FINISHED)
    open_trials, stopped = len(snapshot.in_state(*OPEN)), len(snapshot.in_state(State.STOPPED))
    cards = [
        (str(len(snapshot.front)), "trials on the front"),
        (f"{len(done)} of {snapshot.sweep.requested}", "finished"),
    ]
    others = ((open_trials, "open"), (stopped, "stopped"), (_failed(trials), "failed"))
    cards += [(str(count), name) for count, name in others if count]
    cards += [(str(len(snapshot.flags)), "with flags")] if snapshot.flags else []
    for objective in snapshot.sweep.objectives:
        best = max(snapshot.front, key=lambda t: t.value(objective) or 0.0, default=None)
        if best is not None:
            cards.append(
                (accuracy(best.value(objective)), f"best {objective.removesuffix('_acc')} (trial {best.number})")
            )
    return cards


def _failed(trials: Iterable[TrialRecord]) -> int:
    return sum(t.state is State.FAILED for t in trials)


def _links(snapshot: Snapshot) -> Mapping[str, str]:
    from sweeps.tracking_ui import links

    uri = snapshot.sweep.mlflow_uri or ""
    runs = [t.mlflow_run_id for t in snapshot.front if t.mlflow_run_id]
    return links(snapshot.sweep, uri, runs) if uri.startswith(("http://", "https://")) else {}


def _facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    sweep = snapshot.sweep
    facts: dict[str, Any] = {"sweep": sweep.id, "images": sweep.data_digest, **sweep.environment}
    packages = facts.pop("packages", None)
    if isinstance(packages, Mapping):
        facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    if snapshot.prior:
        facts["prior knowledge"] = ", ".join(f"{count} trials of {name}" for name, count in snapshot.prior.items())
    return [(name, without_passwords(v if isinstance(v, str) else json.dumps(v))) for name, v in facts.items()]


def _shown(document: Mapping[str, Any]) -> str:
    return without_passwords(json.dumps(dict(document), indent=2, ensure_ascii=False))


def _script_json(data: Any) -> str:
    """JSON that may stand inside <script>: nothing in it can end the element."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
