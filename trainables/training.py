"""Training: one trial's fine-tuning as a durable process that can stop and go on at the end of every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from search_spaces.errors import CheckpointCorrupt, LossDiverged
from trainables import checkpoint
from trainables.checkpoint import Checkpoint, Identity, Weights
from trainables.config import TrialConfig
from trainables.gpu_memory import memory_metrics
from trainables.learner import Learner
from trainables.monitor import Monitor, is_due
from trainables.node_data import NodeData
from trainables.parent import ParentFile, read_parent
from trainables.randomness import Randomness
from trainables.trial import find_splits, load_final

__all__ = ["Outcome", "Training", "load_final"]


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves."""

    clean_acc: float
    """Accuracy of the final weights on the validation split."""
    weights_digest: str
    epoch: int
    """Epochs after which the final weights were taken."""
    folder: Path


class Training:
    """One trial's fine-tuning.

    On a CPU its weights are a pure function of (config, seed): an interruption between two epochs, or other work in
    the same process, changes no bit.
    """

    def __init__(
        self,
        config: TrialConfig,
        seed: int,
        folder: Path,
        *,
        device: torch.device | None = None,
        still_current: Callable[[], None] | None = None,
        parent: ParentFile | None = None,
        held: NodeData | None = None,
    ) -> None:
        """Build everything and restore what `folder` holds: the final model, or the newest good checkpoint.

        Args:
            folder: the trial's own.
            device: defaults to the first GPU, or the CPU if there is none.
            still_current: raises Superseded if another attempt has taken over; called before every durable write.
            parent: where the weights are that ``config.start_from`` names.
            held: what this node holds of the images.

        Raises: DataError, ModelError, CheckpointMismatch; ParentChanged if the parent's weights are not what they were.
        """
        self.config, self.seed, self.folder = config, seed, folder
        self.history: list[dict[str, float]] = []
        """One entry per epoch done."""
        self.notes: list[str] = []
        """What the user should know: damaged checkpoints that were skipped, weights that were left out, what methods
        noted. It grows with every epoch."""
        self.first_step_at: float | None = None
        """When the first optimizer step of this process was over, in seconds since the epoch; None without one."""
        self._check_current = still_current or (lambda: None)
        self._identity = Identity(config.digest(), seed)
        self._best_accuracy, self._best_epoch = -1.0, 0
        self._best_weights: Weights | None = None
        self._randomness = Randomness(seed)
        self._outcome = self._find_outcome()
        if self._outcome is None:
            self._splits = find_splits(config, held)
            named = config.start_from
            start = None if parent is None or named is None else read_parent(parent, named.name)
            with self._own_world():
                self._learner = Learner(config, seed, self._splits, device or default_device(), start)
            if config.monitor.images:
                batch_size = config.training.batch_size
                self._monitor = Monitor(config.monitor, self._splits, batch_size, self._learner.device)
            self.notes += self._learner.take_notes()
            self._restore()

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def is_done(self) -> bool:
        return self.epochs_done >= self.config.training.epochs

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, validate, write a checkpoint, and return the epoch's metrics.

        Keys: those of `Learner.train_epoch`, val/clean_acc, val/loss, selection/acc if training.select is "best",
        what the methods measure, those of `Monitor.measure` if it is due, cost/epoch_s, cost/images, and on a GPU
        cost/gpu_memory_gb.

        Raises: LossDiverged, Superseded; RuntimeError if all epochs are done.
        """
        if self.is_done:
            raise RuntimeError(f"all {self.config.training.epochs} epochs are done; call finish()")
        started = time.monotonic()
        with self._own_world():
            metrics = self._learner.train_epoch(self.epochs_done) | self._validate() | self._learner.measure()
            metrics |= self._look()
        self.first_step_at = self._learner.first_step_at
        self.notes += self._learner.take_notes()
        metrics |= {"cost/epoch_s": time.monotonic() - started, "cost/images": float(len(self._splits.train.labels))}
        metrics |= memory_metrics(self._learner.device)
        self.history.append(metrics)
        self._check_current()
        checkpoint.write_checkpoint(self.folder, self._snapshot(), self._identity)
        return metrics

    def finish(self) -> Outcome:
        """Write the final model and drop the training checkpoints; the same answer however often it is called.

        Raises: Superseded; RuntimeError if epochs are missing.
        """
        if self._outcome is None:
            if not self.is_done:
                raise RuntimeError(f"{self.epochs_done} of {self.config.training.epochs} epochs are done")
            if self._best_weights is not None:
                self._learner.kept_model.load_state_dict(self._best_weights)
            self._write_final()
            self._outcome = self._find_outcome()
            assert self._outcome is not None
        return self._outcome

    def _find_outcome(self) -> Outcome | None:
        """Read the final model; if it is good, the checkpoints that led to it go."""
        try:
            final = checkpoint.read_final(self.folder, self._identity)
        except CheckpointCorrupt as error:
            self.notes.append(f"final model not usable: {error}")
            return None
        if final is None:
            return None
        self._check_current()
        checkpoint.drop_checkpoints(self.folder)
        self.history = final.meta["history"]
        return Outcome(final.meta["clean_acc"], final.meta["weights_digest"], final.meta["epoch"], self.folder)

    def _write_final(self) -> None:
        splits, kept = self._splits, self._learner.kept_model
        with self._own_world():
            clean_acc, _ = self._learner.accuracy_and_loss(self._learner.splits.validation)
        meta = {
            "config": self.config.plain(),
            "epoch": self._best_epoch or self.epochs_done,
            "clean_acc": clean_acc,
            "history": self.history,
            "data_digest": splits.digest(),
            "num_classes": splits.num_classes,
            "channels": splits.channels,
            "mean": splits.mean,
            "std": splits.std,
        }
        self._check_current()
        checkpoint.write_final(self.folder, kept.state_dict(), meta, self._identity)

    def _validate(self) -> dict[str, float]:
        splits = self._learner.splits
        accuracy, loss = self._learner.accuracy_and_loss(splits.validation)
        if not math.isfinite(loss):
            raise LossDiverged(f"the validation loss is {loss} after epoch {self.epochs_done + 1}.")
        metrics = {"val/clean_acc": accuracy, "val/loss": loss}
        if splits.selection is not None:
            chosen_by, _ = self._learner.accuracy_and_loss(splits.selection)
            metrics["selection/acc"] = chosen_by
            if chosen_by > self._best_accuracy:  # the earliest of equals
                self._best_accuracy, self._best_epoch = chosen_by, self.epochs_done + 1
                weights = self._learner.kept_model.state_dict()
                self._best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return metrics

    def _look(self) -> dict[str, float]:
        """Let the monitor measure the kept model, if it is due after this epoch."""
        if not is_due(self.config.monitor, self.epochs_done + 1, self.config.training.epochs):
            return {}
        return self._monitor.measure(self._learner.kept_model)

    def _snapshot(self) -> Checkpoint:
        state = {
            **self._learner.state_dict(),
            "randomness": self._randomness.state_dict(),
            "best": [self._best_accuracy, self._best_epoch],
        }
        weights = self._learner.model.state_dict()
        return Checkpoint(self.epochs_done, weights, state, self.history, self._best_weights)

    def _restore(self) -> None:
        found, notes = checkpoint.newest_good(self.folder, self._identity)
        self.notes += notes
        if found is not None:
            self._learner.load_state_dict(found.weights, found.state)
            self._randomness.load_state_dict(found.state["randomness"])
            self._best_accuracy, self._best_epoch = found.state["best"]
            self._best_weights, self.history = found.selected, found.history

    @contextmanager
    def _own_world(self) -> Iterator[None]:
        """Work with this trial's random numbers and thread count, and leave the process as it was."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.config.threads)
        try:
            with self._randomness.active():
                yield
        finally:
            torch.set_num_threads(threads)


def default_device() -> torch.device:
    """Return the first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
