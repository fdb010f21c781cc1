"""Every error that Paretune raises on purpose, in one tree.

SweepError
├── ConfigError               the YAML, or an override, asks for something impossible; lists every problem at once
├── SweepExists               `launch` of a name that is taken
├── SweepNotFound             no sweep of that name in the storage folder
├── ConfigurationChanged      `resume` with a configuration that would make results incomparable
├── LedgerError
│   ├── IllegalTransition     a trial cannot go from its state to the one asked for
│   ├── LeaseHeld             another driver runs this sweep
│   └── LeaseLost             this driver was away too long and another may have taken over
├── StorageError              the sweep's folder cannot be written: full, read-only, gone
│   ├── StorageFull           less is free than what runs may still need
│   ├── StorageNotShared      a node of the cluster does not see the sweep's folder
│   └── ObjectStoreError      the object store does not answer, or refuses
├── ClusterError              the cluster cannot be joined, or has not what the sweep asks for
│   ├── MixedEnvironments     nodes run other versions, or other code, than the driver
│   └── NodeEnding            a worker's node has not the time left that the next piece of work takes
├── TrackingAway              MLflow does not answer, and a command needs it
├── ParentError               a model that trials start from has failed for good, or its file is not what it was
│   └── ParentChanged         a trial found other weights than those that it is to start from, or none
├── DataError                 a data set is missing, incomplete or malformed
├── ModelError                a model cannot be built, or a method cannot handle it
├── CheckpointError
│   ├── CheckpointCorrupt     a file of a checkpoint is missing or its bytes differ from its digest
│   └── CheckpointMismatch    a checkpoint belongs to another configuration or seed
├── AttackError               an attack cannot run here, or broke its own contract (ε-ball, pixel range)
│   └── AttackHung            an attack has judged nothing for longer than it may
├── GpuMemoryExceeded         a process takes more of a GPU than its share, or its share is too small to begin with
│   └── DoesNotFit            a training or an attack does not fit though it has a whole device
├── LossDiverged              a loss became NaN or infinite
├── Superseded                a worker noticed that its attempt is no longer the current one
└── ObjectiveMissing          an evaluation ended without the value that it was for
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OUT_OF_MEMORY = (
    "OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory", "low on memory",
    "STATUS_ALLOC_FAILED", "GpuMemoryExceeded", "DoesNotFit",
)  # fmt: skip
"""Words by which an error, a traceback, or Ray's account of a worker's end says that memory was the reason."""


class SweepError(Exception):
    """Base of all errors in this module; its text is meant for the user."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration: where, what was found, what is allowed, what to do."""

    path: tuple[str | int, ...]
    """Keys and list positions from the document's root, e.g. ("methods", 1, "jasmin", "k")."""
    message: str
    """One sentence: what was found and what is allowed."""
    hint: str = ""
    """What to do next; may be empty."""
    source: str = ""
    """File name, or the command-line option, that holds the value."""
    line: int | None = None
    """1-based line in the file."""

    def where(self) -> str:
        """Return ``file:line: methods[1].jasmin.k`` with the parts that are known."""
        place = ":".join(str(part) for part in (self.source, self.line) if part)
        dotted = dotted_path(self.path)
        return ": ".join(part for part in (place, dotted) if part)

    def __str__(self) -> str:
        text = f"{self.where()}: {self.message}" if self.where() else self.message
        return f"{text} {self.hint}".rstrip()


def dotted_path(path: Iterable[str | int]) -> str:
    """Write a path as a person would: ``methods[1].jasmin.k``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class ConfigError(SweepError):
    """The configuration is unusable; `problems` has every mistake, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(f"{head} in the configuration:\n" + "\n".join(f"  {p}" for p in self.problems))


class SweepExists(SweepError):
    """A sweep of that name is already in the storage folder."""


class SweepNotFound(SweepError):
    """There is no sweep of that name in the storage folder."""


class ConfigurationChanged(SweepError):
    """The configuration differs from the one that the sweep was launched with."""


class LedgerError(SweepError):
    """The ledger refuses."""


class IllegalTransition(LedgerError):
    """A trial is not in a state from which the asked transition may start."""


class LeaseHeld(LedgerError):
    """Another driver holds the sweep's lease."""


class LeaseLost(LedgerError):
    """This driver no longer holds the lease; it must write nothing more."""


class StorageError(SweepError):
    """The sweep's storage cannot be written."""


class StorageFull(StorageError):
    """The sweep's storage has less room than what runs may still need."""


class StorageNotShared(StorageError):
    """A node of the cluster does not see the sweep's folder."""


class ObjectStoreError(StorageError):
    """The object store does not answer, or refuses; text begins with the place."""


class ClusterError(SweepError):
    """The cluster cannot be joined, or has not what the sweep asks for."""


class MixedEnvironments(ClusterError):
    """Nodes of the cluster run other versions, or other code, than the driver."""


class NodeEnding(ClusterError):
    """The node that this work runs on ends too soon to go on there; nobody's failure."""


class TrackingAway(SweepError):
    """MLflow does not answer."""


class DriverCrashed(SweepError):
    """The driver itself failed; the sweep is whole and can be resumed."""


class ParentError(SweepError):
    """A model that trials start from cannot be had; no trial has failed by it."""


class ParentChanged(ParentError):
    """The weights of a parent are missing, or not those that were recorded."""


class DataError(SweepError):
    """A data set is missing, incomplete or malformed."""


class ModelError(SweepError):
    """A model cannot be built as asked."""


class CheckpointError(SweepError):
    """A checkpoint cannot be used."""


class CheckpointCorrupt(CheckpointError):
    """A file of the checkpoint is missing or damaged."""


class CheckpointMismatch(CheckpointError):
    """The checkpoint belongs to another configuration or seed."""


class AttackError(SweepError):
    """An attack cannot run here, or returned images outside its threat model."""


class AttackHung(AttackError):
    """An attack has judged nothing for longer than `failures.hang_after_s`."""


class GpuMemoryExceeded(SweepError):
    """A process takes more of a GPU than its share; memory is the reason, as when the device itself has none left."""


class DoesNotFit(GpuMemoryExceeded):
    """A training or an attack ran out of memory with a whole device to itself: no larger share can help."""


class LossDiverged(SweepError):
    """The training loss became NaN or infinite."""


class Superseded(SweepError):
    """This worker's attempt is no longer the current one."""


class ObjectiveMissing(SweepError):
    """An evaluation ended without the value that it was for."""


def ran_out_of_memory(text: str) -> bool:
    """Return whether an error's text says that a device or the machine had no memory left."""
    return any(words in text for words in OUT_OF_MEMORY)


def has_hung(text: str) -> bool:
    """Return whether an attack stage's error is that it has judged nothing for too long."""
    return text.startswith(AttackHung.__name__)
