"""Expected times against sums by hand, from the seconds that a made ledger holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.resources import Shares
from sweeps.forecast import Plan, Range
from sweeps.ledger import Ledger
from sweeps.wall_time import Measured, conditions, estimate, in_words, measure
from tests.sweeps import ledgers

HAD = {"trial_cpus": 1.0, "trial_gpus": 0.0, "evaluation_cpus": 1.0, "evaluation_gpus": 0.0}
ALONE = Shares(1, 1.0, 0.0, 1, 1.0, 0.0)


def measured_in(ledger: Ledger) -> Measured | None:
    planned = ledger.sweep().planned_stages
    return measure("before", ledger.trials(), ledger.stages(), planned, 100, HAD, "tiny")


def plan(**changes: Any) -> Plan:
    """The part of a plan that matters here: 10 trials of 2 to 4 epochs of 200 images."""
    stages = (SimpleNamespace(label="pgd", images=50), SimpleNamespace(label="autoattack", images=50))
    values: dict[str, Any] = {
        "config": SimpleNamespace(trials=10),
        "epochs": Range(2, 4),
        "data": SimpleNamespace(train=200),
        "model": SimpleNamespace(names=("tiny",)),
        "parents": (),
        "stages": stages,
        "test_stages": (),
    }
    return SimpleNamespace(**{**values, **changes})  # type: ignore[return-value]


def test_seconds_are_those_of_the_trained_trials_per_image_and_epoch(unfinished: Ledger) -> None:
    found = measured_in(unfinished)
    assert found is not None
    assert found.trials == 5  # 0 to 3, and 7
    assert found.seconds_per_image == pytest.approx(4.5 / 100)  # 4.5 s an epoch of 100 images
    images = unfinished.sweep().planned_stages[0].images
    assert found.attacks["validation", "pgd"] == pytest.approx(4 * 2.5 / images / 5)
    assert found.attacks["validation", "autoattack"] == pytest.approx(3 * 32.5 / images / 5)
    assert found.attacks["test", "autoattack"] == pytest.approx(32.5 / images / 5)


def test_a_sweep_in_which_nothing_was_trained_tells_nothing(folder: Any) -> None:
    ledger = ledgers.empty(folder)
    assert measured_in(ledger) is None
    ledger.close()


def test_trainings_run_in_rounds_and_first_attacks_beside_them() -> None:
    like = Measured("before", 5, 0.01, {("validation", "pgd"): 0.02, ("validation", "autoattack"): 0.1}, HAD)
    found = estimate(plan(), Shares(4, 1.0, 0.0, 1, 1.0, 0.0), like)
    assert found.training == Range(3 * 2 * 200 * 0.01, 3 * 4 * 200 * 0.01)  # ⌈10 / 4⌉ rounds
    assert found.beside == pytest.approx(10 * 50 * 0.02)
    assert found.later == pytest.approx(10 * 50 * 0.1 / 4)  # the trainings' places are free then
    assert found.total.low == pytest.approx(12 + 12.5)
    assert found.total.high == pytest.approx(24 + 12.5)
    assert found.unknown == ()


def test_attacks_that_outlast_the_trainings_decide() -> None:
    like = Measured("before", 5, 0.0001, {("validation", "pgd"): 1.0}, HAD)
    found = estimate(plan(), ALONE, like)
    assert found.total == Range(500, 500)
    assert found.unknown == ("autoattack",)


def test_parents_are_trained_before() -> None:
    like = Measured("before", 5, 0.01, {}, HAD)
    with_parent = plan(parents=(SimpleNamespace(recipe=SimpleNamespace(epochs=7)),))
    assert estimate(with_parent, ALONE, like).training.low - estimate(plan(), ALONE, like).training.low == 14


def test_what_differs_from_the_measured_sweep_is_said() -> None:
    like = Measured("before", 5, 0.01, {}, HAD, "tiny")
    assert conditions(plan(), ALONE, like) == []
    on_gpu = Shares(4, 2.0, 0.75, 1, 1.0, 0.25)
    assert conditions(plan(model=SimpleNamespace(names=("large",))), on_gpu, like) == [
        "there the model was tiny",
        "there 1 CPU of a training, here 2",
        "there 0 GPU of a training, here 0.75",
        "there 0 GPU of an attack, here 0.25",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h"), (864000, "10.0 days")]
)
def test_times_are_in_the_unit_that_a_person_would_take(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
