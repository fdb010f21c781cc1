"""What follows a failure: pure decisions first, then the coordinator with its ledger, through restarts."""

from __future__ import annotations

import json
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.packing import Device, Node
from cluster.resources import Shares
from cluster.room import Grant
from sweeps.admission import Admission
from sweeps.failures import KINDS, LONGEST_BACKOFF_S, Again, StageAgain, after_failure, after_stage_failure, backoff
from sweeps.failures_section import FailuresSection
from sweeps.measured_memory import Needs
from sweeps.memory_classes import MemoryClass
from sweeps.records import State
from sweeps.schema import TRIALS
from sweeps.stage_job import StageJob
from sweeps.study import TrialState
from tests.sweeps.driving import DOCUMENT, Driven, create, driving, settle, train_all, trained

TRAINING = [kind for kind in KINDS if kind != "attack"]
HUNG = "AttackHung: pgd on validation images of trial 0 judged nothing for 31 s"
ONE_CLASS = {"jasmin": {"k": [0, 2], "aggregation": "max"}}
OUT_OF_MEMORY = "Traceback …\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def section(**values: Any) -> FailuresSection:
    return FailuresSection.model_validate(values)


def test_kinds_without_a_number_of_their_own_share_one_allowance() -> None:
    policy = section(retries=2, crash={"retries": 1})
    assert after_failure("exception", {}, 1.0, policy)
    assert after_failure("exception", {"hang": 1}, 1.0, policy)
    assert after_failure("exception", {"hang": 1, "exception": 1}, 1.0, policy) is None
    assert after_failure("exception", {"hang": 1, "crash": 9}, 1.0, policy), "a crash has its own allowance"
    assert after_failure("crash", {"hang": 9}, 1.0, policy)
    assert after_failure("crash", {"crash": 1}, 1.0, policy) is None


@pytest.mark.parametrize("kind", ["nan", "checkpoint"])
def test_what_would_only_repeat_itself_is_tried_again_only_if_it_says_so(kind: str) -> None:
    assert after_failure(kind, {}, 1.0, section(retries=9)) is None
    assert after_failure(kind, {}, 1.0, section(**{kind: {"backoff_s": 3}})) is None
    assert after_failure(kind, {}, 1.0, section(**{kind: {"retries": 1}})) == Again(0, 1.0)


def test_each_pause_is_twice_the_one_before_and_none_is_endless() -> None:
    assert [backoff(5, before) for before in range(4)] == [5, 10, 20, 40]
    assert backoff(5, 10**6) == LONGEST_BACKOFF_S
    assert backoff(0, 10**6) == 0
    policy = section(crash={"retries": 9, "backoff_s": 5})
    assert after_failure("crash", {"crash": 2, "hang": 5}, 1.0, policy) == Again(20, 1.0)


def test_a_lack_of_memory_asks_for_a_larger_share_and_nothing_else_does() -> None:
    policy = section(retries=9, memory={"grow_share": 3})
    assert after_failure("memory", {}, 2.0, policy) == Again(0, 6.0)
    assert after_failure("crash", {}, 2.0, policy) == Again(0, 2.0)


@given(
    st.lists(st.sampled_from(TRAINING), min_size=60, max_size=60),
    st.dictionaries(st.sampled_from(TRAINING), st.none() | st.integers(0, 5), max_size=6),
    st.integers(0, 5),
)
def test_however_failures_mix_the_attempts_are_bounded(
    happens: list[str], own: dict[str, int | None], shared: int
) -> None:
    own = {"node": None, **own}
    policy = section(retries=shared, **{kind: {"retries": count} for kind, count in own.items()})
    failed: Counter[str] = Counter()
    attempts = 1
    for kind in happens:
        again = after_failure(kind, failed, 1.0, policy)
        failed[kind] += 1
        if again is None:
            break
        attempts += 1
    assert attempts <= 1 + shared + sum(count or 0 for count in own.values())


