from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from search_spaces.errors import IllegalTransition, LeaseHeld, LeaseLost, LedgerError
from sweeps.folder import SweepFolder
from sweeps.lease import LIFETIME_S, Lease, is_alive, process_start
from sweeps.ledger import Ledger
from sweeps.records import LeaseRecord, State
from tests.sweeps import ledgers

MAKE_STATE: dict[State, Callable[[Ledger], object]] = {
    State.PROPOSED: lambda ledger: None,
    State.TRAINING: lambda ledger: ledger.start_training(0),
    State.TRAINED: lambda ledger: ledgers.train(ledger, 0, 0.9),
    State.EVALUATING: lambda ledger: (
        ledgers.train(ledger, 0, 0.9),
        ledger.start_stage(ledgers.stage_record(0)),
    ),
    State.FINISHED: lambda ledger: (ledgers.train(ledger, 0, 0.9), ledgers.attack(ledger, 0, 100)),
    State.FAILED: lambda ledger: ledger.fail(0, "nan", "boom"),
}
TRANSITIONS: dict[str, tuple[Callable[[Ledger], object], set[State]]] = {
    "start_training": (lambda ledger: ledger.start_training(0), {State.PROPOSED, State.TRAINING}),
    "finish_training": (lambda ledger: ledger.finish_training(0, 0.9, "w", 1.0), {State.TRAINING}),
    "start_stage": (lambda ledger: ledger.start_stage(ledgers.stage_record(0)), {State.TRAINED, State.EVALUATING}),
    "finish_without_attack": (lambda ledger: ledger.finish_without_attack(0), {State.TRAINED, State.EVALUATING}),
    "fail": (
        lambda ledger: ledger.fail(0, "exception", "boom"),
        {State.PROPOSED, State.TRAINING, State.TRAINED, State.EVALUATING},
    ),
}


@pytest.mark.parametrize("state", MAKE_STATE)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_only_the_drawn_transitions_are_possible(
    open_ledger: Callable[..., Ledger], state: State, transition: str
) -> None:
    act, allowed = TRANSITIONS[transition]
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        MAKE_STATE[state](ledger)
        assert ledger.trial(0).state is state
        before = (ledger.trial(0), ledger.stages(0), len(ledger.events()))
        if state in allowed:
            act(ledger)
            assert ledger.trial(0).revision > before[0].revision
        else:
            with pytest.raises(IllegalTransition, match="trial 0"):
                act(ledger)
            assert (ledger.trial(0), ledger.stages(0), len(ledger.events())) == before


def test_a_finished_trial_keeps_everything_that_was_measured(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "jasmin", 0.9, 120, 100)
    trial = ledger.trial(0)
    assert (trial.state, trial.clean_acc, trial.robust_acc, trial.exact) == (State.FINISHED, 0.9, 100 / 256, True)
    assert (trial.attempts, trial.epochs, trial.weights_digest) == (1, 3, "weights-0")
    first, second = ledger.stages(0)
    assert (first.attack, first.survivors, second.attack, second.survivors) == ("pgd", 120, "autoattack", 100)
    assert second.verdicts is not None
    np.testing.assert_array_equal(second.verdicts, np.arange(256) < 100)
    assert ledger.history(0) == ledgers.history(3)


@pytest.mark.parametrize("number", [1, 2])
def test_numbers_are_given_without_gaps(open_ledger: Callable[..., Ledger], number: int) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        with pytest.raises(IllegalTransition, match="next proposal is number 0"):
            ledgers.propose(ledger, number)
        ledgers.propose(ledger, 0)
        with pytest.raises(IllegalTransition, match="next proposal is number 1"):
            ledgers.propose(ledger, 0)
    assert [t.number for t in ledger.trials()] == [0]


def test_parents_are_numbered_downwards_and_are_in_no_list_and_no_count_of_trials(
    open_ledger: Callable[..., Ledger],
) -> None:
    ledger = open_ledger(ledgers.empty, requested=1)
    with Lease(ledger):
        with pytest.raises(IllegalTransition, match="next proposal is number -1"):
            ledger.propose(-2, "robust", {}, {}, {}, 1)
        ledger.propose(-1, "robust", {}, {}, {}, 1)
        with pytest.raises(IllegalTransition, match="next proposal is number -2"):
            ledger.propose(-1, "robust", {}, {}, {}, 1)
        ledger.propose(-2, "other", {}, {}, {}, 1)
        assert sum(ledger.counts().values()) == 0
        ledgers.finish(ledger, 0, "jasmin", 0.9, 120, 100)
        assert [t.number for t in ledger.trials()] == [t.number for t in ledger.trials([*State])] == [0]
        assert [p.number for p in ledger.parents()] == [-1, -2]
        ledger.complete()  # whatever state they are in
    assert sum(ledger.counts().values()) == 1


