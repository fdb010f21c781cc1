from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sweeps.columns import columns_of
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.mirrored import (
    LONGEST_TAG,
    curves,
    finals,
    metric_names,
    param_names,
    params_of,
    sweep_note,
    tags_of,
    trial_note,
)
from sweeps.mirrored_inputs import count_parameters, data_inputs
from sweeps.records import LAUNCHED, Event
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers


def test_clean_accuracy_is_logged_first_and_bounds_by_step(unfinished: Ledger) -> None:
    snapshot, trial = Snapshot.read(unfinished), unfinished.trial(2)
    rows = finals(snapshot, trial, unfinished.events(2))
    assert rows[0][:2] == ("clean_acc", 0.80)
    assert [(row.step, row.value) for row in rows if row.key == "robust_acc"] == [(0, 200 / 256), (1, 180 / 256)]
    assert [row.step for row in rows if row.key == "test_robust_acc"] == [0, 1]


def test_an_attack_is_one_metric_whose_last_value_is_what_is_known(open_ledger: Callable[..., Ledger]) -> None:
    alone = ledgers.planned("FGSM4", 7, cumulative=False)
    other = ledgers.planned("pgd", 8, plan="paper")
    ledger = open_ledger(planned_stages=(*ledgers.parted(), alone, other))
    plan = ledger.sweep().planned_stages
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledgers.train(ledger, 0, 0.9)
        for place, survivors in ((0, 120), (1, 110), (2, 100), (7, 64), (8, 32)):
            done = ledgers.judged(plan[place], survivors)
            ledger.start_stage(replace(done, state="running"))
            ledger.finish_stage(done, exact=False)
    snapshot, trial = Snapshot.read(ledger), ledger.trial(0)
    rows = finals(snapshot, trial, ledger.events(0))
    values = {key: [(row.step, row.value * 256) for row in rows if row.key == key] for key in {r.key for r in rows}}
    assert values["robust_acc"] == [(0, 120), (1, 110), (2, 100)]
    assert values["autoattack_acc"] == [(1, 110), (2, 100)]
    assert (values["FGSM04_acc"], values["paper/pgd_acc"]) == ([(7, 64)], [(8, 32)])
    assert [row.value for row in rows if row.key == "cost/autoattack_forwards"] == [1000, 2000]
    assert not [key for key in values if "apgd" in key]
    tags = tags_of(snapshot, trial)
    assert (tags["trial.robust"], tags["trial.bounds"]) == ("bound", "validation.autoattack")
    assert "trial.test_robust" not in tags
    assert "| validation | autoattack | 100 of 256 | ≤ 0.391, 2 of 6 parts |" in trial_note(snapshot, trial)


