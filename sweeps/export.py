"""Export: a sweep as JSON, as CSV, or as an Optuna study; failures included."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import SweepError
from sweeps.ledger import Ledger
from sweeps.records import StageRecord, TrialRecord
from sweeps.snapshot import Snapshot, flatten, last_line
from sweeps.summary import public_trial, robust_interval, sweep_state

if TYPE_CHECKING:
    from optuna import Study


def export_json(ledger: Ledger) -> dict[str, Any]:
    """Return everything but curves and verdicts as JSON-ready data; its keys are stable."""
    snapshot = Snapshot.read(ledger)
    sweep = snapshot.sweep
    return {
        "sweep": {
            "id": sweep.id,
            "name": sweep.name,
            "state": sweep_state(ledger),
            "created_at": sweep.created_at,
            "completed_at": sweep.completed_at,
            "requested": sweep.requested,
            "objectives": list(sweep.objectives),
            "planned_stages": list(sweep.planned_stages),
            "front": [t.number for t in snapshot.front],
            "front_settled": snapshot.is_settled(),
            "data_digest": sweep.data_digest,
            "document": dict(sweep.document),
            "environment": dict(sweep.environment),
        },
        "trials": [public_trial(t, snapshot.stages_of(t)) for t in snapshot.trials],
        "replicates": [replicates.public() for replicates in snapshot.replicates],
    }


def export_csv(ledger: Ledger) -> str:
    """Return one row per trial; the configuration is flattened to columns ``config.training.epochs``, None is empty."""
    snapshot = Snapshot.read(ledger)
    rows = [_csv_row(snapshot, t) for t in snapshot.trials]
    columns = dict.fromkeys(name for row in rows for name in row)
    ordered = sorted(columns, key=lambda name: name.startswith("config."))  # configurations differ; facts come first
    text = io.StringIO()
    writer = csv.DictWriter(text, ordered, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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
        "front": trial.number in snapshot.on_front,
        "test_clean_acc": trial.test_clean_acc,
        "test_robust_acc": trial.test_robust_acc,
        **_csv_stages(snapshot, stages),
        "epochs": trial.epochs,
        "attempts": trial.attempts,
        "train_seconds": trial.train_seconds,
        "attack_seconds": sum(s.seconds or 0.0 for s in stages),
        "error_kind": trial.error_kind,
        "error": last_line(trial.error) or None,
        **flatten(trial.config, "config."),
    }


def _csv_stages(snapshot: Snapshot, stages: Sequence[StageRecord]) -> dict[str, Any]:
    found = {(s.split, s.position): s for s in stages}
    cells: dict[str, Any] = {}
    for split, position, label in snapshot.stage_columns:
        stage = found.get((split, position))
        cells[f"{split}.{label}.images"] = stage and stage.images
        cells[f"{split}.{label}.survivors"] = stage and stage.survivors
    return cells


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
        first = next(iter(snapshot.stages_of(trial, "validation")), None)
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
