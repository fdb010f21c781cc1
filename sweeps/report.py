"""The report: report.html, which opens offline and has everything, and report.md, its tables; from the ledger alone."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sweeps.figures import front_figure
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import StageRecord, State, TrialRecord
from sweeps.replicates import Replicates
from sweeps.snapshot import (
    ABSENT,
    Snapshot,
    accuracy,
    duration,
    exactness,
    last_line,
    searched,
    spread,
    without_passwords,
)
from sweeps.summary import headline, robust_interval, sweep_state, wilson

LONGEST_TRACEBACK = 6000
"""Characters of a failure's text that are shown, the last ones; the export has all of it."""


def build_report(ledger: Ledger, folder: SweepFolder) -> tuple[Path, Path]:
    """Write report.html and report.md into the sweep's folder and return their paths; works at any time."""
    snapshot, state = Snapshot.read(ledger), sweep_state(ledger)
    _write(folder.report_html, render_html(snapshot, state, folder.command("ui")))
    _write(folder.report_markdown, render_markdown(snapshot, state))
    return folder.report_html, folder.report_markdown


def render_html(snapshot: Snapshot, state: str, ui_command: str) -> str:
    """Return the page. Everything that comes from the ledger is escaped. Args: ui_command: starts MLflow's server."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    figure = front_figure(snapshot)
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        sweep=snapshot.sweep,
        headline=headline(snapshot.sweep, snapshot.trials),
        state=state,
        started=_date(snapshot.sweep.created_at),
        written=_date(time.time()),
        settled=snapshot.is_settled(),
        how_to_read=_how_to_read(snapshot),
        cards=_cards(snapshot),
        figure=figure and Markup(_script_json(figure)),
        plotly_js=figure and Markup(_plotly_js()),
        front=[_row(snapshot, t) for t in snapshot.front],
        replicates=[_replicate_row(snapshot, r) for r in snapshot.replicates],
        rows=[_row(snapshot, t) for t in snapshot.trials],
        columns=[f"{'test ' if split == 'test' else ''}{label}" for split, _, label in snapshot.stage_columns],
        failures=_failures(snapshot.trials),
        warnings=_warnings(snapshot),
        costs=_costs(snapshot),
        links=_links(snapshot),
        ui_command=ui_command,
        facts=_facts(snapshot),
        document=_shown(snapshot.sweep.document),
    )


def render_markdown(snapshot: Snapshot, state: str) -> str:
    """Return the front, replicates if there are any, and all trials as tables."""
    settled = "" if snapshot.is_settled() else "\nNot settled yet: attacks that are still to run may change it.\n"
    parts = [
        f"# {snapshot.sweep.name}\n",
        f"{headline(snapshot.sweep, snapshot.trials)} ({state}). All figures are of the validation images, robust with "
        "its 95 % interval; those of the test images are named so.\n",
        f"## Pareto front\n{settled}",
        _markdown_table(snapshot, snapshot.front),
        *(["\n## Replicates\n", _markdown_replicates(snapshot)] if snapshot.replicates else []),
        "\n## All trials\n",
        _markdown_table(snapshot, snapshot.trials),
    ]
    return "\n".join(parts) + "\n"


def _markdown_table(snapshot: Snapshot, trials: Iterable[TrialRecord]) -> str:
    names = ("trial", "state", "method", "searched", "clean", "robust", "attacks", "test clean", "test robust")
    short = snapshot.short_names
    rows = [names, ("---",) * len(names)]
    for t in trials:
        facts = (str(t.number), str(t.state), t.label, searched(t, short), accuracy(t.clean_acc), snapshot.robust(t))
        rows.append((*facts, exactness(t), accuracy(t.test_clean_acc), accuracy(t.test_robust_acc)))
    return _markdown(rows)


def _markdown_replicates(snapshot: Snapshot) -> str:
    names = ("trials", "method", "searched", "n", "clean", "robust", "attacks")
    rows = [names, ("---",) * len(names)]
    for row in (_replicate_row(snapshot, r) for r in snapshot.replicates):
        numbers = ", ".join(map(str, row["numbers"]))
        facts = (row["method"], row["searched"], str(row["count"]), row["clean"], row["robust"], row["exactness"])
        rows.append((numbers, *facts))
    return _markdown(rows)


def _markdown(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)


def _how_to_read(snapshot: Snapshot) -> str:
    threats = {
        f"{s.config['norm']}, ε = {_pixels(s.config['epsilon'])}" for s in _all(snapshot) if "epsilon" in s.config
    }
    images = {s.images for s in _all(snapshot) if s.split == "validation" and s.images}
    within = f" ({'; '.join(sorted(threats))})" if threats else ""
    on = f" on {', '.join(map(str, sorted(images)))} validation images" if images else ""
    attacks = " → ".join(snapshot.sweep.planned_stages)
    return (
        "Large points are the front: no other trial is better in one accuracy without being worse in the other. Hollow "
        "points are upper bounds: the trial is dominated already, or its next attacks are still to run."
        + (f" Attacks: {attacks}{within}{on}." if attacks else "")
    )


def _pixels(epsilon: float) -> str:
    scaled = epsilon * 255
    return f"{scaled:.3g}/255" if abs(scaled - round(scaled, 1)) < 1e-6 else f"{epsilon:.3g}"


def _cards(snapshot: Snapshot) -> list[tuple[str, str]]:
    trials, done = snapshot.trials, snapshot.in_state(State.FINISHED)
    open_trials = sum(t.state not in (State.FINISHED, State.STOPPED, State.FAILED) for t in trials)
    cards = [
        (str(len(snapshot.front)), "trials on the front"),
        (f"{len(done)} of {snapshot.sweep.requested}", "finished"),
    ]
    cards += [(str(count), name) for count, name in ((open_trials, "open"), (_failed(trials), "failed")) if count]
    for objective in snapshot.sweep.objectives:
        best = max(snapshot.front, key=lambda t: t.value(objective) or 0.0, default=None)
        if best is not None:
            cards.append(
                (accuracy(best.value(objective)), f"best {objective.removesuffix('_acc')} (trial {best.number})")
            )
    return cards


def _failed(trials: Iterable[TrialRecord]) -> int:
    return sum(t.state is State.FAILED for t in trials)


def _row(snapshot: Snapshot, trial: TrialRecord) -> dict[str, Any]:
    """One trial as the tables show it."""
    stages = snapshot.stages_of(trial)
    interval = robust_interval(stages, trial.number)
    found = {(s.split, s.position): s for s in stages}
    attack_seconds, forwards = sum(s.seconds or 0.0 for s in stages), sum(s.forwards or 0 for s in stages)
    return {
        "number": trial.number,
        "state": str(trial.state),
        "method": trial.label,
        "colour": snapshot.colours[trial.label],
        "searched": searched(trial, snapshot.short_names),
        "on_front": trial.number in snapshot.on_front,
        "clean": accuracy(trial.clean_acc),
        "robust": accuracy(trial.robust_acc),
        "interval": ABSENT if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        "exactness": exactness(trial),
        "stages": [_stage_cell(found.get((split, position))) for split, position, _ in snapshot.stage_columns],
        "test_clean": accuracy(trial.test_clean_acc),
        "test_robust": accuracy(trial.test_robust_acc),
        "epochs": trial.epochs,
        "train_seconds": trial.train_seconds or "",
        "training": duration(trial.train_seconds),
        "attack_seconds": attack_seconds or "",
        "attacking": duration(attack_seconds) if stages else ABSENT,
        "forwards": forwards or "",
        "forwards_text": f"{forwards:,}" if stages else ABSENT,
    }


def _replicate_row(snapshot: Snapshot, replicates: Replicates) -> dict[str, Any]:
    """One configuration as the tables of replicates show it."""
    first = replicates.trials[0]
    return {
        "numbers": [trial.number for trial in replicates.trials],
        "method": first.label,
        "colour": snapshot.colours[first.label],
        "searched": searched(first, snapshot.short_names),
        "count": replicates.count,
        "clean": spread(replicates.spread("clean_acc")),
        "robust": spread(replicates.spread("robust_acc")),
        "exactness": exactness(replicates),
    }


def _stage_cell(stage: StageRecord | None) -> str:
    if stage is None:
        return ABSENT
    if stage.state != "done" or stage.survivors is None or not stage.images:
        return stage.state
    low, high = wilson(stage.survivors, stage.images)
    return f"{stage.survivors / stage.images:.3f} [{low:.3f}, {high:.3f}] {stage.survivors}/{stage.images}"


def _failures(trials: Iterable[TrialRecord]) -> list[dict[str, Any]]:
    """Group the failures by their last line, which is what tells them apart; the first one's text stands for all."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        if trial.error is not None:
            told = "" if trial.state is State.FAILED else f", trial is {trial.state} nevertheless"
            groups[f"{trial.error_kind}: {last_line(trial.error)[:200]}{told}"].append(trial)
    return [
        {
            "title": title,
            "numbers": [t.number for t in members],
            "text": without_passwords((members[0].error or "")[-LONGEST_TRACEBACK:]),
        }
        for title, members in groups.items()
    ]


