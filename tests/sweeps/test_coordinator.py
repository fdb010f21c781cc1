"""The coordinator with a real ledger and a pool that judges as it is told, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.attack_plan import planned_stages
from sweeps.config import parse_sweep
from sweeps.coordinator import Coordinator
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.live_state import PoolState
from sweeps.records import State, SweepRecord
from sweeps.stage_job import StageJob, StageOutcome
from sweeps.summary import front_of, status
from tests.sweeps import ledgers
from trainables.tune import Report, TrainingJob

DOCUMENT: dict[str, Any] = {
    "model": {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "data": {"name": "digits"},
    "training": {"epochs": 2, "learning_rate": {"log_uniform": [1e-3, 1e-2]}},
    "methods": ["plain"],
    "attacks": {
        "epsilon": 0.05,
        "images": 10,
        "stages": [{"pgd": {"steps": 5}}, {"pgd": {"steps": 20}}],
        "columns": {"FGSM": "fgsm"},
        "test": {"images": 10, "stages": ["fgsm", "pgd"], "trials": 2},
    },
    "search": {"trials": 4, "sampler": "random"},
}
SIZES = {"validation": 300, "test": 300}


class FakePool:
    """Two slots; `survivors` says how many of ten images stand after a stage, an exception that it failed."""

    def __init__(self, survivors: Callable[[StageJob], int]) -> None:
        self.capacity = 2
        self.running: list[StageJob] = []
        self.judged: list[tuple[int, str, int]] = []
        self._survivors = survivors

    @property
    def free(self) -> int:
        return max(0, self.capacity - len(self.running))

    @property
    def takes_first_stages(self) -> bool:
        return True

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def state(self) -> PoolState:
        return PoolState(self.capacity)

    def submit(self, job: StageJob) -> None:
        self.running.append(job)

    def forget(self, number: int) -> None:
        self.running = [job for job in self.running if job.number != number]

    def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
        ended = [(job, self._judge(job)) for job in self.running]
        self.running.clear()
        return ended

    def _judge(self, job: StageJob) -> StageOutcome | str:
        stage = job.stage
        self.judged.append((job.number, stage.split, stage.position))
        try:
            count = self._survivors(job)
        except RuntimeError as error:
            return str(error)
        correct = np.arange(10) < count
        if job.standing is not None:
            assert (correct <= np.array(job.standing)).all(), "a stage may only take away"
        record = ledgers.judged(stage, correct, job.number, clean_correct=10)
        return StageOutcome(record, 10, 0.8 if stage.split == "test" and stage.position == 0 else None)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path, "s")
    folder.root.mkdir()
    ledger = Ledger.at(folder.ledger)
    config = parse_sweep(DOCUMENT)
    assert config.attacks is not None
    stages = planned_stages(config.attacks, 10, SIZES)
    ledger.create(
        SweepRecord("id", "s", time.time(), 4, config.document, ("clean_acc", "robust_acc"), stages, {}, "data")
    )
    ledger.close()
    return folder


@pytest.fixture
def ledger(folder: SweepFolder) -> Iterator[Ledger]:
    ledger = Ledger.at(folder.ledger)
    with Lease(ledger):
        yield ledger
    ledger.close()


def coordinate(
    ledger: Ledger, folder: SweepFolder, survivors: Callable[[StageJob], int], **changes: Any
) -> Coordinator:
    found = Coordinator(parse_sweep({**DOCUMENT, **changes}), ledger, folder)
    pool: Any = FakePool(survivors)
    found.pool = pool
    return found


def trained(job: TrainingJob, clean_acc: float) -> Report:
    history = ({"val/clean_acc": 0.1}, {"val/clean_acc": clean_acc})
    return Report(job.number, "trained", history, clean_acc, f"weights{job.number}", 1.0)


def train_all(coordinator: Coordinator, clean: Callable[[int], float]) -> None:
    while (job := coordinator.next_training()) is not None:
        coordinator.take_report(trained(job, clean(job.number)), job.token)
        coordinator.poll()
    while coordinator.evaluation_needed:
        coordinator.poll()


def settle(coordinator: Coordinator) -> None:
    while coordinator.poll_later_stages(final=True):
        coordinator.poll()


def test_a_sweep_runs_to_its_end_and_only_the_front_gets_the_dear_stages(ledger: Ledger, folder: SweepFolder) -> None:
    first = {0: 5, 1: 3, 2: 4, 3: 2}  # trial 1 is dominated by 2, trial 3 by all
    clean = {0: 0.7, 1: 0.8, 2: 0.9, 3: 0.6}

    def survivors(job: StageJob) -> int:
        stage = job.stage
        if not stage.cumulative:
            return 7
        return first[job.number] - stage.position if stage.split == "validation" else 2 - stage.position

    coordinator = coordinate(ledger, folder, survivors)
    train_all(coordinator, clean.__getitem__)
    settle(coordinator)
    ledger.complete()
    trials = ledger.trials()
    assert [t.state for t in trials] == [State.FINISHED] * 4
    assert [t.exact for t in trials] == [True, False, True, False]
    assert [t.robust_acc for t in trials] == [0.4, 0.3, 0.3, 0.2]
    assert [t.number for t in front_of(trials, ledger.sweep().objectives)] == [2, 0]
    assert [(t.test_clean_acc, t.test_robust_acc) for t in trials] == [
        (0.8, 0.1),
        (None, None),
        (0.8, 0.1),
        (None, None),
    ]
    pool: Any = coordinator.pool
    assert len(pool.judged) == len(set(pool.judged)) == 4 + 2 + 4 + 2 * 2  # each of two members has a column per split
    alone = [(s.number, s.survivors) for s in ledger.stages() if not s.cumulative]
    assert alone == [(0, 7), (0, 7), (2, 7), (2, 7)]


def test_evaluate_all_settles_every_trial(ledger: Ledger, folder: SweepFolder) -> None:
    attacks = {**DOCUMENT["attacks"], "evaluate": "all", "test": None}
    coordinator = coordinate(ledger, folder, lambda job: 5 - job.stage.position, attacks=attacks)
    train_all(coordinator, lambda number: 0.9 - number / 10)
    settle(coordinator)
    assert all(t.exact for t in ledger.trials())
    assert len([s for s in ledger.stages() if s.split == "validation" and not s.cumulative]) == 4


def test_later_stages_run_while_trials_train_and_test_images_wait_for_the_last_one(
    ledger: Ledger, folder: SweepFolder
) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 5 if job.number == 0 else 4)
    job = coordinator.next_training()
    assert job is not None
    coordinator.take_report(trained(job, 0.9), job.token)
    for _ in range(4):
        coordinator.poll()
        coordinator.poll_later_stages(final=False)
    pool: Any = coordinator.pool
    assert pool.judged == [(0, "validation", 0), (0, "validation", 1)]
    assert ledger.trial(0).exact
    train_all(coordinator, lambda number: 0.8)  # the others are dominated
    settle(coordinator)
    assert [key for key in pool.judged if key[1] == "test"] == [(0, "test", 0), (0, "test", 1), (0, "test", 2)]
    assert not ledger.trial(1).exact


def test_a_first_stage_is_handed_over_before_anything_that_waits(ledger: Ledger, folder: SweepFolder) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 5)
    jobs = [coordinator.next_training() for _ in range(3)]
    pool: Any = coordinator.pool
    pool.capacity = 0  # full of the shards of later stages
    for job in jobs:
        assert job is not None
        coordinator.take_report(trained(job, 0.9), job.token)
    coordinator.poll()
    assert [(job.number, job.stage.position) for job in pool.running] == [(0, 0), (1, 0), (2, 0)]


def test_nobody_standing_is_the_end_of_a_cascade(ledger: Ledger, folder: SweepFolder) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 0)
    train_all(coordinator, lambda number: 0.5)
    settle(coordinator)
    pool: Any = coordinator.pool
    assert all(t.exact for t in ledger.trials())
    assert (0, "validation", 1) not in pool.judged
    assert {key[2] for key in pool.judged if key[1] == "test"} == {0, 2}  # the first stage, and the column


def test_a_failed_training_is_tried_again_under_its_number_and_then_recorded(
    ledger: Ledger, folder: SweepFolder
) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 5)
    first = coordinator.next_training()
    assert first is not None
    coordinator.training_failed(first.number, "crash", "gone")
    again = coordinator.next_training()
    assert again is not None
    assert (again.number, again.config, again.seed) == (first.number, first.config, first.seed)
    assert again.token != first.token
    coordinator.take_report(Report(again.number, "failed", kind="exception", error="Traceback: boom"), again.token)
    trial = ledger.trial(first.number)
    assert (trial.state, trial.failures, trial.error_kind, trial.error) == (
        State.FAILED,
        2,
        "exception",
        "Traceback: boom",
    )
    assert trial.robust_acc is None


def test_a_loss_that_diverged_is_not_tried_again(ledger: Ledger, folder: SweepFolder) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 5)
    job = coordinator.next_training()
    assert job is not None
    coordinator.take_report(Report(job.number, "failed", kind="nan", error="the loss is nan"), job.token)
    assert ledger.trial(job.number).state is State.FAILED
    assert coordinator.next_training().number == job.number + 1  # type: ignore[union-attr]


def test_reports_of_a_replaced_attempt_are_dropped(ledger: Ledger, folder: SweepFolder) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 5)
    stale = coordinator.next_training()
    assert stale is not None
    coordinator.training_failed(stale.number, "crash", "gone")
    current = coordinator.next_training()
    assert current is not None
    coordinator.take_report(trained(stale, 0.99), stale.token)
    assert ledger.trial(stale.number).state is State.TRAINING
    assert (Path(current.folder) / "attempt").read_text() == current.token


def test_a_failed_first_attack_fails_the_trial_and_a_failed_later_one_keeps_its_bound(
    ledger: Ledger, folder: SweepFolder
) -> None:
    def survivors(job: StageJob) -> int:
        if job.stage.split == "validation" and (job.number, job.stage.position) in ((0, 0), (1, 1)):
            raise RuntimeError("Traceback: out of memory")
        return 5

    coordinator = coordinate(ledger, folder, survivors)
    train_all(coordinator, lambda number: 0.5 + number / 10 if number < 2 else 0.4)
    settle(coordinator)
    ledger.complete()
    first, second, *_ = ledger.trials()
    assert (first.state, first.error_kind, first.robust_acc) == (State.FAILED, "attack", None)
    assert (second.state, second.exact, second.robust_acc) == (State.FINISHED, False, 0.5)
    assert 1 not in [item["trial"] for item in status(ledger)["front"]]


def test_a_new_driver_goes_on_per_stage(ledger: Ledger, folder: SweepFolder) -> None:
    before = coordinate(ledger, folder, lambda job: 5)
    jobs = [before.next_training() for _ in range(3)]
    assert all(jobs)
    before.take_report(trained(jobs[0], 0.9), jobs[0].token)  # type: ignore[arg-type, union-attr]
    before.poll()
    before.poll()  # trial 0 is finished
    before.take_report(trained(jobs[1], 0.8), jobs[1].token)  # type: ignore[arg-type, union-attr]
    before.poll()  # trial 1 is being evaluated
    after = coordinate(ledger, folder, lambda job: 5)
    assert (after.kept.finished, after.kept.to_evaluate, after.kept.to_go) == (1, 1, 1)
    assert after.kept.sentence() == "1 finished kept, trial 2 starts again, 1 trained, to be evaluated, 1 to go"
    job = after.next_training()
    assert job is not None
    assert (job.number, job.seed) == (2, jobs[2].seed)  # type: ignore[union-attr]
    after.take_report(trained(job, 0.7), job.token)
    train_all(after, lambda number: 0.6)
    assert {t.state for t in ledger.trials()} == {State.FINISHED}
    pool: Any = after.pool
    assert (0, "validation", 0) not in pool.judged


def test_without_attacks_a_trained_trial_is_finished(tmp_path: Path) -> None:
    document = {**DOCUMENT, "objectives": ["clean_acc"], "attacks": None}
    folder = SweepFolder(tmp_path, "clean")
    folder.root.mkdir()
    ledger = Ledger.at(folder.ledger)
    config = parse_sweep(document)
    ledger.create(SweepRecord("id", "clean", 0.0, 4, config.document, ("clean_acc",), (), {}, "data"))
    with Lease(ledger):
        coordinator = Coordinator(config, ledger, folder)
        train_all(coordinator, lambda number: number / 10)
        assert not coordinator.poll_later_stages(final=True)
        ledger.complete()
    assert [item["trial"] for item in status(ledger)["front"]] == [3]
    ledger.close()


def test_an_epoch_that_only_the_report_of_a_failure_brings_is_committed_with_it(
    ledger: Ledger, folder: SweepFolder
) -> None:
    coordinator = coordinate(ledger, folder, lambda job: 5)
    job = coordinator.next_training()
    assert job is not None
    epoch = {"val/clean_acc": 0.1}
    coordinator.take_report(Report(job.number, "failed", (epoch,), kind="nan", error="Traceback: nan"), job.token)
    assert ledger.trial(job.number).state is State.FAILED
    assert (ledger.trial(job.number).epochs, ledger.history(job.number)) == (1, [epoch])
