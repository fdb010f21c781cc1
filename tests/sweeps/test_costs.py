"""Costs: passes that were spent, and those that early exit and pruning spared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sweeps.costs import Cost, cost_of
from sweeps.ledger import Ledger
from sweeps.records import State, TrialRecord
from tests.sweeps import ledgers
from tests.sweeps.ledgers import judged, parted, planned


@pytest.fixture
def trial(open_ledger: Callable[..., Ledger]) -> TrialRecord:
    """A finished trial whose robust accuracy is a bound."""
    ledger = open_ledger()
    with ledgers.Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 100, None)
    return ledger.trial(0)


def test_a_backward_pass_counts_as_two_on_every_split_and_plan(trial: TrialRecord) -> None:
    plan = parted()
    stages = [judged(plan[0], 90, forwards=10, backwards=7), judged(planned("cw", 0, "test", plan="paper"), 9)]
    assert cost_of(replace(trial, exact=True), stages, plan) == Cost(10 + 2 * 7 + 1000 + 2 * 500)


def test_early_exit_saves_the_rest_of_the_budget_of_each_stage(trial: TrialRecord) -> None:
    plan = parted()
    stages = [
        judged(plan[0], 90, forwards=10, backwards=5, facts={"budget": 61.0}),
        judged(plan[1], 80, forwards=90, backwards=5, facts={"budget": 60.0}),  # what the judge adds is no loss
        judged(plan[2], 80, forwards=1, backwards=1),
    ]
    assert cost_of(replace(trial, exact=True), stages, plan).saved_by_exit == 41


@pytest.mark.parametrize("done", range(1, 8))
def test_pruning_saves_at_most_the_missing_stages_on_what_is_left(trial: TrialRecord, done: int) -> None:
    plan = (*parted(), planned("cw", 7, cumulative=False), planned("pgd", 8, plan="paper"), *parted("test"))
    stages = [judged(stage, 100 - 10 * i) for i, stage in enumerate(plan[:done])]
    slow = sum(100 - 10 * (done - 1) for place in range(7) if place >= done for _ in range(1000))
    assert cost_of(trial, stages, plan).saved_by_pruning == slow


def test_what_was_not_spared_is_not_saved(trial: TrialRecord) -> None:
    plan = parted()
    ran = [judged(plan[0], 100), judged(plan[1], 80)]
    failed = replace(judged(plan[2], 0), state="failed", survivors=None, images=None)
    assert cost_of(trial, ran, plan).saved_by_pruning == 80 * 5000
    assert cost_of(trial, [*ran, failed], plan).saved_by_pruning == 0
    assert cost_of(replace(trial, exact=True), ran, plan).saved_by_pruning == 0
    assert cost_of(replace(trial, state=State.EVALUATING), ran, plan).saved_by_pruning == 0
    assert cost_of(trial, [*ran, replace(failed, state="running")], plan).saved_by_pruning == 80 * 4000
    silent = [replace(stage, passes=None) for stage in plan]
    assert cost_of(trial, ran, silent).saved_by_pruning == 0


def test_costs_add_up_and_say_which_share_was_spent() -> None:
    total = sum((Cost(30, 5, 5), Cost(20, 0, 40)), Cost())
    assert total == Cost(50, 5, 45)
    assert total.saved == 50
    assert total.share == 0.5
    assert Cost().share is None
