from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces.errors import ConfigError
from sweeps.allocation import Spent, next_label
from sweeps.records import State, TrialRecord
from sweeps.study import SearchStudy
from tests.sweeps.test_study import record, sweep

LABELS = ("plain", "jasmin")


def run(count: int, seconds: Callable[[str], float] = lambda label: 1.0, **search: Any) -> list[TrialRecord]:
    """Propose and finish one trial after the other. Args: seconds: that the training of a method takes."""
    study, done = SearchStudy(sweep(**search), []), []
    for number in range(count):
        proposal = study.propose(number)
        label = proposal.config.label
        values = {"clean_acc": 0.9 - 0.01 * number, "robust_acc": 0.1 + 0.02 * number}
        done.append(record(proposal, State.FINISHED, exact=True, train_seconds=seconds(label), **values))
        study.tell(done[-1])
    return done


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_with_an_equal_allocation_every_method_gets_the_same_number_of_trials(sampler: str) -> None:
    for count in (6, 7, 12):
        given = Counter(trial.label for trial in run(count, sampler=sampler, allocation="equal"))
        assert max(given.values()) - min(given.values()) <= 1


def test_known_configurations_count() -> None:
    known = [{"method": "jasmin", "jasmin.k": 4}, {"method": "jasmin", "jasmin.k": 8}, {"method": "jasmin"}]
    trials = run(8, allocation="equal", known=known)
    assert [trial.label for trial in trials] == ["jasmin"] * 3 + ["plain"] * 3 + ["plain", "jasmin"]
    assert [trial.params.get("jasmin.k") for trial in trials[:2]] == [4, 8]


def test_equal_seconds_give_a_method_that_takes_thrice_as_long_a_third_of_the_trials() -> None:
    trials = run(40, lambda label: 3.0 if label == "jasmin" else 1.0, sampler="random", allocation="equal_seconds")
    assert Counter(trial.label for trial in trials) == {"plain": 30, "jasmin": 10}


def test_open_trials_count_with_what_others_of_their_method_took() -> None:
    spent = {"plain": Spent(3, {0: 10.0}), "jasmin": Spent(1, {1: 25.0})}
    assert spent["plain"].expected_seconds == 30.0
    assert next_label("equal_seconds", LABELS, spent) == "jasmin"
    assert next_label("equal_seconds", LABELS, {**spent, "jasmin": Spent(1)}) == "jasmin"


@pytest.mark.parametrize("allocation", ["equal", "equal_seconds"])
def test_a_study_that_is_rebuilt_before_every_proposal_allocates_and_proposes_the_same(allocation: str) -> None:
    expected = run(10, lambda label: 1.5 if label == "jasmin" else 1.0, allocation=allocation)
    for number, trial in enumerate(expected):
        proposal = SearchStudy(sweep(allocation=allocation), expected[:number]).propose(number)
        assert (proposal.params, proposal.config.plain()) == (trial.params, trial.config)


def test_what_one_method_is_told_moves_no_proposal_of_another() -> None:
    def jasmin_after(clean_acc_of_plain: float, allocation: str) -> list[Any]:
        study, proposed = SearchStudy(sweep(allocation=allocation, startup_trials=4), []), []
        for number in range(12):
            known = {"method": LABELS[number % 2]}
            proposal = study.propose(number, known)
            clean = clean_acc_of_plain * number if proposal.config.label == "plain" else 0.5 + number / 100
            study.tell(record(proposal, State.FINISHED, exact=True, clean_acc=clean, robust_acc=0.5 - number / 100))
            proposed.append(proposal)
        return [p.params for p in proposed if p.config.label == "jasmin"]

    assert jasmin_after(0.01, "equal") == jasmin_after(0.09, "equal")
    assert jasmin_after(0.01, "shared") != jasmin_after(0.09, "shared")


def test_a_grid_has_no_allocation() -> None:
    with pytest.raises(ConfigError, match=r"search.allocation: .*a grid fixes the method of every trial"):
        sweep(sampler="grid", allocation="equal")