def test_counts_add_up_to_the_proposed_trials(unfinished: Ledger) -> None:
    counts = unfinished.counts()
    assert set(counts) == set(State)
    assert sum(counts.values()) == len(unfinished.trials()) == 8
    assert counts[State.FINISHED] == 4
    assert counts[State.STOPPED] == 0


def test_a_sweep_with_open_trials_is_not_complete(unfinished: Ledger) -> None:
    with Lease(unfinished), pytest.raises(IllegalTransition, match="3 trials are open"):
        unfinished.complete()
    assert unfinished.sweep().completed_at is None


def test_a_larger_total_reopens_a_complete_sweep(finished: Ledger) -> None:
    assert finished.sweep().completed_at is not None
    with Lease(finished):
        finished.raise_total(6)
    assert (finished.sweep().requested, finished.sweep().completed_at) == (6, None)


def test_every_change_of_a_trial_raises_its_revision_and_leaves_an_event(unfinished: Ledger) -> None:
    for trial in unfinished.trials():
        events = unfinished.events(trial.number)
        assert trial.revision == events[-1].sequence
        assert [e.sequence for e in events] == sorted(e.sequence for e in events)


def test_what_mlflow_has_seen_is_no_change(finished: Ledger) -> None:
    before = finished.trial(0)
    with Lease(finished):
        finished.note_mlflow_trial(0, "run", before.revision)
    after = finished.trial(0)
    assert (after.mlflow_run_id, after.mlflow_revision, after.revision) == ("run", before.revision, before.revision)


