"""How fast a driver gets on, and how long it will still take: estimates from what it has measured itself. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sweeps.records import Split

WINDOW_S = 300.0
"""The pace is that of the last five minutes (our choice), so that it follows a machine that slows down."""
FEWEST = 10
"""Ends of epochs that the pace rests on at least, where there are so many: an epoch may outlast the window."""

StageKey = tuple[Split, int]
"""Split and position of an attack stage."""


@dataclass(frozen=True)
class Tick:
    """The end of some epochs of one training."""

    at: float
    """Seconds since the epoch."""
    epochs: int
    images: float = 0.0
    """Training images in them."""


@dataclass(frozen=True)
class Pace:
    """Of all trainings together."""

    epochs_per_s: float
    images_per_s: float
    """Training images; 0 where they are not counted."""


def measure_pace(ticks: Sequence[Tick], began: float, now: float) -> Pace | None:
    """Return the pace of the last `WINDOW_S`, or of the last `FEWEST` ticks if those reach further; None before any.

    Args: ticks: of this driver alone, oldest first; began: when its first training started.

    measure_pace([Tick(10, 1, 50), Tick(20, 1, 50)], 0, 20)  # Pace(0.1, 5.0)
    """
    if not ticks:
        return None
    fresh = sum(tick.at > now - WINDOW_S for tick in ticks)
    recent = ticks[-max(fresh, FEWEST) :]
    earlier = len(ticks) - len(recent)
    since = ticks[earlier - 1].at if earlier else began
    span = max(now - since, 1e-3)
    return Pace(sum(t.epochs for t in recent) / span, sum(t.images for t in recent) / span)


@dataclass(frozen=True)
class Work:
    """What a sweep has still to do."""

    epochs: float = 0.0
    """Of trainings that run, wait, or have yet to be proposed."""
    first: int = 0
    """Trials that have yet to meet their first attack stage."""
    later: Collection[StageKey] = ()
    """Further stages, once for each trial that will meet them, as far as the front of the moment tells."""


@dataclass(frozen=True)
class Left:
    """Time left."""

    seconds: float
    at_least: bool = False
    """Whether part of the work has never been measured, and is not in `seconds`."""


def time_left(work: Work, pace: Pace | None, means: Mapping[StageKey, float], workers: int) -> Left | None:
    """Return how long the rest may take; None while nothing of it has been measured.

    First stages run beside the trainings and may outlast them; all later ones come when training is over.

    Args: means: mean seconds of each stage; workers: attack stages at once.
    """
    known, at_least, seconds = False, False, 0.0
    if work.epochs > 0:
        if pace is None or pace.epochs_per_s <= 0:
            return None
        known, seconds = True, work.epochs / pace.epochs_per_s
    if work.first:
        mean = means.get(("validation", 0))
        known, at_least = known or mean is not None, mean is None
        seconds = max(seconds, work.first * (mean or 0.0) / max(1, workers))
    for stage in work.later:
        mean = means.get(stage)
        known, at_least = known or mean is not None, at_least or mean is None
        seconds += (mean or 0.0) / max(1, workers)
    done = not (work.epochs > 0 or work.first or work.later)
    return Left(seconds, at_least) if known or done else None


def in_clock(seconds: float) -> str:
    """Write a time as a clock does: 05:09, 2:05:09."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def in_words(left: Left | None) -> str:
    """Write time left as a person would say it: "about 4 min left", "more than 2.1 h left", "time left: –"."""
    if left is None or (left.at_least and left.seconds < 10):
        return "time left: –"
    about = "more than" if left.at_least else "about"
    if left.seconds < 10:
        return "nearly done"
    if left.seconds < 90:
        return f"{about} {round(left.seconds, -1):.0f} s left"
    if left.seconds < 5400:
        return f"{about} {left.seconds / 60:.0f} min left"
    hours = left.seconds / 3600
    return f"{about} {hours:.1f} h left" if hours < 48 else f"{about} {hours / 24:.1f} days left"