def test_a_stage_without_memory_is_tried_with_half_the_batch_down_to_one_image() -> None:
    policy = section(attack={"halvings": 3})
    sizes = [
        again and again.batch_size for again in (after_stage_failure(OUT_OF_MEMORY, n, 16, policy) for n in range(4))
    ]
    assert sizes == [8, 8, 8, None]
    assert after_stage_failure(OUT_OF_MEMORY, 0, 1, policy) is None
    assert after_stage_failure("ValueError: no", 0, 16, policy) is None
    again = after_stage_failure("ValueError: no", 1, 16, section(attack={"retries": 2}))
    assert again is not None
    assert again.batch_size == 16


def test_a_stage_that_hung_is_tried_as_it_was_and_not_for_ever() -> None:
    policy = section(attack={"hangs": 2, "retries": 9, "halvings": 9})
    assert [after_stage_failure(HUNG, tries, 16, policy) for tries in range(3)] == [
        StageAgain(16),
        StageAgain(16),
        None,
    ]


@given(st.lists(st.sampled_from([OUT_OF_MEMORY, HUNG, "ValueError: no"]), min_size=40, max_size=40), st.integers(0, 5))
def test_however_a_stages_failures_mix_its_tries_are_bounded(errors: list[str], most: int) -> None:
    policy = section(attack={"halvings": most, "hangs": most, "retries": most})
    size, tries = 10**6, 0
    for error in errors:
        again = after_stage_failure(error, tries, size, policy)
        if again is None:
            break
        assert again.batch_size == (size // 2 if error is OUT_OF_MEMORY else size)
        size, tries = again.batch_size, tries + 1
    assert tries == most


# the coordinator


def test_failures_are_counted_by_kind_in_the_ledger_so_that_a_restart_forgets_none(tmp_path: Path) -> None:
    folder = create(tmp_path, failures={"retries": 0, "crash": {"retries": 2}})
    for expected in (State.TRAINING, State.TRAINING, State.FAILED):
        with driving(folder) as driven:
            assert driven.fail("crash") == 0
            assert driven.ledger.trial(0).state is expected
    with driving(folder) as driven:
        trial = driven.ledger.trial(0)
        assert (trial.failures, trial.failed_as, trial.attempts) == (3, {"crash": 3}, 3)
        assert driven.start().number == 1


def test_interruptions_use_up_no_retries(tmp_path: Path) -> None:
    folder = create(tmp_path, failures={"retries": 0})
    for _ in range(5):
        with driving(folder) as driven:
            assert driven.start().number == 0
    with driving(folder) as driven:
        assert (driven.ledger.trial(0).failures, driven.ledger.trial(0).attempts) == (0, 5)
        assert driven.train() == 0


def test_others_go_on_while_a_failed_training_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(monotonic=lambda: now.at, time=lambda: 0.0, at=100.0)
    monkeypatch.setattr("sweeps.coordinator.time", now)
    folder = create(tmp_path, failures={"crash": {"retries": 2, "backoff_s": 10}}, search={"trials": 2})
    with driving(folder) as driven:
        assert driven.fail("crash") == 0
        assert driven.train() == 1
        assert driven.coordinator.next_training() is None
        assert driven.coordinator.training_needed
        now.at = 110.0
        assert driven.fail("crash") == 0
        now.at = 129.0
        assert driven.coordinator.next_training() is None
        now.at = 130.0
        assert driven.train() == 0
        assert "in 20 s" in "\n".join(driven.said)


def admit(driven: Driven, share: float) -> None:
    """Let trainings have this share of the one GPU that there is; attacks keep a tenth of it."""
    node = Node("a", 8, (Device("a", 0),))
    shares = Shares(9, 1.0, share, 1, 1.0, 0.1)
    driven.coordinator.admission = Admission(driven.coordinator.config.resources, shares, [node], Needs())


def test_a_training_without_memory_gets_a_larger_share_its_class_learns_it_and_a_restart_knows(tmp_path: Path) -> None:
    folder = create(tmp_path, methods=[ONE_CLASS], search={"trials": 4}, failures={"memory": {"retries": 9}})

    def share(driven: Driven) -> float:
        job = driven.start()
        assert job.gpu_share == driven.coordinator.granted(job.number).gpus
        return job.gpu_share

    with driving(folder) as driven:
        admit(driven, 0.2)
        assert [share(driven) for _ in range(3)] == [0.2, 0.2, 0.2]
        driven.coordinator.training_failed(0, "memory", "no room")
        assert share(driven) == 0.4, "trial 0 again, with twice as much"
        assert driven.coordinator.next_training() is None, "trial 3 is of the same class, and has room for half of it"
        driven.coordinator.training_failed(1, "crash", "gone")
        driven.coordinator.training_failed(2, "crash", "gone")
        assert share(driven) == 0.4, "trial 1 begins again with what the class has learnt"
    with driving(folder) as driven:
        admit(driven, 0.2)
        assert [share(driven) for _ in range(2)] == [0.4, 0.4]
        assert driven.coordinator.next_training() is None


def test_trainings_of_a_class_that_run_out_of_memory_together_ask_for_twice_as_much_and_not_for_ever_more(
    tmp_path: Path,
) -> None:
    folder = create(tmp_path, methods=[ONE_CLASS], search={"trials": 4}, failures={"memory": {"retries": 9}})
    with driving(folder) as driven:
        admit(driven, 0.2)
        together = [driven.start() for _ in range(4)]
        for job in together:
            driven.coordinator.training_failed(job.number, "memory", "no room")
        assert [driven.ledger.trial(job.number).share for job in together] == [2.0] * 4
        assert [driven.start().gpu_share for _ in range(2)] == [0.4, 0.4]


def test_a_trial_whose_configuration_is_none_any_more_stops_no_driver(tmp_path: Path) -> None:
    folder = create(tmp_path, search={"trials": 2}, failures={"memory": {"retries": 9}, "retries": 0})
    with driving(folder) as driven:
        admit(driven, 0.2)
        driven.fail("memory")
        config = {**driven.ledger.trial(0).config, "plugins": [str(tmp_path / "gone.py")], "methods": {"gone": {}}}
        with driven.ledger._write("ledger.start_training") as connection:
            connection.execute(TRIALS.update().where(TRIALS.c.number == 0).values(config=json.dumps(config)))
    with driving(folder) as driven:
        admit(driven, 0.2)
        job = driven.start()
        assert (job.number, job.gpu_share) == (0, 0.4)
        driven.coordinator.training_failed(0, "exception", "no method gone")
        assert driven.ledger.trial(0).state is State.FAILED
        assert driven.start().number == 1


class WithoutRoomFor:
    """An admission by nodes that cannot hold one class, and hold one training of any other beside what runs."""

    def __init__(self, lost: MemoryClass) -> None:
        self.lost = lost

    def holds(self, of: MemoryClass, times: float) -> bool:
        return of != self.lost

    def has_room(self, of: Any, running: Any) -> bool:
        return True

    def grant(self, of: MemoryClass, times: float, running: Any) -> Grant | None:
        return Grant(1.0) if not running or (of != self.lost and len(running) < 2) else None


def test_what_these_nodes_cannot_hold_is_overtaken_and_waits_for_others(tmp_path: Path) -> None:
    methods = [{"plain": {}}, {"jasmin": {"k": 0, "aggregation": "max"}}]
    folder = create(tmp_path, methods=methods, search={"trials": 6, "allocation": "equal"})
    with driving(folder) as driven:
        coordinator = driven.coordinator
        jobs = [driven.start() for _ in range(6)]
        label = {job.number: driven.ledger.trial(job.number).label for job in jobs}
        first = label[jobs[0].number]
        others = [job.number for job in jobs if label[job.number] != first]
        stub: Any = WithoutRoomFor(coordinator._class_of(driven.ledger.trial(jobs[0].number)))
        coordinator.admission = stub
        for job in jobs:
            coordinator.set_aside(job.number)
        coordinator._to_train = deque(sorted(label, key=lambda number: label[number] != first))
        assert [driven.start().number for _ in range(2)] == others[:2], "whose nodes are there"
        assert coordinator.next_training() is None
        for number in others[:2]:
            coordinator.training_failed(number, "nan", "over")
        assert driven.start().number == others[2]
        assert coordinator.next_training() is None, "it would wait for a node, and others run"
        coordinator.training_failed(others[2], "nan", "over")
        assert label[driven.start().number] == first, "with nothing else to do it waits in Ray"


def test_a_training_that_had_the_whole_device_and_not_enough_memory_has_failed_for_good(tmp_path: Path) -> None:
    folder = create(tmp_path, search={"trials": 1}, failures={"memory": {"retries": 9}})
    with driving(folder) as driven:
        admit(driven, 0.5)
        assert driven.fail("memory") == 0
        assert driven.start().gpu_share == 0.9, "all that the attacks leave"
        driven.coordinator.training_failed(0, "memory", "no room")
        trial = driven.ledger.trial(0)
        assert (trial.state, trial.error_kind) == (State.FAILED, "memory")
        assert trial.error is not None
        assert trial.error.startswith("no room\n\nIt had 0.9 of a GPU, and more is not to be had beside the attacks.")
        assert "training.batch_size" in trial.error
        assert "training.micro_batch" in trial.error
        assert not driven.coordinator.training_needed


def test_a_stage_without_memory_ends_with_a_smaller_batch_through_a_restart(tmp_path: Path) -> None:
    sizes: list[int] = []

    def survivors(job: StageJob) -> int:
        sizes.append(job.stage.batch_size)
        if job.stage.batch_size > 64:
            raise RuntimeError(OUT_OF_MEMORY)
        return 5

    folder = create(tmp_path, search={"trials": 1})
    with driving(folder, survivors) as driven:
        job = driven.start()
        driven.coordinator.take_report(trained(job, 0.8), job.token)
        for _ in range(2):
            driven.coordinator.poll()
        assert sizes == [256]
        record = driven.ledger.stages(0)[0]
        assert (record.state, record.tries, record.batch_size) == ("running", 1, 128)
        assert driven.ledger.trial(0).state is State.EVALUATING
    with driving(folder, survivors) as driven:
        while driven.coordinator.evaluation_needed:
            driven.coordinator.poll()
        assert sizes == [256, 128, 64]
        trial, record = driven.ledger.trial(0), driven.ledger.stages(0)[0]
        assert (trial.state, trial.error, record.tries, record.batch_size) == (State.FINISHED, None, 2, 64)


def test_a_later_stage_that_failed_is_tried_as_often_as_the_policy_says(tmp_path: Path) -> None:
    tried: Counter[int] = Counter()

    def survivors(job: StageJob) -> int:
        tried[job.stage.position] += 1
        if job.stage.position == 1:
            raise RuntimeError("ValueError: no")
        return 5

    attacks = {**DOCUMENT["attacks"], "test": None, "columns": {}}
    folder = create(tmp_path, failures={"attack": {"retries": 2}}, search={"trials": 1}, attacks=attacks)
    with driving(folder, survivors) as driven:
        train_all(driven.coordinator, lambda number: 0.8)
        settle(driven.coordinator)
        assert tried == {0: 1, 1: 3}
        assert driven.ledger.stages(0)[1].state == "failed"
        assert driven.ledger.trial(0).robust_acc == 0.5
        driven.ledger.complete()


def test_a_first_stage_that_always_hangs_fails_its_trial_as_a_hang_and_the_others_go_on(tmp_path: Path) -> None:
    tried: Counter[int] = Counter()

    def survivors(job: StageJob) -> int:
        tried[job.number] += 1
        if job.number == 0 or (job.number == 1 and tried[1] == 1):
            raise RuntimeError(HUNG)
        return 5

    folder = create(tmp_path, search={"trials": 3})
    with driving(folder, survivors) as driven:
        train_all(driven.coordinator, lambda number: 0.8)
        assert tried == {0: 2, 1: 2, 2: 1}
        hung, once, calm = driven.ledger.trials()
        assert (hung.state, hung.error_kind, hung.robust_acc) == (State.FAILED, "hang", None)
        assert "judged nothing for 31 s" in str(hung.error)
        assert (once.state, once.error_kind, calm.state) == (State.FINISHED, None, State.FINISHED)
        kinds = {e.number: e.detail["kind"] for e in driven.ledger.events() if e.kind == "stage try failed"}
        assert kinds == {0: "hang", 1: "hang"}


def test_a_trial_that_failed_for_good_is_told_once_as_failed(tmp_path: Path) -> None:
    with driving(create(tmp_path)) as driven:
        driven.fail("nan")
        assert [trial.state for trial in driven.coordinator.study.trials] == [TrialState.FAIL]
