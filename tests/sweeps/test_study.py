from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sweeps.config import SweepConfig, parse_sweep
from sweeps.records import StageRecord, State, TrialRecord
from sweeps.study import Proposal, SearchStudy, trial_seed

DOCUMENT: dict[str, Any] = {
    "model": {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "data": {"name": "digits"},
    "training": {"epochs": 2, "learning_rate": {"log_uniform": [1e-3, 1e-2]}},
    "methods": ["plain", {"jasmin": {"k": [0, 4, 8]}}],
    "attacks": {"epsilon": 0.05, "stages": ["pgd"]},
}


def sweep(**search: Any) -> SweepConfig:
    return parse_sweep({**DOCUMENT, "search": {"trials": 20, "startup_trials": 3, **search}})


def record(proposal: Proposal, state: State, **values: Any) -> TrialRecord:
    return TrialRecord(
        number=proposal.number,
        state=state,
        label=proposal.config.label,
        config=proposal.config.plain(),
        params=proposal.params,
        distributions=proposal.distributions,
        seed=proposal.seed,
        created_at=0.0,
        updated_at=0.0,
        revision=1,
        **values,
    )


def values_of(number: int) -> Mapping[str, float]:
    return {"clean_acc": 0.9 - 0.01 * number, "robust_acc": 0.1 + 0.02 * number}


def undisturbed(config: SweepConfig, count: int) -> list[TrialRecord]:
    """Propose and tell one trial after the other, with one study."""
    study, done = SearchStudy(config, []), []
    for number in range(count):
        done.append(record(study.propose(number), State.FINISHED, exact=True, **values_of(number)))
        study.tell(done[-1])
    return done


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_that_is_rebuilt_before_every_proposal_proposes_the_same_trials(sampler: str) -> None:
    config = sweep(sampler=sampler)
    expected = undisturbed(config, 8)
    rebuilt: list[TrialRecord] = []
    for number in range(8):
        proposal = SearchStudy(config, rebuilt).propose(number)
        rebuilt.append(record(proposal, State.FINISHED, exact=True, **values_of(number)))
    assert rebuilt == expected


def test_a_rebuilt_study_is_told_the_first_stage_whatever_came_later() -> None:
    config = sweep(sampler="tpe")
    done = undisturbed(config, 8)
    lowered = [replace(t, robust_acc=0.0) for t in done]
    stages = [
        StageRecord(t.number, "validation", position, "pgd", {}, "", "done", 0.0, images=100, survivors=count)
        for t in done
        for position, count in enumerate((round(100 * (t.robust_acc or 0)), 0))
    ]
    assert SearchStudy(config, lowered, stages).propose(8) == SearchStudy(config, done).propose(8)
    assert SearchStudy(config, lowered).propose(8) != SearchStudy(config, done).propose(8)


def test_a_restart_never_repeats_a_proposal() -> None:
    proposals = undisturbed(sweep(sampler="tpe"), 12)
    assert len({str(p.config) for p in proposals}) == 12


def test_proposals_depend_on_the_sweeps_seed() -> None:
    first, second = (undisturbed(sweep(sampler="random", seed=seed), 3) for seed in (0, 1))
    assert [t.config for t in first] != [t.config for t in second]
    assert [t.seed for t in first] != [t.seed for t in second]


def test_known_configurations_come_first_and_what_they_leave_out_is_drawn() -> None:
    config = sweep(sampler="random", known=[{"method": "jasmin", "jasmin.k": 4}, {"method": "plain"}])
    trials = undisturbed(config, 3)
    assert [t.label for t in trials[:2]] == ["jasmin", "plain"]
    assert trials[0].config["methods"]["jasmin"]["k"] == 4
    assert 1e-3 <= trials[0].config["training"]["learning_rate"] <= 1e-2


def test_open_and_failed_trials_do_not_stop_the_search() -> None:
    config = sweep(sampler="tpe")
    done = undisturbed(config, 4)
    study = SearchStudy(config, done)
    running, failing = study.propose(4), study.propose(5)
    again = SearchStudy(config, [*done, record(running, State.TRAINING), record(failing, State.FAILED)])
    assert again.propose(6).number == 6


def test_a_trial_is_told_once() -> None:
    config = sweep(sampler="random")
    study = SearchStudy(config, [])
    finished = record(study.propose(0), State.FINISHED, exact=True, **values_of(0))
    study.tell(finished)
    with pytest.raises(ValueError, match="Cannot tell"):
        study.tell(finished)


def test_trials_of_all_sweeps_have_seeds_of_their_own() -> None:
    seeds = {trial_seed(sweep_seed, number) for sweep_seed in range(5) for number in range(100)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**31 for seed in seeds)
