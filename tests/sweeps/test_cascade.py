"""The cascade on thousands of random sweeps: the front of full evaluation, no stage that cannot matter, none twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pytest

from search_spaces.errors import ObjectiveMissing
from sweeps.cascade import Standing, Target, left_standing, next_target, stage_job
from sweeps.pareto import dominates
from sweeps.records import LAUNCHED, PlannedStage, Split, StageRecord, State, TrialRecord
from sweeps.summary import front_of
from tests.sweeps import ledgers
from trainables.config import TrialConfig

IMAGES = 8
SWEEPS = 2400
OBJECTIVES = (("clean_acc", "robust_acc"), ("clean_acc", "robust_acc"), ("robust_acc",), ("clean_acc",))
Key = tuple[int, Split, int]
"""Trial, split and position of a stage."""
OPEN = TrialRecord(0, State.EVALUATING, "plain", {}, {}, {}, 0, 0.0, 0.0, 0)


@dataclass
class Sweep:
    """A random sweep: what every attack would come to if all were run, and what a driver has found so far."""

    rng: random.Random
    planned: list[PlannedStage]
    objectives: tuple[str, ...]
    evaluate: Literal["front", "all"]
    test_trials: int
    truth: dict[Key, int | None]
    """How many images stand after a stage, None if the attack fails; stages that are never reached are left out."""
    trials: list[TrialRecord]
    stages: dict[Key, StageRecord] = field(default_factory=dict)
    running: list[Target] = field(default_factory=list)
    ran: Counter[Key] = field(default_factory=Counter)
    others: list[StageRecord] = field(default_factory=list)
    """Stages of a further plan, which decide nothing."""

    def standing(self) -> Standing:
        stages = [*self.stages.values(), *self.others]
        return Standing(self.planned, self.objectives, self.trials, stages, tuple(self.running))

    def target(self, *, final: bool) -> Target | None:
        return next_target(self.standing(), evaluate=self.evaluate, test_trials=self.test_trials, final=final)

    def values(self, trial: TrialRecord) -> tuple[float, ...]:
        return tuple(getattr(trial, objective) for objective in self.objectives)

    def full(self) -> dict[int, tuple[float, ...]]:
        """Return the values of every trial after all of its validation stages, without those that an attack failed."""
        found = {}
        for trial in self.trials:
            keys = [key_of(trial.number, stage) for stage in cascade(self.planned, "validation")]
            counts = [self.truth[key] for key in keys if key in self.truth]
            if None not in counts:
                found[trial.number] = self.values(replace(trial, robust_acc=(counts[-1] or 0) / IMAGES))
        return found


def key_of(number: int, stage: PlannedStage) -> Key:
    return number, stage.split, stage.position


def cascade(planned: list[PlannedStage], split: Split) -> list[PlannedStage]:
    return [s for s in planned if s.split == split and s.cumulative]


def columns(planned: list[PlannedStage], split: Split) -> list[PlannedStage]:
    return [s for s in planned if s.split == split and not s.cumulative]


def random_sweep(seed: int) -> Sweep:
    """Up to nine trials; few levels of accuracy, so that ties, zeros and dominated trials are common."""
    rng = random.Random(seed)
    count, levels = rng.randint(1, 9), rng.choice([3, 6, 1000])
    lengths: dict[Split, int] = {"validation": rng.randint(1, 4), "test": rng.randint(0, 2)}
    alone = rng.randint(0, 2)
    planned: list[PlannedStage] = []
    for split, length in lengths.items():
        planned += ledgers.cascade(*(f"a{i}" for i in range(length)), split=split, images=IMAGES)
        for i in range(alone if length else 0):
            planned.append(ledgers.planned(f"c{i}", length + i, split, cumulative=False, images=IMAGES))
    failing = rng.choice([0.0, 0.0, 0.15])
    truth: dict[Key, int | None] = {}
    for number in range(count):
        for split in lengths:
            stands = rng.choice([0.95, 0.7, 0.4])
            verdicts = [rng.random() < stands for _ in range(IMAGES)]
            for stage in cascade(planned, split):
                left = None if rng.random() < failing else sum(verdicts)
                truth[key_of(number, stage)] = left
                if not left:
                    break
                keeps = rng.choice([0.5, 0.9, 1.0])
                verdicts = [verdict and rng.random() < keeps for verdict in verdicts]
            for stage in columns(planned, split):
                truth[key_of(number, stage)] = None if rng.random() < failing else rng.randint(0, IMAGES)
    return Sweep(
        rng=rng,
        planned=planned,
        objectives=rng.choice(OBJECTIVES),
        evaluate=rng.choice(["front", "front", "all"]),
        test_trials=rng.randint(1, 3) if lengths["test"] else 0,
        truth=truth,
        trials=[replace(OPEN, number=n, clean_acc=rng.randrange(levels) / levels) for n in range(count)],
        others=[ledgers.judged(s, 1, 0, plan="extra", state="failed") for s in planned if rng.random() < 0.1],
    )


def drive(sweep: Sweep) -> None:
    """Let trials arrive, stages start wherever there is room, and end or be lost with their driver, in random order."""
    rng, workers, idle = sweep.rng, sweep.rng.randint(1, 4), sweep.rng.random() < 0.7
    coming = [t.number for t in sweep.trials]
    rng.shuffle(coming)
    dies = rng.choice([0.0, 0.05])
    while True:
        final = not coming
        while (idle or final) and len(sweep.running) < workers:
            target = sweep.target(final=final)
            if target is None:
                check_idle(sweep)
                break
            check_start(sweep, target, final=final)
            sweep.running.append(target)
            begun = ledgers.judged(target.stage, 0, target.number, state="running", survivors=None, verdicts=None)
            sweep.stages[key_of(*target)] = begun
        if final and not sweep.running:
            return
        if rng.random() < dies:
            sweep.running.clear()
        elif coming and (not sweep.running or rng.random() < 0.5):
            arrive(sweep, coming.pop())
        elif sweep.running:
            end(sweep, sweep.running.pop(rng.randrange(len(sweep.running))))


def arrive(sweep: Sweep, number: int) -> None:
    """The first stage of a trial is over."""
    first = sweep.planned[0]
    sweep.stages[number, "validation", 0] = ledgers.judged(first, 0, number)
    sweep.trials[number] = replace(sweep.trials[number], state=State.FINISHED)
    end(sweep, Target(number, first))


def end(sweep: Sweep, target: Target) -> None:
    """Write down what a stage came to, as the ledger does."""
    number, stage = target
    left = sweep.truth[key_of(*target)]
    sweep.ran[key_of(*target)] += 1
    failed = {"state": "failed", "survivors": None, "verdicts": None}
    record = ledgers.judged(stage, left or 0, number, **(failed if left is None else {}))
    sweep.stages[key_of(*target)] = record
    trial = sweep.trials[number]
    if stage.split == "validation" and stage.cumulative:
        if left is not None:
            is_last = stage == cascade(sweep.planned, "validation")[-1]
            trial = replace(trial, robust_acc=left / IMAGES, exact=left == 0 or is_last)
        elif stage.position == 0:
            trial = replace(trial, state=State.FAILED)
    sweep.trials[number] = trial


def check_start(sweep: Sweep, target: Target, *, final: bool) -> None:
    """What must hold whenever a stage starts."""
    number, stage = target
    trial = sweep.trials[number]
    assert trial.state is State.FINISHED
    assert target not in sweep.running
    assert key_of(*target) not in sweep.ran
    if stage.cumulative:
        own = cascade(sweep.planned, stage.split)
        assert not any(t.number == number and t.stage in own for t in sweep.running), "a cascade runs in order"
        for before in own[: own.index(stage)]:
            record = sweep.stages[key_of(number, before)]
            assert record.state == "done"
            assert record.survivors
    if stage.split == "validation" and stage.cumulative:
        if sweep.evaluate == "front":
            exact = [sweep.values(t) for t in sweep.trials if t.exact and t.state is State.FINISHED]
            assert not any(dominates(point, sweep.values(trial)) for point in exact)
        return
    assert final
    assert not any(t.stage.cumulative and t.stage.split == "validation" for t in sweep.running)
    if stage.split == "test" or sweep.evaluate == "front":
        assert trial in front_of(sweep.trials, sweep.objectives)


def check_idle(sweep: Sweep) -> None:
    """No worker waits while a trial that may lie on the front could go on."""
    on_validation = [s for s in sweep.stages.values() if s.split == "validation" and s.cumulative]
    failed = {s.number for s in on_validation if s.state == "failed"}
    busy = {t.number for t in sweep.running if t.stage.split == "validation" and t.stage.cumulative}
    alive = {t.number: t for t in sweep.trials if t.state is State.FINISHED and t.number not in failed}
    points = {number: sweep.values(trial) for number, trial in alive.items()}
    matter = points if sweep.evaluate == "all" else slow_front(points)
    assert all(alive[number].exact or number in busy for number in matter)


def slow_front(points: dict[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
    return {n: p for n, p in points.items() if not any(dominates(q, p) for q in points.values())}


def check_end(sweep: Sweep) -> None:
    """What must hold when nothing is left to do."""
    front = {t.number: sweep.values(t) for t in front_of(sweep.trials, sweep.objectives)}
    assert front == slow_front(sweep.full())
    assert set(sweep.ran.values()) <= {1}
    assert set(sweep.ran) <= set(sweep.truth)
    alive = {t.number for t in sweep.trials if t.state is State.FINISHED}
    own = {s.position for s in cascade(sweep.planned, "validation")}
    if sweep.evaluate == "all":
        assert {k for k in sweep.ran if k[2] in own and k[1] == "validation"} == {
            k for k in sweep.truth if k[2] in own and k[1] == "validation"
        }
    judged = alive if sweep.evaluate == "all" else set(front)
    for column in columns(sweep.planned, "validation"):
        assert {n for n, *rest in sweep.ran if rest == ["validation", column.position]} == judged
    tested = {n for n, split, _ in sweep.ran if split == "test"}
    assert tested <= set(front)
    assert len(tested) == min(sweep.test_trials, len(front))
    assert {k for k in sweep.ran if k[1] == "test"} == {k for k in sweep.truth if k[1] == "test" and k[0] in tested}


def test_whatever_comes_when_the_front_is_that_of_full_evaluation_and_nothing_runs_in_vain() -> None:
    ran = full = 0
    for seed in range(SWEEPS):
        sweep = random_sweep(seed)
        drive(sweep)
        check_end(sweep)
        if sweep.evaluate == "front":
            ran += sum(key[1] == "validation" for key in sweep.ran)
            full += sum(key[1] == "validation" for key in sweep.truth)
    assert ran < 0.85 * full, "lazy evaluation spares stages"


def test_the_trials_with_the_same_values_are_all_settled_and_stay_on_the_front() -> None:
    planned = ledgers.cascade("a", "b", images=IMAGES)
    finished = {"state": State.FINISHED, "clean_acc": 0.5, "robust_acc": 0.5}
    trials = [replace(OPEN, number=n, **finished) for n in range(3)]
    stages = [ledgers.judged(planned[0], 4, n) for n in range(3)]
    sweep = Sweep(random.Random(0), list(planned), OBJECTIVES[0], "front", 0, {}, trials)
    sweep.stages = {(s.number, s.split, s.position): s for s in stages}
    for _ in range(3):
        target = sweep.target(final=True)
        assert target is not None
        sweep.truth[key_of(*target)] = 3
        end(sweep, target)
    assert sweep.target(final=True) is None
    assert [t.number for t in front_of(sweep.trials, sweep.objectives)] == [0, 1, 2]


def test_a_stage_that_its_driver_did_not_end_is_run_again() -> None:
    first, second = ledgers.cascade("a", "b", images=IMAGES)
    trial = replace(OPEN, state=State.FINISHED, clean_acc=0.5, robust_acc=0.5)
    begun = replace(ledgers.judged(second, 0), state="running", survivors=None, verdicts=None)
    at = Standing([first, second], OBJECTIVES[0], [trial], [ledgers.judged(first, 4), begun], [])
    options: dict[str, Any] = {"evaluate": "front", "test_trials": 0, "final": False}
    assert next_target(at, **options) == Target(0, second)
    assert next_target(replace(at, running=[Target(0, second)]), **options) is None


# What a stage is given to attack


def chained() -> Iterator[StageRecord]:
    for stage, left in zip(ledgers.cascade("a", "b", "c", images=IMAGES), (6, 4, 1), strict=True):
        yield ledgers.judged(stage, left)


def test_a_stage_attacks_what_the_one_before_it_left_standing() -> None:
    planned = ledgers.cascade("a", "b", "c", images=IMAGES)
    records = list(chained())
    assert left_standing(planned[0], records) is None
    assert left_standing(planned[1], records) == tuple(np.arange(IMAGES) < 6)
    assert left_standing(planned[2], records[:2]) == tuple(np.arange(IMAGES) < 4)


def test_a_column_another_split_and_another_plan_have_nobody_before_them() -> None:
    records = list(chained())
    for stage in (
        ledgers.planned("d", 3, cumulative=False, images=IMAGES),
        ledgers.planned("a", 3, split="test", images=IMAGES),
        ledgers.planned("a", 3, plan="extra", images=IMAGES),
    ):
        assert left_standing(stage, records) is None


def test_a_job_carries_what_a_worker_needs(tiny_trial: Any, tmp_path: Any) -> None:
    config: TrialConfig = tiny_trial({"plain": {}})
    stage = ledgers.cascade("a", "b", images=IMAGES)[1]
    folder = ledgers.folder_at(tmp_path)
    trial = replace(OPEN, number=3, config=config.plain(), weights_digest="w")
    job = stage_job(Target(3, stage), trial, list(chained())[:1], folder, "data")
    assert (job.number, job.weights_digest, job.data_digest, job.attacked) == (3, "w", "data", 6)
    assert (job.trial_folder, job.verdict_folder) == (str(folder.trial(3)), str(folder.verdicts))
    assert job.stage.plan == LAUNCHED
    with pytest.raises(ObjectiveMissing, match="trial 3 is evaluating and has no weights"):
        stage_job(Target(3, stage), replace(trial, weights_digest=None), [], folder, "data")
