"""TrialTrainable: what Ray Tune runs. It starts, continues and reports a `Training`, and contains no training itself.

`setup` and `reset_config` only keep the job: Tune may set up an actor for a trial that is over, so nothing is built or
written before the first `step`. An exception at this boundary becomes a recorded failure, and the actor lives on.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune

from search_spaces.durable_files import make_folder, write_whole
from search_spaces.errors import CheckpointError, LossDiverged, ParentChanged, Superseded, ran_out_of_memory
from search_spaces.faults import durable
from search_spaces.imports import quick_imports
from search_spaces.storage import storage_problem
from trainables.config import TrialConfig

FEATURE_COSINE = "val/feature_cosine_adaptive"
"""Key of an epoch's metrics that may be an objective."""


@dataclass(frozen=True)
class TrainingJob:
    """What an actor needs to train one trial; travels as the trial's Tune configuration."""

    number: int
    config: dict[str, Any]
    """TrialConfig.plain()."""
    seed: int
    folder: str
    """The trial's folder, on storage that driver and worker share."""
    token: str
    """Names this attempt. The worker stops when the folder's `attempt` file names another one."""
    parent: dict[str, Any] | None = None
    """Where the weights are that the trial starts from: the fields of a `ParentFile`."""

    def tune_config(self) -> dict[str, Any]:
        """Return the trial's Tune configuration: one text, so that Tune neither flattens nor prints it."""
        return {"job": json.dumps(self.__dict__)}


@dataclass(frozen=True)
class Report:
    """What a step tells the driver, once per epoch and once at the end; travels as JSON in Tune's result."""

    number: int
    status: Literal["training", "trained", "failed", "superseded"]
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
        return {"report": json.dumps(self.__dict__), "done": self.status != "training"}

    @classmethod
    def read(cls, result: dict[str, Any]) -> Report:
        """Read it back from Tune's result."""
        values = json.loads(result["report"])
        return cls(**{**values, "history": tuple(values["history"])})


def write_token(folder: Path, token: str) -> None:
    """Make this attempt the current one of a trial's folder, atomically."""
    make_folder(folder)
    with durable("trial.attempt") as write:
        for left in folder.glob(".attempt.*.tmp"):  # of a driver that was killed; the lease has one holder
            left.unlink()
        write_whole(folder / "attempt", token, write)


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

    def setup(self, config: dict[str, Any]) -> None:
        self._job = TrainingJob(**json.loads(config["job"]))
        self._training: Any = None
        self._said = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        number = self._job.number
        try:
            return self._advance().result()
        except Superseded as error:
            return Report(number, "superseded", error=str(error)).result()
        except Exception as error:  # the trial's boundary: a failure is an outcome, recorded with its traceback
            text = traceback.format_exc()
            self._say(f"failed: {text}")
            history = () if self._training is None else tuple(self._training.history)
            return Report(number, "failed", history, kind=failure_kind(error), error=text).result()

    def _advance(self) -> Report:
        started = time.perf_counter()
        if self._training is None:
            self._training = self._build()
        training = self._training
        if not training.is_done:
            metrics = training.run_epoch()
            self._say_notes(training)
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self._say(f"epoch {training.epochs_done}: {values}")
        history = tuple(training.history)
        if not training.is_done:
            return Report(self._job.number, "training", history, first_step_at=training.first_step_at)
        outcome = training.finish()
        self._say(f"trained: clean_acc {outcome.clean_acc:.4f}, weights {outcome.weights_digest}")
        spent = sum(epoch.get("cost/epoch_s", 0.0) for epoch in history) or time.perf_counter() - started
        cosine = history[outcome.epoch - 1].get(FEATURE_COSINE)
        digest = outcome.weights_digest
        first = training.first_step_at
        return Report(self._job.number, "trained", history, outcome.clean_acc, digest, spent, cosine, first)

    def _build(self) -> Any:
        with quick_imports():
            from trainables.parent import ParentFile
            from trainables.training import Training

        job = self._job
        config = TrialConfig.model_validate(job.config)
        self._say(f"attempt {job.token}: {config.label}, seed {job.seed}, pid {os.getpid()}")
        parent = None if job.parent is None else ParentFile(**job.parent)
        training = Training(config, job.seed, Path(job.folder), still_current=self._still_current, parent=parent)
        self._say_notes(training)
        if training.epochs_done:
            self._say(f"continues after epoch {training.epochs_done}")
        return training

    def _still_current(self) -> None:
        current = (Path(self._job.folder) / "attempt").read_text()
        if is_superseded(self._job.token, current):
            raise Superseded(f"{self._job.folder}: attempt {current} has replaced {self._job.token}.")

    def _say_notes(self, training: Any) -> None:
        for note in training.notes[self._said :]:
            self._say(note)
        self._said = len(training.notes)

    def _say(self, text: str) -> None:
        folder = Path(self._job.folder)
        try:
            with (folder / "log.txt").open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
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
