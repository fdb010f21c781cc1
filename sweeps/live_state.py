"""What the live view shows, as frozen values: made by `sweeps/live_reader.py`, drawn by `sweeps/live_block.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeps.pace import Left, Pace, StageKey


@dataclass(frozen=True)
class PoolState:
    """What only a driver knows of its attacks."""

    workers: int = 1
    """Shards of attack stages that may run at once."""
    shards: Mapping[tuple[int, StageKey], tuple[int, int, int]] = field(default_factory=dict)
    """(trial, stage) → (shards done, running, in all)."""


@dataclass(frozen=True)
class Training:
    """A trial, or a parent, that trains or is about to."""

    name: str
    """The trial's number, or a parent's name."""
    label: str
    epochs: int
    planned: int | None
    """Epochs that it will take; None if the configuration does not say."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The latest of: clean (accuracy), robust (that of the monitor), loss."""
    started: bool = True
    stopping: bool = False
    """Whether another terminal has asked for its end."""


@dataclass(frozen=True)
class Attack:
    """An attack stage that was started and has not ended."""

    number: int
    label: str
    """Of the trial's method."""
    what: str
    """autoattack 3 of 12: fab_t, target 2."""
    shards: tuple[int, int, int] | None = None
    """(done, running, in all); None where only the ledger is known."""


@dataclass(frozen=True)
class Member:
    """A trial of the front so far: no finished trial is better, as far as the attacks have got."""

    number: int
    label: str
    values: tuple[float, ...]
    """Its objectives."""
    exact: bool = True
    """Whether all planned attacks have run; otherwise its robust accuracy is a bound."""


@dataclass(frozen=True)
class LiveState:
    """A sweep at one moment."""

    name: str
    requested: int
    finished: int
    stopped: int
    failed: tuple[tuple[int, str], ...]
    """(trial, kind) of the trials that have failed."""
    trainings: tuple[Training, ...]
    attacks: tuple[Attack, ...]
    to_judge: int
    """Trained trials that wait for their first attack."""
    front: tuple[Member, ...]
    """By falling first objective."""
    objectives: tuple[str, ...]
    labels: tuple[str, ...]
    """The methods in the order in which the sweep met them, which decides their colours."""
    failed_attacks: int = 0
    """Trials of which an attack stage has failed."""
    pace: Pace | None = None
    left: Left | None = None
    asked: tuple[str, ...] = ()
    """What other terminals ask for and the driver has not granted: "stop 7"."""
    elapsed_s: float | None = None
    """Since the driver started."""
    alive: bool = True
    """Whether a driver runs; otherwise what is open waits for the next one."""

    @property
    def closed(self) -> int:
        """Trials that are over."""
        return self.finished + self.stopped + len(self.failed)
