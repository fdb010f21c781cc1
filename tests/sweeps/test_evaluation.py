"""The pool: what is cut into shards, what comes first, what a failure costs; on a fake Ray and on the real one."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.resources import Shares
from search_spaces.errors import NodeEnding, StorageError, has_hung
from sweeps.evaluation import (
    LOST_NODES,
    LOST_WORKERS,
    NODE_PAUSE_S,
    ROOM_S,
    EvaluationPool,
    is_lost,
    is_lost_with_node,
    priority,
    warm_up,
)
from sweeps.pulse import beat
from sweeps.stage_job import ShardResult, StageJob, StageOutcome, judge_here
from tests.sweeps import ledgers
from tests.sweeps.stages import real_job, real_stage

FIRST = ledgers.planned("pgd", 0, images=50, batch_size=10)
LATER = ledgers.planned("auto", 1, images=50, batch_size=10)
COLUMN = ledgers.planned("fgsm", 2, cumulative=False, images=50, batch_size=10)
TESTED = ledgers.planned("pgd", 0, "test", images=50, batch_size=10)


class FakeRay:
    """Tasks that end when the test says so, in any order, with or without an error."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []
        """(job, shard, shards) of every task, in the order of their starts."""
        self.places: list[Path | None] = []
        """Where each gives signs of life."""
        self.unit_s: list[float | None] = []
        """What each is told that such a shard takes."""
        self.options: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self._ended: dict[int, Exception | None] = {}

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            def submit(*arguments: Any) -> Any:
                if function is warm_up:
                    return None
                self.started.append(arguments[:3])
                self.places.append(arguments[3])
                self.unit_s.append(arguments[4])
                self.options.append(options)
                return len(self.started) - 1

            return types.SimpleNamespace(remote=submit)

        return decorate

    def wait(self, tasks: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        assert (num_returns, timeout) == (len(tasks), 0)
        return [t for t in tasks if t in self._ended], [t for t in tasks if t not in self._ended]

    def get(self, task: Any) -> Any:
        if not isinstance(task, int):
            return None
        error = self._ended[task]
        if error is not None:
            raise error
        job, shard, shards = self.started[task]
        places = np.array_split(np.flatnonzero(job.standing if job.standing is not None else [True] * 50), shards)
        stands = places[shard] % 2 == 0
        return ShardResult(
            "d", places[shard], np.ones_like(stands), stands, 1, 1, 1.0, {"logit_scale_sum": 1.0}, judged=len(stands)
        )

    def beat(self, task: int) -> None:
        """Let a task give a sign of life: the first time those of its start, later that of a unit."""
        place = self.places[task]
        assert place is not None
        for _ in range(1 if place.exists() else 2):
            beat(place)

    def cancel(self, task: int, force: bool) -> None:
        assert force
        self.cancelled.append(task)

    def end(self, task: int, error: Exception | None = None) -> None:
        """Let a task end."""
        self._ended[task] = error

    def shown(self) -> list[tuple[int, str, int]]:
        """Return (trial, label, shard) of every task."""
        return [(job.number, f"{job.stage.split[0]}.{job.stage.label}", shard) for job, shard, _ in self.started]


class RayError(Exception):
    """As in ray.exceptions."""


class RayTaskError(RayError):
    """What the task itself raised."""


class RayNodeError(RayError):
    """The node was lost."""


class RayMemoryError(RayError):
    """The node had no memory left."""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake: Any = FakeRay()
    group = types.SimpleNamespace(
        placement_group=lambda bundles, strategy: types.SimpleNamespace(ready=lambda: "ready"),
        placement_group_table=lambda group: {"bundles_to_node_id": {}},
    )
    monkeypatch.setattr("sweeps.evaluation.draining_nodes", frozenset)
    strategies = types.SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group: "reserved")
    errors: Any = types.SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, OutOfMemoryError=RayMemoryError, NodeDiedError=RayNodeError
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    monkeypatch.setitem(sys.modules, "ray.util", types.SimpleNamespace())  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "ray.util.placement_group", group)  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)  # type: ignore[misc]
    return fake  # type: ignore[no-any-return]


