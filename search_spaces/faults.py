"""Fault injection: places at which a test can have this process killed, as a power cut would.

``PARETUNE_KILL_AT=ledger.propose:torn:3`` kills the process with SIGKILL when it reaches that point for the third time.
Without the variable a point costs one dictionary look-up.

Every durable write stands inside ``with durable(name)``: a point before it, one half-way, one after it. A test reads
the sources and refuses a write that stands anywhere else. Between the writes there are moments: something has been
done, or read, and is not committed yet.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

VARIABLE = "PARETUNE_KILL_AT"
MODES = ("before", "torn", "after")

Moment = Literal[
    "propose.commit",
    "train.start",
    "epochs.commit",
    "trained.commit",
    "stage.start",
    "unit.write",
    "unit.written",
    "stage.adopt",
    "mlflow.note",
]
"""Each names what has been done and not yet been committed when it is reached."""

WRITES: Mapping[str, str] = {
    "sweep.config": "the frozen copy of the configuration",
    "sweep.objects": "where in an object store the sweep's trials and verdicts are",
    "sweep.ledger": "the sweep's birth: the new ledger gets its name",
    "ledger.create": "the tables and the sweep's row, in a ledger that has no name yet",
    "ledger.take_lease": "who may write",
    "ledger.heartbeat": "that the driver lives",
    "ledger.release_lease": "that nobody writes",
    "ledger.note_driver": "what happened to the driver itself",
    "ledger.raise_total": "a larger total of trials",
    "ledger.add_plan": "a further plan's stages",
    "ledger.propose": "a proposal: number, configuration and seed",
    "ledger.start_training": "that an attempt at a training begins",
    "ledger.record_epochs": "the metrics of the epochs so far",
    "ledger.finish_training": "a trained model: clean accuracy and the digest of its weights",
    "ledger.note_failure": "a failed attempt that is followed by another",
    "ledger.fail": "a trial's failure",
    "ledger.finish_without_attack": "the end of a trial whose plan has no attack",
    "ledger.start_stage": "that an attack stage begins",
    "ledger.finish_stage": "an attack stage's verdicts, and with the first the trial's values",
    "ledger.fail_stage": "an attack stage's failure",
    "ledger.note_stage_failure": "a failed try of an attack stage that is followed by another",
    "ledger.grant": "what another terminal asked for, done",
    "ledger.add_prior": "finished trials of another sweep that inform the sampler",
    "ledger.change_document": "another configuration whose results are comparable",
    "ledger.complete": "the end of the sweep",
    "ledger.note_mlflow_sweep": "which of MLflow's runs is the sweep's",
    "ledger.note_mlflow_trial": "which of MLflow's runs is a trial's, and what it shows already",
    "request.put": "what another terminal asks for",
    "request.remove": "nothing: a request goes that has been granted",
    "trial.attempt": "which attempt may write in a trial's folder",
    "checkpoint.epoch": "a training after an epoch",
    "checkpoint.retire": "nothing: checkpoints go that newer ones have replaced",
    "checkpoint.final": "a trained model's weights",
    "checkpoint.drop": "nothing: checkpoints go that the final model has replaced",
    "objects.attempt": "the same as trial.attempt, in an object store",
    "objects.checkpoint": "a training after an epoch, in an object store",
    "objects.retire": "nothing: checkpoints go from an object store that newer ones or the final model have replaced",
    "objects.final": "a trained model's weights, in an object store",
    "objects.log": "nothing: what a trial has said, in an object store",
    "gc.remove": "nothing: files go that nothing needs any more",
    "verdict.unit": "the verdicts on a unit of images",
    "objects.verdict": "the same in an object store",
    "mlflow.create_experiment": "MLflow's experiment",
    "mlflow.create_run": "MLflow's run of the sweep or of a trial",
    "mlflow.log_batch": "a trial's parameters, metrics and tags in MLflow",
    "mlflow.log_inputs": "the data set of a run in MLflow",
    "mlflow.log_text": "a file of a run in MLflow",
    "mlflow.set_tag": "a run's tag that has changed alone",
    "mlflow.set_experiment_tag": "the view of the front in MLflow",
    "mlflow.update_run": "that a run which had ended goes on",
    "mlflow.set_terminated": "a run's end in MLflow",
}
"""Name of a durable write → what it makes durable. Its points are ``name:before``, ``name:torn`` and ``name:after``."""

_reached: Counter[str] = Counter()


class Durable:
    """One durable write under way. A function that takes it writes inside its caller's point."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Durable:
        _reach(f"{self.name}:before")
        return self

    def torn(self, file: Path | None = None) -> None:
        """Mark a place half-way: a part is written and nothing of it may count yet.

        Args: file: the last one written so far; who dies here leaves half of its bytes, as a power cut does.
        """
        _reach(f"{self.name}:torn", file)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            _reach(f"{self.name}:after")


def durable(name: str) -> Durable:
    """Return the points of one durable write, as a context. Args: name: one of WRITES, another one is a KeyError."""
    if name not in WRITES:
        raise KeyError(f"{name!r} is no durable write; add it to WRITES in search_spaces/faults.py, and to the tests.")
    return Durable(name)


def reach(moment: Moment) -> None:
    """Die here, if the environment says so."""
    _reach(moment)


def _reach(point: str, file: Path | None = None) -> None:
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    _reached[point] += 1
    if wanted == f"{point}:{_reached[point]}":
        if file is not None:
            os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