def test_what_had_nothing_left_to_attack_is_logged_as_zero(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(planned_stages=ledgers.parted())
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledgers.train(ledger, 0, 0.9)
        ledgers.attack(ledger, 0, 0, exact=True)
    rows = finals(Snapshot.read(ledger), ledger.trial(0), ledger.events(0))
    assert [(row.value, row.step) for row in rows if row.key == "autoattack_acc"] == [(0.0, 6)]
    assert tags_of(Snapshot.read(ledger), ledger.trial(0))["trial.bounds"] == "none"


def test_a_flag_is_a_tag(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    assert tags_of(snapshot, unfinished.trial(2))["trial.flags"] == "none"
    assert tags_of(snapshot, unfinished.trial(2))["trial.test_robust"] == "exact"
    flat = replace(snapshot.stages[2][0], facts={"flat": 50.0, "attacked": 120.0})
    flagged = replace(snapshot, stages={2: (flat, *snapshot.stages[2][1:])})
    assert tags_of(flagged, unfinished.trial(2))["trial.flags"] == "zero-gradients"


def test_curves_have_the_time_when_an_epoch_was_first_heard_of() -> None:
    events = [
        Event(1, 10.0, 0, "epochs", {"from": 0, "to": 1}),
        Event(2, 20.0, 0, "epochs", {"from": 1, "to": 3}),
        Event(3, 30.0, 0, "epochs", {"from": 3, "to": 2}),  # a retry from an older checkpoint
        Event(4, 40.0, 0, "epochs", {"from": 2, "to": 4}),
    ]
    history = [{"epoch": e, "train/loss": value} for e, value in enumerate((2.0, float("nan"), float("inf"), 0.5))]
    rows = [row for epoch in curves(history, events) for row in epoch]
    assert [tuple(row) for row in rows] == [("train/loss", 2.0, 10_000, 1), ("train/loss", 0.5, 40_000, 4)]


@pytest.mark.parametrize(
    ("names", "logged"),
    [
        (("FGSM16", "FGSM4", "FGSM8"), ["FGSM04", "FGSM08", "FGSM16"]),
        (("pgd_eps4_steps20", "pgd_eps12_steps20"), ["pgd_eps04_steps20", "pgd_eps12_steps20"]),
        (("APGD-L2", "pgd_l2", "eps0.5"), ["APGD-L2", "eps0.5", "pgd_l2"]),
        (("CW4", "CW04"), ["CW04", "CW4"]),
    ],
)
def test_the_names_of_attacks_sort_as_their_numbers_do(names: tuple[str, ...], logged: list[str]) -> None:
    stages = [ledgers.planned(name, place, cumulative=False) for place, name in enumerate(names)]
    found = metric_names(columns_of([replace(stage, column=stage.label) for stage in stages]))
    assert sorted(found.values()) == logged
    assert set(found) == {(LAUNCHED, name) for name in names}


def test_costs_are_logged_last(unfinished: Ledger) -> None:
    names = [row.key for row in finals(Snapshot.read(unfinished), unfinished.trial(2), unfinished.events(2))]
    first = next(place for place, name in enumerate(names) if name.startswith("cost/"))
    assert names[:2] == ["clean_acc", "robust_acc"]
    assert all(name.startswith("cost/") for name in names[first:])


def test_a_data_set_is_recorded_once_for_each_split(unfinished: Ledger) -> None:
    sweep = replace(unfinished.sweep(), split_sizes={"validation": 287, "test": 360})
    config = unfinished.trial(0).config
    training, validation, test = data_inputs(sweep, config)
    assert [d.context for d in (training, validation, test)] == ["training", "validation", "test"]
    assert (validation.name, validation.digest) == ("digits/validation", sweep.data_digest)
    assert json.loads(validation.profile) == {"num_rows": 287, "num_classes": 10}
    assert json.loads(training.profile) == {"num_classes": 10}
    elsewhere, *_ = data_inputs(sweep, {**config, "data": {"name": "arrays", "path": "cifar10.npz", "mean": None}})
    assert (elsewhere.source_type, json.loads(elsewhere.source)) == ("local", {"uri": "cifar10.npz"})


def test_the_size_of_a_model_is_read_off_its_file(tmp_path: Path) -> None:
    save_file({"vit.a": torch.zeros(3, 4), "vit.b": torch.zeros(5), "mean": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert count_parameters(tmp_path / "w.safetensors") == 17
    (tmp_path / "broken").write_bytes(b"nothing")
    assert count_parameters(tmp_path / "broken") is None
    assert count_parameters(tmp_path / "absent") is None


def test_a_note_that_is_too_long_ends_with_a_whole_line(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    whole = sweep_note(snapshot, {"Pareto view": "#/x"})
    assert whole.startswith("[Pareto view](#/x)")
    crowded = replace(snapshot, front=snapshot.front * 60)
    cut = sweep_note(crowded, {"Pareto view": "#/x"})
    assert len(cut) <= LONGEST_TAG
    *_, last, blank, told = cut.splitlines()
    assert (last.endswith(" |"), blank, told) == (True, "", "The rest is in the report.")


def test_names_that_mlflow_refuses_are_spelled_differently(open_ledger: Callable[..., Ledger]) -> None:
    assert [row.key for row in curves([{"val/acc[0]=x@y": 1.0}], [])[0]] == ["val/acc_0__x_y"]
    ledger = open_ledger()
    with Lease(ledger):
        config = {"methods": {"a": {"k": 3, "weight": None}, "b": {}}, "plugins": [], "data": {"mean": [0.5]}}
        ledger.propose(0, "a+b", config, {"method": "a+b", "a+b/a.k": 3}, {}, 0)
    trial = ledger.trial(0)
    assert params_of(trial) == {"method": "a+b", "a.k": "3", "data.mean": "[0.5]"}
    assert param_names(trial) == {"method": "method", "a+b/a.k": "a.k"}