def _warnings(snapshot: Snapshot) -> list[dict[str, str]]:
    groups: dict[str, dict[int, None]] = defaultdict(dict)
    for stage in _all(snapshot):
        for text in stage.warnings:
            groups[f"{stage.attack} on {stage.split} images: {text}"][stage.number] = None
    return [{"text": text, "numbers": ", ".join(map(str, numbers))} for text, numbers in groups.items()]


def _costs(snapshot: Snapshot) -> list[tuple[str, str]]:
    trials, stages = snapshot.trials, list(_all(snapshot))
    costs = [
        ("epochs trained", f"{sum(t.epochs for t in trials):,}"),
        ("training", duration(sum(t.train_seconds or 0.0 for t in trials))),
    ]
    for split, position, label in snapshot.stage_columns:
        ran = [s for s in stages if (s.split, s.position) == (split, position) and s.state == "done"]
        spent, forwards = sum(s.seconds or 0.0 for s in ran), sum(s.forwards or 0 for s in ran)
        backwards = sum(s.backwards or 0 for s in ran)
        text = f"{duration(spent)}, {len(ran)} trials, {forwards:,} images forward, {backwards:,} backward"
        costs.append((f"{label}, {split} images", text))
    return costs


def _all(snapshot: Snapshot) -> Iterable[StageRecord]:
    return (stage for stages in snapshot.stages.values() for stage in stages)


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
