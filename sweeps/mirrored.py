"""What MLflow gets to see of a trial, as plain values: parameters, metrics with fixed timestamps, tags, a note. Pure.

The same ledger always gives the same rows, so that logging them again changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sweeps.columns import Column, cell_of, is_done
from sweeps.overfitting import read_overfitting
from sweeps.parents import count_siblings, parent_of
from sweeps.records import CLOSED, LAUNCHED, Event, StageRecord, State, TrialRecord
from sweeps.snapshot import Snapshot, accuracy, exactness, flatten, last_line, searched
from sweeps.summary import headline

LONGEST_TAG = 5000
"""Characters; MLflow truncates or refuses longer tags and parameters, depending on the store."""

LOADED_RUNS = 100
"""Runs that MLflow's pages load and draw; of larger sweeps the view shows the front only, lest it miss any of it."""


class Metric(NamedTuple):
    """One row of MLflow's metrics table."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since the epoch."""
    step: int


def params_of(trial: TrialRecord) -> dict[str, str]:
    """Return the configuration under flat names: ``jasmin.k``, ``training.epochs``; what is None is absent."""
    parent = parent_of(trial)
    config = {k: v for k, v in trial.config.items() if k not in ("methods", "start_from")}
    config |= {} if parent is None else {"start_from": parent}
    flat = flatten(config) | flatten(trial.config.get("methods", {}))
    named = {_key(name): str(value) for name, value in flat.items() if value is not None}
    return {name: value[:LONGEST_TAG] for name, value in ({"method": trial.label} | named).items() if value != "[]"}


def param_names(trial: TrialRecord) -> dict[str, str]:
    """Return the name in MLflow of every searched parameter: ``jasmin+adversarial/jasmin.k`` → ``jasmin.k``."""
    logged = params_of(trial)
    names = {}
    for name in trial.params:
        parts = name.rpartition("/")[2].split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts))]
        names[name] = next((end for end in ends if end in logged), name)
    return names


def curves(history: Sequence[Mapping[str, float]], events: Iterable[Event]) -> list[list[Metric]]:
    """Return the metrics of each epoch, step 1 first, at the time when the ledger first heard of that epoch."""
    heard: dict[int, float] = {}
    for event in events:
        if event.kind == "epochs":
            for epoch in range(1, event.detail["to"] + 1):
                heard.setdefault(epoch, event.at)
    return [
        [
            Metric(_key(name), float(value), _ms(heard.get(epoch, 0.0)), epoch)
            for name, value in metrics.items()
            if name != "epoch" and math.isfinite(value)
        ]
        for epoch, metrics in enumerate(history, start=1)
    ]


def finals(snapshot: Snapshot, trial: TrialRecord, events: Iterable[Event]) -> list[Metric]:
    """Return clean_acc first (MLflow's compare page starts with what was logged first), then what the attacks left,
    then costs. An attack's metric is named after its column, numbers with two digits: ``FGSM4`` → ``FGSM04_acc``.

    The step of an attack's metric is the position of its last part: robust_acc and pgd_acc show how a bound falls, and
    their last value is what is known. So it is with cost/parent_s, whose step counts the trials that share the parent.
    """
    trained = next((_ms(e.at) for e in events if e.kind == "trained"), None)
    rows: list[tuple[str, float | None, int, int]] = []
    if trained is not None:
        rows += [("clean_acc", trial.clean_acc, trained, 0), ("cost/train_s", trial.train_seconds, trained, 0)]
        rows.append(("feature_cosine", trial.feature_cosine, trained, 0))
        siblings = count_siblings(trial, snapshot.parents, snapshot.trials)
        rows.append(("cost/parent_s", snapshot.parent_seconds.get(trial.number), trained, siblings))
    done = [stage for stage in snapshot.stages_of(trial) if is_done(stage)]
    for stage in done:
        at, prefix = _ended(stage), "test_" if stage.split == "test" else ""
        if stage.split == "test" and stage.position == 0:
            rows.append(("test_clean_acc", trial.test_clean_acc, at, 0))
        if stage.plan == LAUNCHED and stage.cumulative:
            rows.append((f"{prefix}robust_acc", stage.accuracy, at, stage.position))
    names = metric_names(snapshot.columns)
    for column in snapshot.columns:
        rows += _of_column(column, names[column.plan, column.name], done)
    rows.sort(key=lambda row: "cost/" in row[0])
    return [Metric(_key(k), float(v), at, step) for k, v, at, step in rows if v is not None and math.isfinite(v)]


