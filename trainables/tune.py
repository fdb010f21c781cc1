"""TrialTrainable: what Ray Tune runs. It starts, continues and reports a `Training`, and contains no training itself.

`setup` and `reset_config` only keep the job: Tune may set up an actor for a trial that is over, so nothing is built or
written before the first `step`. An exception at this boundary becomes a recorded failure, and the actor lives on.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray import tune

from cluster.draining import drain_this_node
from cluster.ending import ends_at, fits
from search_spaces.errors import (
    CheckpointError,
    LossDiverged,
    ParentChanged,
    StorageError,
    Superseded,
    ran_out_of_memory,
)
from search_spaces.imports import quick_imports
from search_spaces.storage import storage_problem
from trainables.config import TrialConfig
from trainables.trial_folder import open_folder

if TYPE_CHECKING:
    from trainables.node_data import NodeData

FEATURE_COSINE = "val/feature_cosine_adaptive"
"""Key of an epoch's metrics that may be an objective."""
LEAVING_S = 1.0
"""Between two reports of a training that has left its node and is about to be ended (our choice)."""


@dataclass(frozen=True)
class TrainingJob:
    """What an actor needs to train one trial; travels as the trial's Tune configuration."""

    number: int
    config: dict[str, Any]
    """TrialConfig.plain()."""
    seed: int
    folder: str
    """The trial's folder, on storage that driver and worker share: a path, or the URI of objects."""
    token: str
    """Names this attempt. The worker stops when the folder's `attempt` file names another one."""
    parent: dict[str, Any] | None = None
    """Where the weights are that the trial starts from: the fields of a `ParentFile`."""
    gpu_share: float = 0.0
    """Share of a GPU's memory that the training may use: 1 or more is all of it, 0 sets no limit."""
    longest_epoch_s: float | None = None
    """What the longest epoch of the sweep has taken so far; only a node that ends asks."""

    def tune_config(self) -> dict[str, Any]:
        """Return the trial's Tune configuration: one text, so that Tune neither flattens nor prints it."""
        return {"job": json.dumps(self.__dict__)}


@dataclass(frozen=True)
class Report:
    """What a step tells the driver, once per epoch and once at the end; travels as JSON in Tune's result."""

    number: int
    status: Literal["training", "trained", "failed", "superseded", "leaving"]
    """leaving: the node ends before another epoch could; the training goes on elsewhere."""
    history: tuple[dict[str, float], ...] = ()
    """Metrics of every epoch so far."""
    clean_acc: float | None = None
    weights_digest: str | None = None
    seconds: float = 0.0
    feature_cosine: float | None = None
    """After the epoch whose weights were kept, attacked through all that the model has; None if it was not measured."""
    first_step_at: float | None = None
    """When the attempt's first optimizer step was over, in seconds since the epoch."""
    kind: str = ""
    """Of a failure: as `failure_kind` names it."""
    error: str = ""
    """Traceback of a failure."""

    def result(self) -> dict[str, Any]:
        """Return Tune's result."""
        return {"report": json.dumps(self.__dict__), "done": self.status not in ("training", "leaving")}

    @classmethod
    def read(cls, result: dict[str, Any]) -> Report:
        """Read it back from Tune's result."""
        values = json.loads(result["report"])
        return cls(**{**values, "history": tuple(values["history"])})


def write_token(place: Path | str, token: str) -> None:
    """Make this attempt the current one of a trial's folder, atomically. Args: place: as `TrainingJob.folder`."""
    open_folder(place).name_attempt(token)


def is_superseded(mine: str, current: str) -> bool:
    """Return whether a worker's attempt is over. Args: current: what the trial's folder says.

    The higher attempt is right: a driver that slept may leave an old token after another has taken its trial over.

    is_superseded("a/2", "b/3"), is_superseded("b/3", "a/2")  # (True, False)
    """
    numbers = [token.rpartition("/")[2] for token in (mine, current)]
    if all(number.isdecimal() for number in numbers):
        return current != mine and int(numbers[1]) >= int(numbers[0])
    return current != mine


