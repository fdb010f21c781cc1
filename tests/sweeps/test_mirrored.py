from __future__ import annotations

from collections.abc import Callable

from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.mirrored import curves, finals, param_names, params_of
from sweeps.records import Event
from sweeps.snapshot import Snapshot


def test_clean_accuracy_is_logged_first_and_bounds_by_step(unfinished: Ledger) -> None:
    snapshot, trial = Snapshot.read(unfinished), unfinished.trial(2)
    rows = finals(snapshot, trial, unfinished.events(2))
    assert rows[0][:2] == ("clean_acc", 0.80)
    assert [(row.step, row.value) for row in rows if row.key == "robust_acc"] == [(0, 200 / 256), (1, 180 / 256)]
    assert [row.step for row in rows if row.key == "test_robust_acc"] == [0, 1]


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


def test_names_that_mlflow_refuses_are_spelled_differently(open_ledger: Callable[..., Ledger]) -> None:
    assert [row.key for row in curves([{"val/acc[0]=x@y": 1.0}], [])[0]] == ["val/acc_0__x_y"]
    ledger = open_ledger()
    with Lease(ledger):
        config = {"methods": {"a": {"k": 3, "weight": None}, "b": {}}, "plugins": [], "data": {"mean": [0.5]}}
        ledger.propose(0, "a+b", config, {"method": "a+b", "a+b.a.k": 3}, {}, 0)
    trial = ledger.trial(0)
    assert params_of(trial) == {"method": "a+b", "a.k": "3", "data.mean": "[0.5]"}
    assert param_names(trial) == {"method": "method", "a+b.a.k": "a.k"}