def pool_of(workers: int) -> EvaluationPool:
    """A pool of so many workers, and three when training is over."""
    return EvaluationPool(Shares(3, 1, 0, workers, 1, 0), ["pgd"])


def job(stage: Any, number: int = 0, standing: int | None = None) -> StageJob:
    stands = None if standing is None else tuple(bool(v) for v in np.arange(50) < standing)
    return StageJob(number, stage, "", "", "", "", standing=stands)


def finish(ray: FakeRay, pool: EvaluationPool) -> list[tuple[StageJob, StageOutcome | str]]:
    """Let whatever runs end, one task after the other, until nothing is left."""
    found = []
    while pool.busy:
        for task in range(len(ray.started)):
            ray.end(task)
        found += pool.done()
    return found


def test_a_stage_is_cut_among_the_workers_and_named_once_when_its_last_shard_is_back(ray: FakeRay) -> None:
    pool = pool_of(3)
    pool.submit(job(FIRST))
    assert [(shard, shards) for _, shard, shards in ray.started] == [(0, 3), (1, 3), (2, 3)]
    assert pool.free == 0
    for task in (1, 2):
        ray.end(task)
        assert pool.done() == []
    ray.end(0)
    ((ended, outcome),) = pool.done()
    assert ended.stage == FIRST
    assert isinstance(outcome, StageOutcome)
    assert outcome.record.verdicts is not None
    assert outcome.record.verdicts.tolist() == [place % 2 == 0 for place in range(50)]
    assert (outcome.judged, outcome.record.forwards) == (50, 3)
    assert pool.done() == []
    assert (pool.busy, pool.free, pool.running) == (False, 3, [])


