"""What must hold of a sweep after whatever it has met, and what of it must not depend on that."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.export import export_json
from sweeps.ledger import Ledger
from sweeps.summary import status


def results(ledger: Ledger) -> dict[str, Any]:
    """What must not depend on interruptions: everything but times, attempts and run ids."""
    keys = ("number", "state", "config", "params", "seed", "clean_acc", "robust_acc", "exact", "epochs", "error")
    keys += ("test_clean_acc", "test_robust_acc")
    trials = [{k: t[k] for k in keys} for t in export_json(ledger)["trials"]]
    weights = [t.weights_digest for t in ledger.trials()]
    stages = [
        (s.number, s.split, s.attack, s.state, s.digest, s.survivors, s.verdicts.tolist())  # type: ignore[union-attr]
        for s in ledger.stages()
    ]
    return {"trials": trials, "weights": weights, "stages": stages, "front": status(ledger)["front"]}


def assert_nothing_twice(ledger: Ledger, root: Path) -> None:
    """Each trial was proposed, trained and finished once; no epoch was trained twice, no stage ended twice.

    Args: root: folder of the sweep.
    """
    kinds = Counter((event.number, event.kind) for event in ledger.events())
    for trial in ledger.trials():
        number = trial.number
        assert kinds[number, "proposed"] == kinds[number, "trained"] == kinds[number, "finished"] == 1
        log = (root / "trials" / f"{number:05d}" / "log.txt").read_text()
        epochs = re.findall(r"epoch (\d+): ", log)
        assert len(epochs) == len(set(epochs)), f"trial {number} trained an epoch twice:\n{log}"
    ended = Counter((e.number, str(e.detail)) for e in ledger.events() if e.kind == "stage done")
    assert all(count == 1 for count in ended.values())


def assert_judged_once(root: Path) -> None:
    """No image was judged twice by the same attack on the same weights. Args: root: folder of the sweep."""
    judged: dict[Path, list[int]] = {}
    for path in (root / "verdicts").rglob("*.npz"):
        with np.load(path) as unit:
            judged.setdefault(path.parent, []).extend(unit["ids"].tolist())
    assert all(len(ids) == len(set(ids)) for ids in judged.values())


def slow_front(trials: list[dict[str, Any]]) -> list[int]:
    """The front by its O(n²) definition, by falling clean accuracy."""
    exact = [t for t in trials if t["state"] == "finished" and t["exact"]]
    points = {t["number"]: (t["clean_acc"], t["robust_acc"]) for t in exact}
    members = [
        number
        for number, (clean, robust) in points.items()
        if not any(c >= clean and r >= robust and (c, r) != (clean, robust) for c, r in points.values())
    ]
    return sorted(members, key=lambda number: (-points[number][0], -points[number][1], number))


def assert_mirrored(ledger: Ledger, uri: str | None = None) -> None:
    """MLflow has one finished parent and one finished run per trial. Args: uri: where to look, if not where it was."""
    from mlflow import MlflowClient

    sweep, trials = ledger.sweep(), len(ledger.trials())
    assert sweep.mlflow_experiment_id is not None
    runs = MlflowClient(uri or sweep.mlflow_uri).search_runs(
        [sweep.mlflow_experiment_id], f"tags.`sweep.id` = '{sweep.id}'", max_results=1000
    )
    roles = Counter(run.data.tags["sweep.role"] for run in runs)
    assert roles == {"sweep": 1, "trial": trials}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(int(r.data.tags["trial.number"]) for r in runs if "trial.number" in r.data.tags) == list(
        range(trials)
    )