def test_retries_count_failures_apart_from_interruptions(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledger.start_training(0)
        ledger.start_training(0)  # an interruption: nothing failed
        ledger.note_failure(0, "crash", "killed")
        ledger.start_training(0)
        trial = ledger.trial(0)
        assert (trial.attempts, trial.failures, trial.error_kind) == (3, 1, "crash")
        ledger.finish_training(0, 0.9, "w", 1.0)
        assert (ledger.trial(0).error_kind, ledger.trial(0).error) == (None, None)


def test_verdicts_are_adopted_once(finished: Ledger) -> None:
    stage = finished.stages(0)[0]
    with Lease(finished), pytest.raises(IllegalTransition, match="is done, not running"):
        finished.finish_stage(stage, exact=False)


def test_a_stage_without_verdicts_is_not_adopted(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledgers.train(ledger, 0, 0.9)
        stage = ledgers.stage_record(0)
        ledger.start_stage(stage)
        with pytest.raises(LedgerError, match="not done"):
            ledger.finish_stage(stage, exact=False)


def test_a_failed_first_attack_fails_the_trial_and_a_later_one_does_not(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 100, None)
        later = ledgers.stage_record(0, position=1)
        ledger.start_stage(later)
        ledger.fail_stage(later, "out of memory")
        ledgers.propose(ledger, 1)
        ledgers.train(ledger, 1, 0.9)
        ledger.start_stage(ledgers.stage_record(1))
        ledger.fail_stage(ledgers.stage_record(1), "out of memory")
    assert ledger.trial(0).state is State.FINISHED
    assert (ledger.trial(0).robust_acc, ledger.trial(0).exact) == (100 / 256, False)
    assert (ledger.trial(1).state, ledger.trial(1).error_kind) == (State.FAILED, "attack")


def test_test_figures_stand_beside_and_change_no_value(finished: Ledger) -> None:
    trial = finished.trial(0)
    assert (trial.robust_acc, trial.test_robust_acc, trial.test_clean_acc) == (20 / 256, 15 / 256, 0.9)


def test_only_the_launched_plans_cascade_changes_a_trials_values(finished: Ledger) -> None:
    before = finished.trial(0)
    column = ledgers.planned("FGSM4", 2, cumulative=False)
    other = ledgers.planned("pgd", 3, plan="paper")
    tested = ledgers.planned("pgd", 2, "test", plan="paper")
    with Lease(finished):
        finished.add_plan("paper", [other, tested])
        for stage in (column, other, tested):
            done = ledgers.judged(stage, 3, facts={"attacked": 20.0})
            finished.start_stage(dataclasses.replace(done, state="running"))
            finished.finish_stage(done, exact=False)
            assert done in finished.stages(0)
    after = finished.trial(0)
    values = ("state", "robust_acc", "exact", "test_robust_acc", "test_clean_acc", "ended_at")
    assert [getattr(after, name) for name in values] == [getattr(before, name) for name in values]
    assert after.revision > before.revision


def test_a_plan_is_added_once_behind_those_that_are_there(finished: Ledger) -> None:
    before = finished.sweep().planned_stages
    stages = tuple(ledgers.planned(f"aa.{part}", 2 + i, plan="paper") for i, part in enumerate(ledgers.PARTS))
    with Lease(finished):
        finished.add_plan("paper", stages)
        assert finished.sweep().planned_stages == (*before, *stages)
        with pytest.raises(IllegalTransition, match="plan 'paper' already"):
            finished.add_plan("paper", stages[:1])
    assert finished.sweep().planned_stages == (*before, *stages)
    assert finished.sweep().planned_stages[-1].passes == (4, 1000)


# -- nothing half -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill between two statements of a transaction."""


def statements_of(ledger: Ledger, act: Callable[[], object], allowed: int) -> int:
    """Run `act` and kill it before its statement number `allowed`; returns how many statements ran."""
    ran = 0

    def count(connection: object, cursor: object, statement: str, *_: object) -> None:
        nonlocal ran
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            if ran == allowed:
                raise Killed
            ran += 1

    sa.event.listen(ledger._engine, "before_cursor_execute", count)
    try:
        act()
    finally:
        sa.event.remove(ledger._engine, "before_cursor_execute", count)
    return ran


@pytest.mark.parametrize(
    "act",
    [
        lambda ledger: ledgers.propose(ledger, 1),
        lambda ledger: ledger.start_stage(ledgers.stage_record(0, position=1)),
        lambda ledger: ledger.record_epochs(0, ledgers.history(9)),
        lambda ledger: ledger.raise_total(20),
        lambda ledger: ledger.add_plan("paper", ledgers.cascade("cw", plan="paper")),
    ],
    ids=["propose", "start_stage", "record_epochs", "raise_total", "add_plan"],
)
def test_a_kill_between_two_statements_leaves_nothing_half(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, act: Callable[[Ledger], object]
) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 120, None)
        killed = 0
        while True:
            before = _everything(folder)
            try:
                statements_of(ledger, lambda: act(ledger), allowed=killed)
                break
            except Killed:
                killed += 1
                assert _everything(folder) == before
    assert killed >= 2
    assert _everything(folder) != before


def _everything(folder: SweepFolder) -> object:
    """What another process reads: every fact but the lease."""
    other = Ledger.at(folder.ledger)
    try:
        return other.sweep(), other.trials(), other.stages(), other.history(0), other.events()
    finally:
        other.close()


def test_a_reopened_ledger_is_the_same(unfinished: Ledger, folder: SweepFolder) -> None:
    mine = (unfinished.sweep(), unfinished.trials(), unfinished.stages(), unfinished.history(0), unfinished.events())
    assert _everything(folder) == mine


def test_a_stack_of_methods_comes_back_in_its_order(open_ledger: Callable[..., Ledger]) -> None:
    stack = {"jasmin": {"k": 0}, "adversarial": {"steps": 5}}
    ledger = open_ledger(document={"methods": [stack]})
    with Lease(ledger):
        ledger.propose(0, "jasmin+adversarial", {"methods": stack}, {}, {}, 0)
    assert list(ledger.sweep().document["methods"][0]) == ["jasmin", "adversarial"]
    assert list(ledger.trial(0).config["methods"]) == ["jasmin", "adversarial"]


def test_a_ledger_of_another_version_is_refused(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("UPDATE sweep SET schema_version = 99"))
    with pytest.raises(LedgerError, match="schema 99"):
        ledger.sweep()


# -- the lease --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [act for act, _ in TRANSITIONS.values()], ids=list(TRANSITIONS))
def test_without_the_lease_nothing_is_written(unfinished: Ledger, write: Callable[[Ledger], object]) -> None:
    before = unfinished.events()
    with pytest.raises(LeaseLost):
        write(unfinished)
    assert unfinished.events() == before


def test_a_second_driver_is_refused_while_the_first_lives(unfinished: Ledger, folder: SweepFolder) -> None:
    other = Ledger.at(folder.ledger)
    with Lease(unfinished):
        with pytest.raises(LeaseHeld, match=rf"process {os.getpid()} .*kill -INT {os.getpid()}"), Lease(other):
            pass
        unfinished.note_driver("still here", {})
    with Lease(other):
        other.note_driver("taken over", {})
    other.close()


def test_a_dead_drivers_lease_is_taken_over_at_once(unfinished: Ledger) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        now = time.time()
        held = LeaseRecord("dead", socket.gethostname(), process.pid, process_start(process.pid), now, now)
        assert unfinished.take_lease(held, replacing=None)
        assert is_alive(held, now)
        process.kill()
        process.wait()
    with Lease(unfinished):
        assert unfinished.lease() != held
        unfinished.note_driver("taken over", {})


def test_a_reused_pid_is_not_the_driver(unfinished: Ledger) -> None:
    now = time.time()
    held = LeaseRecord("earlier", socket.gethostname(), os.getpid(), "another start", now, now)
    assert not is_alive(held, now)


def test_a_lease_of_another_host_expires_with_its_heartbeat() -> None:
    held = LeaseRecord("there", "elsewhere.example", 1, "1", 1000.0, 1000.0)
    assert is_alive(held, 1000.0 + LIFETIME_S - 1)
    assert not is_alive(held, 1000.0 + LIFETIME_S + 1)


def test_a_driver_that_lost_its_lease_writes_nothing_more(unfinished: Ledger, folder: SweepFolder) -> None:
    other = Ledger.at(folder.ledger)
    lost: list[bool] = []
    with Lease(unfinished, on_lost=lambda: lost.append(True)) as lease:
        held = unfinished.lease()
        assert held is not None
        now = time.time()
        assert other.take_lease(dataclasses.replace(held, owner="other", heartbeat_at=now), replacing=held)
        before = unfinished.events()
        for write in (lambda: unfinished.start_training(5), unfinished.heartbeat, unfinished.complete):
            with pytest.raises(LeaseLost):
                write()
        assert unfinished.events() == before
        lease._thread.join(timeout=10)
    assert lost == [True]
    assert other.lease() is not None  # leaving the block did not give the other one's lease away
    other.release_lease()
    other.close()


def test_two_that_see_the_same_dead_lease_do_not_both_get_it(unfinished: Ledger, folder: SweepFolder) -> None:
    now = time.time()
    dead = LeaseRecord("dead", socket.gethostname(), 1, "no such start", now, now)
    assert unfinished.take_lease(dead, replacing=None)
    other = Ledger.at(folder.ledger)
    mine, theirs = (LeaseRecord(owner, "here", os.getpid(), "", now, now) for owner in ("mine", "theirs"))
    assert unfinished.take_lease(mine, replacing=dead)
    assert not other.take_lease(theirs, replacing=dead)
    with pytest.raises(LeaseLost):
        other.note_driver("no", {})
    other.close()


def test_a_stage_that_was_not_started_has_no_verdicts_to_adopt(unfinished: Ledger) -> None:
    before = unfinished.trials()
    stage = dataclasses.replace(unfinished.stages()[0], position=7, state="done", images=4, survivors=2)
    with Lease(unfinished), pytest.raises(IllegalTransition, match="unknown, not running"):
        unfinished.finish_stage(stage, exact=True)
    assert unfinished.trials() == before


def test_the_total_can_only_grow(unfinished: Ledger) -> None:
    requested = unfinished.sweep().requested
    with Lease(unfinished):
        with pytest.raises(IllegalTransition, match="only grow"):
            unfinished.raise_total(requested - 1)
        unfinished.raise_total(requested + 3)
    assert unfinished.sweep().requested == requested + 3


def test_a_database_without_tables_holds_no_sweep(tmp_path: Path) -> None:
    ledger = Ledger.at(tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="no sweep"):
        ledger.sweep()
    ledger.close()
