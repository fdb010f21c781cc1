from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.summary import front_of, headline, public_trial, robust_interval, status, sweep_state, wilson
from tests.sweeps import ledgers


def test_status_names_every_number_that_a_person_asks_for(unfinished: Ledger) -> None:
    found = status(unfinished)
    json.dumps(found, allow_nan=False)
    assert (found["name"], found["state"]) == ("digits", "interrupted")
    assert found["trials"] == {
        "requested": 8,
        "proposed": 1,
        "training": 1,
        "trained": 0,
        "evaluating": 1,
        "finished": 4,
        "stopped": 0,
        "failed": 1,
        "to_go": 0,
    }
    assert [entry["trial"] for entry in found["open"]] == [5, 6, 7]
    assert [entry["trial"] for entry in found["front"]] == [0, 1, 2]
    assert found["front"][2]["test_robust_acc"] == 170 / 256


def test_status_of_an_empty_sweep_has_an_empty_front(open_ledger: Callable[..., Ledger]) -> None:
    found = status(open_ledger())
    assert (found["front"], found["open"], found["trials"]["to_go"]) == ([], [], 8)


def test_a_sweep_is_running_only_while_a_driver_lives(unfinished: Ledger) -> None:
    assert sweep_state(unfinished) == "interrupted"
    with Lease(unfinished):
        assert sweep_state(unfinished) == "running"
    assert sweep_state(unfinished) == "interrupted"


def test_a_complete_sweep_is_finished(finished: Ledger) -> None:
    assert sweep_state(finished) == "finished"
    assert headline(finished.sweep(), finished.trials()) == "3 of 4 trials finished, 1 failed"


def test_a_bound_is_never_on_the_front(unfinished: Ledger) -> None:
    trials = unfinished.trials()
    better = dataclasses.replace(trials[3], clean_acc=0.99, robust_acc=0.99)
    assert [t.number for t in front_of([*trials[:3], better], ("clean_acc", "robust_acc"))] == [0, 1, 2]


def test_the_front_of_one_objective_is_its_best_trial(unfinished: Ledger) -> None:
    assert [t.number for t in front_of(unfinished.trials(), ("robust_acc",))] == [2]
    assert [t.number for t in front_of(unfinished.trials(), ("clean_acc",))] == [0]


def test_a_public_trial_is_json_with_its_attacks(unfinished: Ledger) -> None:
    stages = unfinished.stages()
    found = public_trial(unfinished.trial(2), stages)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [(a["split"], a["attack"], a["survivors"]) for a in found["attacks"]] == [
        ("validation", "pgd", 200),
        ("validation", "autoattack", 180),
        ("test", "pgd", 190),
        ("test", "autoattack", 170),
    ]
    failed = public_trial(unfinished.trial(4), stages)
    assert (failed["state"], failed["attacks"]) == (str(State.FAILED), [])
    assert failed["error"]["kind"] == "nan"


def test_wilsons_interval_matches_published_values() -> None:
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29
    for successes, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(successes, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_stays_in_range(drawn: tuple[int, int]) -> None:
    successes, count = drawn
    low, high = wilson(successes, count)
    rounding = 1e-12
    assert 0 <= low <= successes / count + rounding
    assert successes / count - rounding <= high <= 1
    mirrored = wilson(count - successes, count)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


def test_the_interval_is_that_of_the_last_attack_on_the_split(unfinished: Ledger) -> None:
    stages = unfinished.stages()
    assert robust_interval(stages, 2) == wilson(180, 256)
    assert robust_interval(stages, 2, "test") == wilson(170, 256)
    assert robust_interval(stages, 3) == wilson(150, 256)
    assert robust_interval(stages, 7) is None  # running
    assert robust_interval(stages, 5) is None


def test_neither_a_column_nor_another_plan_moves_the_interval(unfinished: Ledger) -> None:
    stages = unfinished.stages()
    column = ledgers.judged(ledgers.planned("FGSM4", 2, cumulative=False), 10, 2)
    other = ledgers.judged(ledgers.planned("pgd", 3, plan="paper"), 5, 2)
    assert robust_interval([*stages, column, other], 2) == wilson(180, 256)


def test_ledgers_are_built_as_a_driver_would(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(ledgers.large, 12)
    assert sweep_state(ledger) == "finished"
    assert all(t.test_robust_acc is not None for t in front_of(ledger.trials(), ledger.sweep().objectives))
