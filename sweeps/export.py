"""Export: a sweep as JSON, as CSV, or as an Optuna study, failures included; or its figures as a LaTeX table."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SweepError
from sweeps.columns import Cell, Column
from sweeps.confirmed import confirmation_of, read_confirmation
from sweeps.costs import Cost
from sweeps.folder import SweepFolder
from sweeps.latex import Which, render_latex
from sweeps.ledger import Ledger
from sweeps.parents import children_of, names_of, parent_of
from sweeps.published_tables import public_published
from sweeps.records import Split, TrialRecord
from sweeps.snapshot import Snapshot, flatten, last_line
from sweeps.summary import public_trial, robust_interval, sweep_state
from sweeps.trust import count_mismatches

if TYPE_CHECKING:
    from optuna import Study


def export_json(ledger: Ledger, folder: SweepFolder | None = None) -> dict[str, Any]:
    """Return everything but curves and verdicts as JSON-ready data; its keys are stable.

    Args: folder: of the sweep, in whose storage a confirmation is looked for; without it only its own is found.
    """
    snapshot, state = Snapshot.read(ledger), sweep_state(ledger)
    confirming = confirmation_of(snapshot, state, folder) if folder else read_confirmation(snapshot, state)
    sweep, cost = snapshot.sweep, sum(snapshot.costs.values(), Cost())
    return {
        "sweep": {
            "id": sweep.id,
            "name": sweep.name,
            "state": state,
            "created_at": sweep.created_at,
            "completed_at": sweep.completed_at,
            "requested": sweep.requested,
            "objectives": list(sweep.objectives),
            "planned_stages": [asdict(stage) | {"passes": _list(stage.passes)} for stage in sweep.planned_stages],
            "parents": [_parent(snapshot, p) for p in snapshot.parents],
            "front": [t.number for t in snapshot.front],
            "front_settled": snapshot.is_settled(),
            "cost": {**cost.public(), "share": cost.share},
            "data_digest": sweep.data_digest,
            "document": dict(sweep.document),
            "environment": dict(sweep.environment),
        },
        "trials": [_trial(snapshot, t) for t in snapshot.trials],
        "replicates": [replicates.public() for replicates in snapshot.replicates],
        "confirmation": confirming and confirming.public(),
        "published": public_published(snapshot),
    }


def _trial(snapshot: Snapshot, trial: TrialRecord) -> dict[str, Any]:
    stages = snapshot.stages_of(trial)
    mismatches, attacked = count_mismatches(stages)
    return {
        **public_trial(trial, stages),
        "parent": parent_of(trial),
        "parent_seconds": snapshot.parent_seconds.get(trial.number),
        "test_exact": snapshot.is_test_exact(trial),
        "columns": [_column(c, cell) for c, cell in zip(snapshot.columns, snapshot.cells(trial), strict=True)],
        "flags": [flag._asdict() for flag in snapshot.flags.get(trial.number, ())],
        "mismatches": {"images": mismatches, "attacked": attacked},
        "cost": snapshot.costs[trial.number].public(),
    }


def _parent(snapshot: Snapshot, parent: TrialRecord) -> dict[str, Any]:
    return {
        "names": names_of(parent),
        "state": str(parent.state),
        "config": dict(parent.config),
        "seed": parent.seed,
        "epochs": parent.epochs,
        "train_seconds": parent.train_seconds,
        "clean_acc": parent.clean_acc,
        "weights_digest": parent.weights_digest,
        "children": children_of(parent, snapshot.trials),
        "error": None if parent.error is None else {"kind": parent.error_kind, "text": parent.error},
    }


def _column(column: Column, cell: Cell) -> dict[str, Any]:
    low, high = cell.interval or (None, None)
    return {
        "split": column.split,
        "plan": column.plan,
        "column": column.name,
        "threat": column.threat,
        "accuracy": cell.accuracy,
        "exact": cell.exact,
        "images": cell.images,
        "survivors": cell.survivors,
        "low": low,
        "high": high,
        "done": cell.done,
        "planned": cell.planned,
    }


def _list(values: tuple[int, int] | None) -> list[int] | None:
    return None if values is None else list(values)


def export_csv(ledger: Ledger) -> str:
    """Return one row per trial; the configuration is flattened to columns ``config.training.epochs``, None is empty."""
    rows = table_rows(Snapshot.read(ledger))
    columns = dict.fromkeys(name for row in rows for name in row)
    ordered = sorted(columns, key=lambda name: name.startswith("config."))  # configurations differ; facts come first
    text = io.StringIO()
    writer = csv.DictWriter(text, ordered, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one flat row per trial; configurations differ, so that not every row has every key."""
    return [_csv_row(snapshot, trial) for trial in snapshot.trials]