class TrialTrainable(tune.Trainable):
    """One `step` is one epoch; actors are reused, and nothing of a trial is left in the next one."""

    def setup(self, config: dict[str, Any], held: NodeData | None = None) -> None:
        self._held = held
        self._job = TrainingJob(**json.loads(config["job"]))
        self._folder = open_folder(self._job.folder)
        self._training: Any = None
        self._guard: Any = None
        self._said = 0
        self._leaves = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        number = self._job.number
        try:
            return self._within_share().result()
        except Superseded as error:
            return Report(number, "superseded", error=str(error)).result()
        except Exception as error:  # the trial's boundary: a failure is an outcome, recorded with its traceback
            text = traceback.format_exc()
            self._say(f"failed: {text}")
            with contextlib.suppress(StorageError, Superseded):
                self._folder.publish_log(self._still_current)
            history = () if self._training is None else tuple(self._training.history)
            return Report(number, "failed", history, kind=failure_kind(error), error=text).result()

    def _within_share(self) -> Report:
        """Advance in the job's share of a GPU, which is set anew for each job, before anything of it is built."""
        with quick_imports():
            from trainables.gpu_guard import begin_job
            from trainables.gpu_peak import training_remedy
        if self._guard is None:
            self._guard = begin_job(self._job.gpu_share)
        training = self._job.config["training"]
        images, at_once = training["batch_size"], training["micro_batch"]
        with self._guard.explaining(f"a training with batches of {images} images", training_remedy(images, at_once)):
            report = self._advance()
            if report.status == "training":  # the checkpoint is written; what is over does no more harm
                self._guard.check()
            return report

    def _advance(self) -> Report:
        started = time.perf_counter()
        if not self._can_go_on():
            return Report(self._job.number, "leaving")
        if self._training is None:
            self._training = self._build()
        training = self._training
        if not training.is_done:
            metrics = training.run_epoch()
            self._say_notes(training)
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self._say(f"epoch {training.epochs_done}: {values}")
            self._folder.publish(self._still_current)
        history = tuple(training.history)
        if not training.is_done:
            return Report(self._job.number, "training", history, first_step_at=training.first_step_at)
        outcome = training.finish()
        self._say(f"trained: clean_acc {outcome.clean_acc:.4f}, weights {outcome.weights_digest}")
        self._folder.publish(self._still_current)
        spent = sum(epoch.get("cost/epoch_s", 0.0) for epoch in history) or time.perf_counter() - started
        cosine = history[outcome.epoch - 1].get(FEATURE_COSINE)
        digest = outcome.weights_digest
        first = training.first_step_at
        return Report(self._job.number, "trained", history, outcome.clean_acc, digest, spent, cosine, first)

    def _can_go_on(self) -> bool:
        """Whether the node has the time for another epoch; where it has not, it takes nothing new from here on."""
        if (end := ends_at()) is None:
            return True
        done = [] if self._training is None else self._training.history
        longest = max((epoch.get("cost/epoch_s", 0.0) for epoch in done), default=self._job.longest_epoch_s)
        if (self._training is not None and self._training.is_done) or fits(longest, time.time(), end):
            return True
        if self._leaves:  # the driver ends this process in a moment
            time.sleep(LEAVING_S)
        else:
            self._leaves = True
            self._say(f"the node ends in {end - time.time():.0f} s: no epoch is begun that could not end")
            drain_this_node("no epoch fits any more", end)
        return False

    def _build(self) -> Any:
        with quick_imports():
            from trainables.parent import ParentFile
            from trainables.training import Training

        job = self._job
        config = TrialConfig.model_validate(job.config)
        notes = self._folder.fetch()
        self._say(f"attempt {job.token}: {config.label}, seed {job.seed}, pid {os.getpid()}")
        for note in notes:
            self._say(note)
        parent = None if job.parent is None else ParentFile(**job.parent)
        training = Training(
            config, job.seed, self._folder.path, still_current=self._still_current, parent=parent, held=self._held
        )
        self._say_notes(training)
        if training.epochs_done:
            self._say(f"continues after epoch {training.epochs_done}")
        return training

    def _still_current(self) -> None:
        current = self._folder.attempt()
        if is_superseded(self._job.token, current):
            raise Superseded(f"{self._job.folder}: attempt {current} has replaced {self._job.token}.")

    def _say_notes(self, training: Any) -> None:
        for note in training.notes[self._said :]:
            self._say(note)
        self._said = len(training.notes)

    def _say(self, text: str) -> None:
        try:
            self._folder.append_log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:  # the disk is full or gone, which a checkpoint says too; a line is not worth a trial
            if not storage_problem(error):
                raise

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trainings write and find their own checkpoints under the trial's number."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing; see `save_checkpoint`."""


def failure_kind(error: BaseException) -> str:
    """Name the kind of a failure: storage or parent (which are no trial's), nan, checkpoint, memory, or exception."""
    if storage_problem(error):
        return "storage"
    if isinstance(error, ParentChanged):
        return "parent"
    if isinstance(error, LossDiverged):
        return "nan"
    if isinstance(error, CheckpointError):
        return "checkpoint"
    if isinstance(error, MemoryError) or ran_out_of_memory(f"{type(error).__name__}: {error}"):
        return "memory"
    return "exception"
