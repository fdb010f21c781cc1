"""Attack evaluation as work of its own: Ray tasks on a share that no trial can take.

A stage is cut into shards by images, one Ray task each. The shards of first stages come before all others, because the
search waits for them; a shard that runs is never stopped for another, so that what came first ends first among equals.
A shard that is lost with its worker runs again and finds what it had judged in the store. So does one whose node ends
before it could; the reserved share moves to another node then. One that has given no sign of life for
`failures.hang_after_s` is ended with its worker, and its stage has failed as a hang.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.draining import draining_nodes
from cluster.resources import Shares
from search_spaces.errors import AttackHung, NodeEnding, StorageError, SweepError
from search_spaces.imports import quick_imports
from search_spaces.object_uri import ObjectUri
from search_spaces.storage import storage_problem
from sweeps.live_state import PoolState
from sweeps.pulse import Pulse, count_beats, heard, is_silent
from sweeps.pulse_board import pulse_board
from sweeps.stage_job import ShardResult, StageJob, StageOutcome, assemble, judge_shard

if TYPE_CHECKING:
    from trainables.node_data import NodeData

LOST_WORKERS = 3
"""How often a shard whose worker died is started again before its stage has failed (our choice)."""
LOST_NODES = 100
"""The same of a shard whose node was lost, which is hardly its fault (our choice)."""
NODE_PAUSE_S = 1.0
"""After a node was lost nothing starts for so long: until Ray has noticed, it sends work to where nobody is."""
ROOM_S = 5.0
"""Between two looks whether the reserved share has a place, and between two trainings that make room for it."""


def warm_up(attacks: Sequence[str]) -> None:
    """Import what stages with these attacks need, which takes seconds. Runs in a worker."""
    with quick_imports():
        import trainables.assessment
        import trainables.training  # noqa: F401
        from trainables.registry import find

        for attack in attacks:
            with contextlib.suppress(SweepError):  # of a plugin, which its stage will load
                find("attacks", attack)


@dataclass
class _Running:
    """A stage of which not every shard is back."""

    job: StageJob
    started_at: float
    missing: int
    results: list[ShardResult] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, order=True)
class _Shard:
    """A part of a stage that has not started, in the order in which such parts do."""

    priority: int
    order: int
    stage: int
    """Key of its stage."""
    shard: int
    shards: int
    lost: int = 0
    """Workers that have died with it."""
    lost_nodes: int = 0
    """Nodes that were lost with it."""


@dataclass
class _Task:
    """A shard that Ray has been given."""

    part: _Shard
    place: Path | str | None
    """Where it gives signs of life."""
    pulse: Pulse = field(default_factory=Pulse)
    group: Any = None
    """The reserved share in which it runs; None is wherever there is room."""


class EvaluationPool:
    """Runs stages. While trials train it keeps to its reserved share; `use_everything` lifts that."""

    def __init__(
        self,
        shares: Shares,
        attacks: Sequence[str] = (),
        hang_after_s: float | None = None,
        scratch: Path | ObjectUri = Path(),
        held: NodeData | None = None,
    ) -> None:
        """Reserve the share and start its workers.

        Args:
            attacks: keys of those to expect; the workers import them while the first trials train.
            hang_after_s: how long a shard that has begun may judge nothing; None is for ever.
            scratch: folder for the signs of life, which all nodes see, or where the sweep's objects are.
            held: what the nodes hold of the images.
        """
        import ray

        from trainables.verdicts import PACKED_BATCHES

        self._shares = shares
        self._held = held
        self.capacity = shares.evaluation_workers
        self._packed = PACKED_BATCHES
        self._stages: dict[int, _Running] = {}
        self._keys = itertools.count()
        self._waiting: list[_Shard] = []
        """A heap."""
        self._tasks: dict[Any, _Task] = {}
        self._hang_after_s = hang_after_s
        self._pulses = pulse_board(scratch)
        self._listened_at = float("-inf")
        self._quiet_until = float("-inf")
        self._placed_at = time.monotonic()
        if hang_after_s is not None:
            self._pulses.prepare()
        self._group: Any = self._reserve()
        self._reserved: Any = self._group
        self._left: list[Any] = []
        """Reserved shares on nodes that end, in which shards still run."""
        self._unit_s: dict[str, float] = {}
        """What a shard of each attack has taken at most, by label."""
        ray.get(self._group.ready())
        warming = ray.remote(max_retries=0, **self._options())(warm_up)
        self._warming = [
            warming.remote(list(attacks)) for _ in range(self.capacity)
        ]  # kept: a dropped one is cancelled

    @property
    def free(self) -> int:
        """How many more shards could run at once."""
        return max(0, self.capacity - len(self._tasks) - len(self._waiting))

    @property
    def takes_first_stages(self) -> bool:
        """Whether a first stage would be the next to start: none waits already; whatever else waits stands behind."""
        return not self._waiting or self._waiting[0].priority > 0

    @property
    def busy(self) -> bool:
        return bool(self._stages)

    @property
    def running(self) -> list[StageJob]:
        """The stages that have been submitted and are not done."""
        return [stage.job for stage in self._stages.values()]

    def state(self) -> PoolState:
        """Return how far the stages are, for the live view."""
        running = Counter(task.part.stage for task in self._tasks.values())
        waiting = Counter(part.stage for part in self._waiting)
        shards = {}
        for key, stage in self._stages.items():
            done = len(stage.results)
            count = (done, running[key], done + running[key] + waiting[key])
            shards[stage.job.number, (stage.job.stage.split, stage.job.stage.position)] = count
        return PoolState(self.capacity, shards)

    def submit(self, job: StageJob) -> None:
        """Start a stage as soon as there is room; `done` will name it once."""
        shards = job.shards(self.capacity, self._packed * job.stage.batch_size) if job.attacked else 0
        key = next(self._keys)
        self._stages[key] = _Running(job, time.time(), missing=shards)
        for shard in range(shards):
            heapq.heappush(self._waiting, _Shard(priority(job), next(self._keys), key, shard, shards))
        self._start()

    def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
        """Return the stages that ended since the last call, each with its outcome, or its traceback if it failed."""
        import ray

        tasks = list(self._tasks)
        ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0) if tasks else ([], [])
        for reference in ready:
            self._take(reference)
        self._end_what_hangs()
        self._give_back()
        ended = []
        for key, stage in list(self._stages.items()):
            if stage.error is not None:  # its other shards may end, and are in the store for another try
                stage.missing -= self._drop(key)
            if stage.missing == 0:
                del self._stages[key]
                outcome = assemble(stage.job, stage.results, stage.started_at) if stage.error is None else stage.error
                ended.append((stage.job, outcome))
        self._start()
        return ended

    def _take(self, reference: Any) -> None:
        """Take what a task that has ended came to."""
        import ray

        task = self._tasks.pop(reference)
        part = task.part
        stage = self._stages.get(part.stage)
        if stage is None:  # forgotten meanwhile
            return
        try:
            result = ray.get(reference)
            stage.results.append(result)
            label = stage.job.stage.label
            self._unit_s[label] = max(self._unit_s.get(label, 0.0), result.seconds)
        except NodeEnding:  # what it had judged is in the store
            self._quiet_until = time.monotonic() + NODE_PAUSE_S
            self._leave(task.group)
            heapq.heappush(self._waiting, part)
            return
        except Exception as error:  # the evaluation's boundary: whatever it was becomes a recorded failure
            if problem := storage_problem(error):  # but this is nobody's: the driver stops
                raise StorageError(f"an attack on trial {stage.job.number} cannot write: {problem}.") from error
            if stage.error is None and (again := self._again(part, error)):
                heapq.heappush(self._waiting, again)
                return
            stage.error = stage.error or traceback.format_exc()
        stage.missing -= 1

    def _leave(self, group: Any) -> None:
        """Reserve the share on another node: the one where a shard ran in it ends."""
        if group is None or group is not self._group:
            return
        self._left.append(group)
        was_used = self._reserved is not None
        self._group = self._reserve()
        if was_used:
            self._reserved = self._group

    def _leave_what_drains(self) -> None:
        """Reserve the share elsewhere if a node that it is on takes nothing new.

        Ray moves it only from a node that is lost, and until then a shard that is started there would wait.
        """
        from ray.util.placement_group import placement_group_table

        draining = draining_nodes()
        if draining and draining & set(placement_group_table(self._group)["bundles_to_node_id"].values()):
            self._leave(self._group)

    def _give_back(self) -> None:
        """Give up the reserved shares on nodes that end as soon as nothing runs in them."""
        if not self._left:
            return
        from ray.util.placement_group import remove_placement_group

        used = [task.group for task in self._tasks.values()]
        for group in [group for group in self._left if not any(group is other for other in used)]:
            self._left.remove(group)
            remove_placement_group(group)

    def _reserve(self) -> Any:
        from ray.util.placement_group import placement_group

        bundle = {"CPU": self._shares.evaluation_cpus, "GPU": self._shares.evaluation_gpus}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        return placement_group([bundle] * self._shares.evaluation_workers, strategy="SPREAD")

    def _again(self, part: _Shard, error: Exception) -> _Shard | None:
        """Return what is judged again because its worker or its node was lost; None if that is not what happened."""
        if is_lost_with_node(error):
            self._quiet_until = time.monotonic() + NODE_PAUSE_S
            return replace(part, lost_nodes=part.lost_nodes + 1) if part.lost_nodes < LOST_NODES else None
        return replace(part, lost=part.lost + 1) if is_lost(error) and part.lost < LOST_WORKERS else None

    def _end_what_hangs(self) -> None:
        """End the shards that have been silent for too long, with their workers; their stages have failed."""
        import ray

        now = time.monotonic()
        if self._hang_after_s is None or now - self._listened_at < self._pulses.listen_s:
            return
        self._listened_at = now
        beats = self._pulses.look() if self._tasks else count_beats
        for reference, task in list(self._tasks.items()):
            task.pulse = heard(task.pulse, beats(task.place) if task.place else 0, now)
            if not is_silent(task.pulse, now, self._hang_after_s):
                continue
            del self._tasks[reference]
            ray.cancel(reference, force=True)
            stage = self._stages.get(task.part.stage)
            if stage is not None:
                stage.missing -= 1
                stage.error = stage.error or hang_error(stage.job, now - task.pulse.heard_at, self._hang_after_s)

    def use_everything(self) -> None:
        """Training is over: run as many shards at once as fit where the trials were."""
        self._reserved = None  # the group itself stays until Ray ends: what runs in it must not be killed
        self.capacity = self._shares.draining_workers
        self._start()

    def keep_to_share(self) -> None:
        """Trainings come again: what starts from here on keeps to the reserved share."""
        self._reserved, self.capacity = self._group, self._shares.evaluation_workers

    def follow(self, shares: Shares) -> None:
        """Nodes have come or gone: as many shards at once as fit now. What one of them gets stays."""
        self._shares = shares
        if self._reserved is None:
            self.capacity = shares.draining_workers
            self._start()

    def wants_room(self) -> bool:
        """Return whether a training should make room: the reserved share had to leave its node, and on no other node
        is any left. Ray moves it by itself as soon as there is. True at most once in ROOM_S."""
        from ray.util.placement_group import placement_group_table

        now = time.monotonic()
        if self._reserved is None or not self.busy or now - self._placed_at < ROOM_S:
            return False
        self._placed_at = now
        return bool(placement_group_table(self._reserved)["state"] in ("PENDING", "RESCHEDULING"))

    def forget(self, number: int) -> None:
        """Drop a trial's stages: what waits does not start, what runs ends and is not adopted."""
        for key in [key for key, stage in self._stages.items() if stage.job.number == number]:
            self._drop(key)
            del self._stages[key]

    def cancel(self) -> None:
        """Kill what is running; nothing is adopted any more."""
        import ray

        for reference in self._tasks:
            ray.cancel(reference, force=True)
        self._tasks.clear()
        self._waiting.clear()
        self._stages.clear()

    def _start(self) -> None:
        import ray

        if time.monotonic() < self._quiet_until:
            return
        while self._waiting and len(self._tasks) < self.capacity:
            if self._reserved is not None:
                self._leave_what_drains()
            part = heapq.heappop(self._waiting)
            place = None if self._hang_after_s is None else self._pulses.place_of(str(next(self._keys)))
            # Ray's own retries would leave open whether a silent shard runs or waits for another worker
            task = ray.remote(max_retries=0, **self._options())(judge_shard)
            job = replace(self._stages[part.stage].job, gpu_share=self._shares.evaluation_gpus)
            unit_s = self._unit_s.get(job.stage.label)
            reference = task.remote(job, part.shard, part.shards, place, unit_s, self._held)
            self._tasks[reference] = _Task(part, place, group=self._reserved)

    def _drop(self, key: int) -> int:
        """Forget the shards of a stage that have not started; returns how many they were."""
        kept = [part for part in self._waiting if part.stage != key]
        dropped = len(self._waiting) - len(kept)
        heapq.heapify(kept)
        self._waiting = kept
        return dropped

    def _options(self) -> dict[str, Any]:
        """Return what Ray needs to know about a task: its share, and where that is reserved."""
        options: dict[str, Any] = {"num_cpus": self._shares.evaluation_cpus, "num_gpus": self._shares.evaluation_gpus}
        if self._reserved is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._reserved)
            if self._shares.evaluation_workers == 1:
                # Ray ends a worker after each task that has a GPU, because what it leaves there and which device comes
                # next are open. Here neither is: the share stays reserved, on one device. A new one imports long.
                options["max_calls"] = 0
        return options


def priority(job: StageJob) -> int:
    """Return the rank of a stage: 0 what the search waits for, 1 what may move the front, 2 what only describes it."""
    stage = job.stage
    if stage.split == "validation" and stage.cumulative:
        return 0 if stage.position == 0 else 1
    return 2


def is_lost(error: Exception) -> bool:
    """Return whether a task ended by its worker's or its node's death, and not by what it did or by its memory."""
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError | OutOfMemoryError)


def is_lost_with_node(error: Exception) -> bool:
    """Return whether a task ended because its node was lost, or could no longer be reached."""
    from ray.exceptions import NodeDiedError

    return isinstance(error, NodeDiedError)


def hang_error(job: StageJob, silent_s: float, hang_after_s: float) -> str:
    """Say which stage has hung; the name of the error tells its kind."""
    what = f"{job.stage.label} on {job.stage.split} images of trial {job.number}"
    return (
        f"{AttackHung.__name__}: {what} judged nothing for {silent_s:.0f} s (failures.hang_after_s: {hang_after_s:g}); "
        "its worker was ended. What had been judged before is stored."
    )