def _csv_row(snapshot: Snapshot, trial: TrialRecord) -> dict[str, Any]:
    stages = snapshot.stages_of(trial)
    low, high = robust_interval(stages, trial.number) or (None, None)
    return {
        "number": trial.number,
        "state": str(trial.state),
        "method": trial.label,
        "seed": trial.seed,
        "clean_acc": trial.clean_acc,
        "robust_acc": trial.robust_acc,
        "robust_low": low,
        "robust_high": high,
        "exact": trial.exact,
        **({} if trial.feature_cosine is None else {"feature_cosine": trial.feature_cosine}),
        "front": trial.number in snapshot.on_front,
        "test_clean_acc": trial.test_clean_acc,
        "test_robust_acc": trial.test_robust_acc,
        "test_exact": snapshot.is_test_exact(trial) if trial.test_robust_acc is not None else None,
        **_csv_columns(snapshot, trial),
        "epochs": trial.epochs,
        "attempts": trial.attempts,
        "train_seconds": trial.train_seconds,
        **({"parent_seconds": snapshot.parent_seconds.get(trial.number)} if snapshot.parents else {}),
        "attack_seconds": snapshot.attack_seconds[trial.number],
        **snapshot.costs[trial.number].public(),
        "flags": " ".join(flag.code for flag in snapshot.flags.get(trial.number, ())) or None,
        "error_kind": trial.error_kind,
        "error": last_line(trial.error) or None,
        **flatten(trial.config, "config."),
    }


def _csv_columns(snapshot: Snapshot, trial: TrialRecord) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for column, cell in zip(snapshot.columns, snapshot.cells(trial), strict=True):
        cells[f"{column.key}.images"] = cell.images
        cells[f"{column.key}.survivors"] = cell.survivors
        cells[f"{column.key}.exact"] = cell.exact if cell.survivors is not None else None
    return cells


def export_latex(ledger: Ledger, which: Which, split: Split) -> str:
    """Return a table of the front or of all finished trials, with the figures on one split's images."""
    return render_latex(Snapshot.read(ledger), which, split)


def export_optuna(ledger: Ledger, path: Path) -> Path:
    """Write the sweep as an Optuna study into a new sqlite file and return its path; SweepError if it exists.

    The values are those that the search was told (clean, and robust after the first attack), so that they can be
    compared; what later attacks and the test images said is in the user attributes.
    """
    if path.exists():
        raise SweepError(f"{path} exists already; nothing was written. Choose another file.")
    import optuna

    snapshot = Snapshot.read(ledger)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{partial}")
    try:
        study = optuna.create_study(
            storage=storage, study_name=snapshot.sweep.name, directions=["maximize"] * len(snapshot.sweep.objectives)
        )
        _fill(study, snapshot)
        storage.engine.dispose()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fill(study: Study, snapshot: Snapshot) -> None:
    from sweeps.study import frozen_trial, told_values

    study.set_user_attr("sweep.id", snapshot.sweep.id)
    for trial in snapshot.trials:
        first = next((s for s in snapshot.stages_of(trial, "validation") if s.position == 0), None)
        told = told_values(trial, first, snapshot.sweep.objectives)
        study.add_trial(frozen_trial(trial, told, _attributes(trial)))


def _attributes(trial: TrialRecord) -> dict[str, Any]:
    found = {
        "trial": trial.number,
        "method": trial.label,
        "seed": trial.seed,
        "state": str(trial.state),
        "clean_acc": trial.clean_acc,
        "robust_acc": trial.robust_acc,
        "exact": trial.exact,
        "test_clean_acc": trial.test_clean_acc,
        "test_robust_acc": trial.test_robust_acc,
        "error": last_line(trial.error) or None,
    }
    return {name: value for name, value in found.items() if value is not None}