def overfitting_finals(history: Sequence[Mapping[str, float]], events: Iterable[Event]) -> list[Metric]:
    """Return best_robust_epoch and robust_overfitting (best epoch minus last) of a trained trial that was monitored."""
    trained = next((_ms(e.at) for e in events if e.kind == "trained"), None)
    found = read_overfitting(history)
    if trained is None or found is None:
        return []
    return [
        Metric("best_robust_epoch", float(found.best_epoch), trained, 0),
        Metric("robust_overfitting", found.lost, trained, 0),
    ]


def metric_names(columns: Iterable[Column]) -> dict[tuple[str, str], str]:
    """Return the name of each column, by (plan, column), with numbers padded so that names sort as the numbers do.

    FGSM4, FGSM16 → FGSM04, FGSM16. A norm (l2) stays, and so do all of a plan where two names would become one.
    """
    by_plan: dict[str, dict[str, str]] = {}
    for column in columns:
        by_plan.setdefault(column.plan, {})[column.name] = _padded(column.name)
    return {
        (plan, name): padded if len(set(names.values())) == len(names) else name
        for plan, names in by_plan.items()
        for name, padded in names.items()
    }


def _padded(name: str) -> str:
    def pad(found: re.Match[str]) -> str:
        is_norm = re.search(r"(^|[^A-Za-z])[lL]$", name[: found.start()])
        return found[0] if is_norm else f"0{found[0]}"

    return re.sub(r"(?<![\d.])\d(?![\d.])", pad, name)


def _of_column(column: Column, called: str, done: Sequence[StageRecord]) -> list[tuple[str, float | None, int, int]]:
    """One row of each metric for each part that ran, over all parts up to it; another plan's have its name before."""
    plan, prefix = "" if column.plan == LAUNCHED else f"{column.plan}/", "test_" if column.split == "test" else ""
    name = f"{prefix}{called}"
    places = {part.position for part in column.stages}
    mine = [stage for stage in done if stage.split == column.split and stage.position in places]
    rows: list[tuple[str, float | None, int, int]] = []
    for count, stage in enumerate(mine, 1):
        at, step, so_far = _ended(stage), stage.position, mine[:count]
        rows.append((f"{plan}{name}_acc", cell_of(column, so_far).accuracy, at, step))
        rows.append((f"{plan}cost/{name}_s", sum(s.seconds or 0.0 for s in so_far), at, step))
        rows.append((f"{plan}cost/{name}_forwards", sum(s.forwards or 0 for s in so_far), at, step))
    if not mine and (cell := cell_of(column, done)).exact:  # what came before it left nothing to attack
        places = {part.position for part in column.before}
        last = [stage for stage in done if stage.split == column.split and stage.position in places][-1]
        rows.append((f"{plan}{name}_acc", cell.accuracy, _ended(last), column.stages[-1].position))
    return rows


def _ended(stage: StageRecord) -> int:
    return _ms(stage.started_at + (stage.seconds or 0.0))


def tags_of(snapshot: Snapshot, trial: TrialRecord) -> dict[str, str]:
    """Return the tags that change in a trial's life."""
    tags = {
        "trial.state": str(trial.state),
        "trial.pareto": pareto_tag(snapshot, trial),
        "trial.robust": exactness(trial) if trial.robust_acc is not None else "not measured",
        "trial.bounds": ", ".join(_bounds(snapshot, trial)) or "none",
        "trial.flags": ", ".join(dict.fromkeys(f.code for f in snapshot.flags.get(trial.number, ()))) or "none",
        "trial.error": last_line(trial.error) or "none",
        "mlflow.note.content": trial_note(snapshot, trial),
    }
    if trial.test_robust_acc is not None:
        tags["trial.test_robust"] = "exact" if snapshot.is_test_exact(trial) else "bound"
    return {name: value[:LONGEST_TAG] for name, value in tags.items()}