def test_a_stage_that_is_larger_than_a_unit_is_cut_even_for_one_worker(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.submit(job(FIRST))
    assert len(ray.started) == 1
    assert ray.started[0][1:] == (0, 2)  # 50 images, and a unit is four batches of ten
    assert [outcome.record.survivors for _, outcome in finish(ray, pool)] == [25]  # type: ignore[union-attr]
    assert len(ray.started) == 2


def test_what_the_search_waits_for_comes_first_and_equals_in_their_order(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.submit(job(COLUMN, 9, standing=5))  # starts at once, and is never stopped for another
    submitted = [(COLUMN, 0), (TESTED, 1), (LATER, 2), (LATER, 3), (FIRST, 4), (FIRST, 5)]
    for stage, number in submitted:
        pool.submit(job(stage, number, standing=5))
    finish(ray, pool)
    assert [(number, label) for number, label, _ in ray.shown()] == [
        (9, "v.fgsm"),
        (4, "v.pgd"),
        (5, "v.pgd"),
        (2, "v.auto"),
        (3, "v.auto"),
        (0, "v.fgsm"),
        (1, "t.pgd"),
    ]
    assert [priority(job(stage)) for stage, _ in submitted] == [2, 2, 1, 1, 0, 0]


def test_a_first_stage_overtakes_the_shards_that_wait_but_only_one_at_a_time(ray: FakeRay) -> None:
    pool = pool_of(1)
    assert pool.takes_first_stages
    pool.submit(job(LATER))
    assert pool.free == 0
    assert pool.takes_first_stages
    pool.submit(job(FIRST, 1, standing=5))
    assert not pool.takes_first_stages
    ray.end(0)
    pool.done()
    assert ray.shown()[-1] == (1, "v.pgd", 0)
    assert pool.takes_first_stages


def test_a_shard_that_meets_a_full_disk_stops_the_driver_and_fails_no_stage(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.submit(job(FIRST, 7))
    ray.end(0, RuntimeError("RayTaskError(OSError): [Errno 28] No space left on device"))
    with pytest.raises(StorageError, match="trial 7 cannot write: No space left on device"):
        pool.done()


def test_a_shard_that_fails_fails_its_stage_once_and_nothing_else(ray: FakeRay) -> None:
    pool = pool_of(2)
    bad, good = job(replace(LATER, images=300, batch_size=10), 0), job(LATER, 1, standing=5)
    pool.submit(replace(bad, standing=tuple([True] * 300)))
    pool.submit(good)
    assert len(ray.started) == 2
    ray.end(0, RuntimeError("out of memory"))
    assert pool.done() == []  # its second shard runs still
    assert ray.shown()[2:] == [(1, "v.auto", 0)]  # the other six never start
    ray.end(1, RuntimeError("again"))
    ((ended, error),) = pool.done()
    assert ended.number == 0
    assert isinstance(error, str)
    assert "out of memory" in error
    assert "again" not in error
    ray.end(2)
    ((ended, outcome),) = pool.done()
    assert (ended.number, isinstance(outcome, StageOutcome)) == (1, True)
    assert (pool.busy, len(ray.started)) == (False, 3)


def test_a_stage_on_nobody_ends_without_a_task(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.submit(job(LATER, standing=0))
    assert pool.busy
    ((_, outcome),) = pool.done()
    assert isinstance(outcome, StageOutcome)
    assert (outcome.record.state, outcome.record.survivors, ray.started) == ("done", 0, [])
    assert not pool.busy


def test_what_is_cancelled_is_never_named(ray: FakeRay) -> None:
    pool = pool_of(2)
    pool.submit(job(FIRST))
    pool.submit(job(LATER))
    pool.cancel()
    assert ray.cancelled == [0, 1]
    for task in (0, 1):
        ray.end(task)
    assert (pool.done(), pool.busy, pool.free, len(ray.started)) == ([], False, 2, 2)


def test_the_reserved_share_is_left_when_training_is_over(ray: FakeRay) -> None:
    pool = pool_of(1)
    for number in range(3):
        pool.submit(job(LATER, number, standing=5))
    assert len(ray.started) == 1
    assert ray.options[0]["scheduling_strategy"] == "reserved"
    pool.use_everything()
    assert len(ray.started) == 3
    assert pool.capacity == 3
    assert "scheduling_strategy" not in ray.options[1]
    assert {options["max_retries"] for options in ray.options} == {0}


def test_the_reserved_share_is_kept_to_again_when_trainings_come_again(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.use_everything()
    pool.submit(job(LATER, 0, standing=5))
    pool.keep_to_share()
    pool.submit(job(LATER, 1, standing=5))
    assert (pool.capacity, pool.free, len(ray.started)) == (1, 0, 1)
    ray.end(0)
    pool.done()
    assert len(ray.started) == 2
    assert ["scheduling_strategy" in options for options in ray.options] == [False, True]


def test_a_forgotten_trial_starts_nothing_more_and_is_never_named(ray: FakeRay) -> None:
    pool = pool_of(1)
    for number in (0, 1, 0):
        pool.submit(job(LATER, number, standing=5))
    pool.forget(0)
    assert [found.number for found in pool.running] == [1]
    assert [found.number for found, _ in finish(ray, pool)] == [1]
    assert [number for number, _, _ in ray.shown()] == [0, 1]


# What is lost, and what hangs


def test_a_shard_whose_worker_dies_starts_again_so_often_and_no_oftener(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.submit(job(LATER, 0, standing=5))
    pool.submit(job(LATER, 1, standing=5))
    for task in range(LOST_WORKERS):
        ray.end(task, RayError("the worker died"))
        assert pool.done() == []
    assert ray.shown() == [(0, "v.auto", 0)] * (LOST_WORKERS + 1), "it keeps its turn"
    ray.end(LOST_WORKERS, RayError("the worker died"))
    ((ended, error),) = pool.done()
    assert (ended.number, "the worker died" in str(error)) == (0, True)
    ray.end(LOST_WORKERS + 1)
    assert [(ended.number, isinstance(outcome, StageOutcome)) for ended, outcome in pool.done()] == [(1, True)]


def test_a_lost_node_is_not_the_shards_fault_and_nothing_starts_until_ray_has_noticed(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "sweeps.evaluation.time", types.SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now)
    )
    pool = pool_of(1)
    pool.submit(job(LATER, standing=5))
    for task in range(LOST_WORKERS + 2):
        ray.end(task, RayNodeError("the node was lost"))
        assert pool.done() == []
        assert len(ray.started) == task + 1, "another one at once would go to the lost node again"
        clock.now += NODE_PAUSE_S
        assert pool.done() == []
        assert len(ray.started) == task + 2
    ray.end(LOST_WORKERS + 2)
    ((_, outcome),) = pool.done()
    assert isinstance(outcome, StageOutcome)


def test_a_shard_that_takes_every_node_down_fails_at_last(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.evaluation.NODE_PAUSE_S", 0.0)
    pool = pool_of(1)
    pool.submit(job(LATER, standing=5))
    for task in range(LOST_NODES):
        ray.end(task, RayNodeError("the node was lost"))
        assert pool.done() == []
    ray.end(LOST_NODES, RayNodeError("the node was lost"))
    ((_, outcome),) = pool.done()
    assert "the node was lost" in str(outcome)


def test_after_the_trainings_as_many_shards_run_as_have_room_on_the_nodes_that_there_are(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.follow(Shares(5, 1, 0, 1, 1, 0))
    assert pool.capacity == 1, "while trials train it keeps to its share"
    pool.use_everything()
    assert pool.capacity == 5
    pool.follow(Shares(2, 1, 0, 1, 1, 0))
    assert pool.capacity == 2


@pytest.mark.parametrize(("state", "asks"), [("RESCHEDULING", True), ("CREATED", False)])
def test_the_pool_asks_for_room_when_its_share_has_no_place_and_not_at_every_look(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, state: str, asks: bool
) -> None:
    clock: Any = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "sweeps.evaluation.time", types.SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now)
    )
    pool = pool_of(1)
    monkeypatch.setattr(
        sys.modules["ray.util.placement_group"], "placement_group_table", lambda group: {"state": state}, raising=False
    )
    clock.now = ROOM_S
    assert not pool.wants_room(), "nothing is to be judged"
    pool.submit(job(LATER, standing=5))
    assert pool.wants_room() is asks
    assert not pool.wants_room(), "what was asked for takes a moment"
    clock.now = 2 * ROOM_S
    assert pool.wants_room() is asks
    pool.use_everything()
    clock.now = 3 * ROOM_S
    assert not pool.wants_room()


@pytest.mark.parametrize(
    "error", [RayTaskError("the attack raised"), RayMemoryError("out of memory"), ValueError("no")]
)
def test_what_a_shard_does_itself_is_not_simply_done_again(ray: FakeRay, error: Exception) -> None:
    pool = pool_of(1)
    pool.submit(job(LATER, standing=5))
    ray.end(0, error)
    ((_, outcome),) = pool.done()
    assert str(error) in str(outcome)
    assert len(ray.started) == 1


def test_rays_own_errors_are_told_apart() -> None:
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    of_the_attack = RayTaskError("judge_shard", "Traceback", ValueError("no"))
    found = [is_lost(e) for e in (WorkerCrashedError(), NodeDiedError("n"), OutOfMemoryError("m"), of_the_attack)]
    assert found == [True, True, False, False]
    assert [is_lost_with_node(e) for e in (WorkerCrashedError(), NodeDiedError("n"))] == [False, True]
    assert not is_lost(ValueError("no"))


class Clock:
    """A clock that the test sets; it stands in the pool's place of `time`."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at

    def time(self) -> float:
        return 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sweeps.evaluation.time", clock)
    return clock


def listening(workers: int, scratch: Path) -> EvaluationPool:
    """A pool that ends what judges nothing for 30 s."""
    return EvaluationPool(Shares(3, 1, 0, workers, 1, 0), ["pgd"], 30.0, scratch)


def ends_after(pool: EvaluationPool, clock: Clock, seconds: float) -> list[Any]:
    clock.at += seconds
    return pool.done()


def test_a_shard_that_is_silent_for_too_long_is_ended_and_its_stage_has_hung(
    ray: FakeRay, clock: Clock, tmp_path: Path
) -> None:
    pool = listening(1, tmp_path)
    pool.submit(job(FIRST, 7))  # two shards, one after the other
    ray.beat(0)
    assert ends_after(pool, clock, 0) == []
    for _ in range(5):  # slow, and alive: a unit each
        assert ends_after(pool, clock, 29) == []
        ray.beat(0)
        assert ends_after(pool, clock, 1) == []
    assert ends_after(pool, clock, 29) == []
    ((ended, error),) = ends_after(pool, clock, 1)
    assert ended.number == 7
    assert isinstance(error, str)
    assert has_hung(error)
    assert "pgd on validation images of trial 7 judged nothing for 30 s (failures.hang_after_s: 30)" in error
    assert (ray.cancelled, pool.busy, pool.free, len(ray.started)) == ([0], False, 1, 1)
    pool.submit(job(FIRST, 7))
    assert len(ray.started) == 2
    assert len(set(ray.places)) == 2, "a new try is not taken for the old one"


def test_a_shard_that_waits_for_a_worker_does_not_hang(ray: FakeRay, clock: Clock, tmp_path: Path) -> None:
    pool = listening(1, tmp_path)
    pool.submit(job(FIRST, standing=5))
    for _ in range(10):
        assert ends_after(pool, clock, 1000) == []
    ray.beat(0)
    assert ends_after(pool, clock, 1000) == [], "the time before its first sign of life does not count"
    assert ends_after(pool, clock, 29) == []
    assert len(ends_after(pool, clock, 1)) == 1


def test_the_other_shards_of_a_stage_that_hangs_end_in_peace(ray: FakeRay, clock: Clock, tmp_path: Path) -> None:
    pool = listening(2, tmp_path)
    pool.submit(job(FIRST))
    for task in (0, 1):
        ray.beat(task)
    assert ends_after(pool, clock, 0) == []
    ray.beat(1)
    assert ends_after(pool, clock, 29) == []
    assert ends_after(pool, clock, 1) == []
    assert ray.cancelled == [0]
    ray.end(1)
    ((_, error),) = ends_after(pool, clock, 1)
    assert has_hung(str(error))


def test_a_stopped_trials_shard_that_hangs_does_not_keep_its_place(ray: FakeRay, clock: Clock, tmp_path: Path) -> None:
    pool = listening(1, tmp_path)
    pool.submit(job(FIRST, 0, standing=5))
    ray.beat(0)
    ends_after(pool, clock, 0)
    pool.forget(0)
    pool.submit(job(FIRST, 1, standing=5))
    assert len(ray.started) == 1
    assert ends_after(pool, clock, 30) == []
    assert ray.cancelled == [0]
    assert ray.shown()[1:] == [(1, "v.pgd", 0)]


def test_without_a_limit_nobody_listens(ray: FakeRay, clock: Clock) -> None:
    pool = pool_of(1)
    pool.submit(job(FIRST, standing=5))
    assert ray.places == [None]
    assert ends_after(pool, clock, 1e9) == []
    assert ray.cancelled == []


def test_a_worker_is_warmed_up_for_the_attacks_that_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trainables.attacks.fgsm", raising=False)
    warm_up(["of_a_plugin", "fgsm"])
    assert "trainables.attacks.fgsm" in sys.modules


# On the real Ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A local cluster of one CPU, whose workers die after their fourth unit is stored."""
    from cluster.connect import prepare_environment

    prepare_environment()
    monkeypatch.setenv("PARETUNE_KILL_AT", "unit.written:4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.ray
def test_a_worker_that_dies_between_two_shards_costs_only_what_it_had_not_stored(
    trained: Any, tmp_path: Path, cluster: None
) -> None:
    pool = pool_of(1)
    stage = real_stage(images=60, batch_size=5)  # three shards of a unit: each is two files, of clean images and of PGD
    pool.submit(real_job(trained, tmp_path / "store", stage))
    ended: list[tuple[StageJob, StageOutcome | str]] = []
    limit = time.monotonic() + 120
    while not ended and time.monotonic() < limit:
        time.sleep(0.05)
        ended = pool.done()
    ((_, outcome),) = ended
    assert isinstance(outcome, StageOutcome), outcome
    undisturbed = judge_here(real_job(trained, tmp_path / "undisturbed", stage), 0.0)
    assert outcome.record.verdicts is not None
    assert outcome.record.verdicts.tolist() == undisturbed.record.verdicts.tolist()  # type: ignore[union-attr]
    assert outcome.record.clean_correct == undisturbed.record.clean_correct
    assert len(list((tmp_path / "store").rglob("*.npz"))) == 6
    assert 0 < outcome.judged < undisturbed.judged, "the shard that was stored is not judged again"


def test_a_shard_whose_node_ends_is_judged_on_another_one_without_a_failure_and_the_share_moves(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "sweeps.evaluation.time", types.SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now)
    )
    removed: list[Any] = []
    monkeypatch.setattr(
        sys.modules["ray.util.placement_group"], "remove_placement_group", removed.append, raising=False
    )
    monkeypatch.setattr(
        sys.modules["ray.util.scheduling_strategies"], "PlacementGroupSchedulingStrategy", lambda group: group
    )
    pool = pool_of(2)
    pool.submit(job(FIRST))
    group = ray.options[0]["scheduling_strategy"]
    ray.end(0, NodeEnding("ends"))
    assert pool.done() == []
    assert removed == [], "the other shard still runs in it"
    clock.now = NODE_PAUSE_S
    pool.done()
    assert [shard for _, shard, _ in ray.started] == [0, 1, 0]
    assert ray.options[2]["scheduling_strategy"] is not group
    ray.end(1, NodeEnding("ends"))
    clock.now = 2 * NODE_PAUSE_S
    pool.done()
    assert removed == [group], "given back once, when nothing runs there any more"
    clock.now = 3 * NODE_PAUSE_S
    pool.done()
    assert ray.options[3]["scheduling_strategy"] is ray.options[2]["scheduling_strategy"], "it moves once"
    ray.end(2)
    ray.end(3)
    clock.now = 4 * NODE_PAUSE_S
    ((_, outcome),) = [*pool.done(), *pool.done()]
    assert isinstance(outcome, StageOutcome), outcome


def test_a_shard_is_told_how_long_one_of_its_attack_has_taken_at_most(ray: FakeRay) -> None:
    pool = pool_of(1)
    pool.submit(job(FIRST))
    pool.submit(job(LATER, 1))
    finish(ray, pool)
    pool.submit(job(FIRST, 2))
    told = [(j.number, unit_s) for (j, *_), unit_s in zip(ray.started, ray.unit_s, strict=True)]
    assert told == [(0, None), (0, 1.0), (1, None), (1, 1.0), (2, 1.0)]


@pytest.mark.parametrize(("draining", "moves"), [({"b"}, True), ({"c"}, False)])
def test_no_shard_starts_in_a_share_on_a_node_that_takes_nothing_new(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, draining: set[str], moves: bool
) -> None:
    groups: Any = sys.modules["ray.util.placement_group"]
    places = {"bundles_to_node_id": {0: "a", 1: "b"}}
    removed: list[Any] = []
    monkeypatch.setattr(groups, "placement_group_table", lambda group: places, raising=False)
    monkeypatch.setattr(groups, "remove_placement_group", removed.append, raising=False)
    monkeypatch.setattr("sweeps.evaluation.draining_nodes", lambda: frozenset(draining))
    strategies: Any = sys.modules["ray.util.scheduling_strategies"]
    monkeypatch.setattr(strategies, "PlacementGroupSchedulingStrategy", lambda group: group)
    pool = pool_of(1)
    first = pool._group
    pool.submit(job(FIRST))
    assert (ray.options[0]["scheduling_strategy"] is not first) is moves
    finish(ray, pool)
    assert (removed[:1] == [first]) is moves


@pytest.fixture
def gpu() -> Iterator[None]:
    """A local cluster with a GPU that Ray only counts."""
    from cluster.connect import prepare_environment

    prepare_environment()
    import ray

    ray.init("local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_on_a_reserved_share_of_a_gpu_one_worker_judges_shard_after_shard_and_elsewhere_each_is_new(gpu: None) -> None:
    import ray

    pool = EvaluationPool(Shares(1, 1.0, 0.5, 1, 1.0, 0.25))
    ray.get(pool._warming)

    def pid() -> int:
        return os.getpid()

    def worker() -> int:
        return int(ray.get(ray.remote(max_retries=0, **pool._options())(pid).remote()))

    assert len({worker() for _ in range(3)}) == 1
    pool.use_everything()
    assert len({worker() for _ in range(3)}) == 3
