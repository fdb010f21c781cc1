from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces.errors import SweepError
from sweeps.export import export_csv, export_json, export_optuna
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import PlannedStage
from sweeps.requests import Request
from sweeps.snapshot import flatten
from sweeps.summary import wilson
from tests.sweeps import ledgers


def test_json_has_the_sweep_and_every_trial(unfinished: Ledger) -> None:
    found = export_json(unfinished)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["sweep"]["front"] == [0, 1, 2]
    assert found["sweep"]["front_settled"] is True
    assert found["sweep"]["environment"]["git"]["revision"] == "0123abcd"
    assert [t["number"] for t in found["trials"]] == list(range(8))
    assert found["trials"][4]["error"]["text"] == ledgers.TRACEBACK
    assert [len(t["attacks"]) for t in found["trials"]] == [2, 2, 4, 1, 0, 0, 0, 1]


def test_json_has_every_column_of_a_trial_its_flags_and_its_cost(unfinished: Ledger) -> None:
    found = export_json(unfinished)
    columns = found["trials"][3]["columns"]
    assert [(c["split"], c["column"]) for c in columns] == [
        (split, attack) for split in ("validation", "test") for attack in ("pgd", "autoattack")
    ]
    low, high = wilson(150, 256)
    assert columns[0] == {
        "split": "validation",
        "plan": "sweep",
        "column": "pgd",
        "threat": {"norm": "linf", "epsilon": 8 / 255},
        "accuracy": 150 / 256,
        "exact": True,
        "images": 256,
        "survivors": 150,
        "low": low,
        "high": high,
        "done": 1,
        "planned": 1,
    }
    assert (columns[1]["accuracy"], columns[1]["exact"], columns[1]["done"]) == (None, False, 0)
    assert [t["test_exact"] for t in found["trials"][:4]] == [False, False, True, False]
    trial = found["trials"][3]
    assert (trial["flags"], trial["mismatches"]) == ([], {"images": 0, "attacked": 0})
    assert trial["cost"] == {"passes": 256 * 60, "saved_by_early_exit": 0, "saved_by_pruning": 150 * 1000}
    costs = [t["cost"]["passes"] for t in found["trials"]]
    assert found["sweep"]["cost"]["passes"] == sum(costs)
    assert found["sweep"]["cost"]["share"] == sum(costs) / (sum(costs) + 150 * 1000)


def test_planned_stages_are_written_whole(unfinished: Ledger) -> None:
    shown = export_json(unfinished)["sweep"]["planned_stages"]
    again = tuple(PlannedStage.from_plain(stage) for stage in json.loads(json.dumps(shown)))
    assert again == unfinished.sweep().planned_stages


def test_csv_marks_bounds_and_names_other_plans(open_ledger: Callable[..., Ledger]) -> None:
    other = ledgers.planned("pgd", 7, plan="paper", threat={"norm": "linf", "epsilon": 4 / 255})
    ledger = open_ledger(planned_stages=(*ledgers.parted(), other))
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledgers.train(ledger, 0, 0.9)
        for stage, survivors in zip(ledger.sweep().planned_stages[:3], (120, 110, 100), strict=True):
            done = ledgers.judged(stage, survivors, facts={"flat": 50.0, "attacked": 120.0})
            ledger.start_stage(replace(done, state="running"))
            ledger.finish_stage(done, exact=False)
    (row,) = csv.DictReader(io.StringIO(export_csv(ledger)))
    cells = [row[f"validation.{name}"] for name in ("pgd.survivors", "pgd.exact", "autoattack.survivors")]
    assert cells == ["120", "True", "100"]
    assert (row["validation.autoattack.exact"], row["paper.validation.pgd.exact"]) == ("False", "")
    assert (row["exact"], row["flags"]) == ("False", "zero-gradients")
    assert (row["passes"], row["saved_by_pruning"]) == (str(3 * 2000), str(100 * 4000))


def test_csv_has_one_row_per_trial_failures_included(unfinished: Ledger) -> None:
    rows = list(csv.DictReader(io.StringIO(export_csv(unfinished))))
    assert [row["number"] for row in rows] == [str(n) for n in range(8)]
    assert [row["front"] for row in rows[:4]] == ["True", "True", "True", "False"]
    assert (rows[2]["test.autoattack.survivors"], rows[2]["test_robust_acc"]) == ("170", str(170 / 256))
    assert (rows[3]["validation.pgd.survivors"], rows[3]["validation.autoattack.survivors"]) == ("150", "")
    assert rows[4]["error"] == "search_spaces.errors.LossDiverged: the loss of step 12 is <nan>"
    assert rows[1]["config.methods.jasmin.k"] == "4"
    assert rows[0]["config.methods.jasmin.k"] == ""
    assert float(rows[0]["config.training.learning_rate"]) == unfinished.trial(0).params["training.learning_rate"]


def test_csv_of_an_empty_sweep_is_empty(open_ledger: Callable[..., Ledger]) -> None:
    assert export_csv(open_ledger()).strip() == ""


def test_flat_names_are_dotted() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": 1, "a.d": "[1, 2]", "e": None}


def test_the_optuna_study_holds_what_the_search_was_told(unfinished: Ledger, tmp_path: Path) -> None:
    import optuna
    from optuna.trial import TrialState

    path = export_optuna(unfinished, tmp_path / "study.db")
    assert [p.name for p in tmp_path.glob("*study*")] == ["study.db"]
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.load_study(study_name="digits", storage=storage)
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    trials = study.trials
    assert [t.state for t in trials] == [
        *[TrialState.COMPLETE] * 4,
        TrialState.FAIL,
        *[TrialState.RUNNING] * 3,
    ]
    assert trials[2].values == [0.80, 200 / 256]  # after the first attack, as every trial's
    assert trials[2].user_attrs["robust_acc"] == 180 / 256
    assert trials[2].user_attrs["test_robust_acc"] == 170 / 256
    assert [t.number for t in trials] == [t.user_attrs["trial"] for t in trials]
    for mine, theirs in zip(unfinished.trials(), trials, strict=True):
        assert theirs.params == mine.params
        assert theirs.user_attrs["method"] == mine.label
    assert trials[2].duration is not None
    storage.engine.dispose()


def test_a_stopped_trial_is_pruned_without_values(open_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
    import optuna

    ledger = open_ledger(objectives=("robust_acc",))
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledger.start_training(0)
        ledger.grant(Request.make("stop", trials=(0,)))
    storage = optuna.storages.RDBStorage(f"sqlite:///{export_optuna(ledger, tmp_path / 'study.db')}")
    (trial,) = optuna.load_study(study_name="digits", storage=storage).trials
    assert (trial.state, trial.values) == (optuna.trial.TrialState.PRUNED, None)
    storage.engine.dispose()


def test_no_file_is_overwritten(unfinished: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("mine")
    with pytest.raises(SweepError, match="exists"):
        export_optuna(unfinished, path)
    assert path.read_text() == "mine"