def _bounds(snapshot: Snapshot, trial: TrialRecord) -> list[str]:
    """Name the columns whose figures can still fall."""
    cells = zip(snapshot.columns, snapshot.cells(trial), strict=True)
    return [column.key for column, cell in cells if cell.survivors is not None and not cell.exact]


def pareto_tag(snapshot: Snapshot, trial: TrialRecord) -> str:
    """Return "true" for a member of the front."""
    return "true" if trial.number in snapshot.on_front else "false"


def birth_tags(snapshot: Snapshot, trial: TrialRecord, parent: str) -> dict[str, str]:
    """Return the tags that a trial's run is born with, in one transaction; by them it is found again."""
    return {
        "mlflow.parentRunId": parent,
        "mlflow.runColor": snapshot.colours[trial.label],
        "sweep.id": snapshot.sweep.id,
        "sweep.name": snapshot.sweep.name,
        "sweep.role": "trial",
        "trial.number": str(trial.number),
        "method": trial.label,
    }


def run_status(trial: TrialRecord, closing: str | None) -> str:
    """Return MLflow's word for a trial's state; an open trial of a driver that leaves gets `closing`."""
    if trial.state not in CLOSED:
        return closing or "RUNNING"
    return "FAILED" if trial.state is State.FAILED else "FINISHED"


def trial_note(snapshot: Snapshot, trial: TrialRecord) -> str:
    """Return a trial's description in Markdown: links first, because MLflow folds all but the first rows away."""
    sweep, lines = snapshot.sweep, []
    if sweep.mlflow_experiment_id and sweep.mlflow_run_id:
        page = f"#/experiments/{sweep.mlflow_experiment_id}/runs/{sweep.mlflow_run_id}?workflowType=machine_learning"
        lines.append(f"[sweep {sweep.name}]({page})")
    lines += ["", f"Trial {trial.number}: {trial.label}, {searched(trial, snapshot.short_names)}", ""]
    lines += [_row(("images", "attack", "survivors", "accuracy", "95 % interval")), _row(["---"] * 5)]
    for column, cell in zip(snapshot.columns, snapshot.cells(trial), strict=True):
        if cell.interval is not None:
            span = f"{cell.interval[0]:.3f} to {cell.interval[1]:.3f}"
            plan = "" if column.plan == LAUNCHED else f"{column.plan}: "
            figure = ", ".join(filter(None, (cell.figure, cell.progress)))
            lines.append(_row((column.split, plan + column.name, f"{cell.survivors} of {cell.images}", figure, span)))
    lines += ["", *(f"- {flag.text}" for flag in snapshot.flags.get(trial.number, ()))]
    return "\n".join(lines).strip()


def sweep_note(snapshot: Snapshot, links: Mapping[str, str]) -> str:
    """Return the sweep's description in Markdown: links, then the front."""
    short = snapshot.short_names
    names = ("trial", "method", "searched", "clean", "robust", "test clean", "test robust")
    lines = [" · ".join(f"[{name}]({url})" for name, url in links.items())]
    lines += ["", headline(snapshot.sweep, snapshot.trials)]
    if is_cut(snapshot):
        lines += [
            "",
            f"MLflow draws {LOADED_RUNS} runs at once: the Pareto view has the front only, the report has all.",
        ]
    lines += ["", _row(names), _row(["---"] * len(names))]
    for t in snapshot.front:
        measured = (accuracy(t.clean_acc), snapshot.robust(t), accuracy(t.test_clean_acc), snapshot.test_robust(t))
        lines.append(_row((str(t.number), t.label, searched(t, short), *measured)))
    return _whole_lines(lines)


def is_cut(snapshot: Snapshot) -> bool:
    """Return whether MLflow could not show all trials at once, so that the view has the front alone."""
    return len(snapshot.trials) > LOADED_RUNS


def _whole_lines(lines: Sequence[str]) -> str:
    """Join as many lines as a tag holds, and say so where that is not all of them."""
    text, more = "\n".join(lines), "\n\nThe rest is in the report."
    if len(text) <= LONGEST_TAG:
        return text
    return text[: LONGEST_TAG - len(more)].rpartition("\n")[0] + more


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain_json(data: Any) -> str:
    """Write an artifact: two spaces, sorted keys."""
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _key(name: str) -> str:
    """Replace what MLflow refuses in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
