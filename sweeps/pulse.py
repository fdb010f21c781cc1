"""Signs of life: by which the driver tells an attack that takes long from one that hangs.

A worker adds a byte to its shard's own file when it begins, when model and images are there, and after every unit. The
driver looks at the length of the file and counts the time since it last grew by a clock of its own, so that no two
clocks are ever compared. While there is no file the shard waits for a worker, and that time does not count.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import ObjectStoreError
from search_spaces.object_uri import ObjectUri

_given: Counter[str] = Counter()
"""Signs of life that this process has given, by object."""
START_S = 120.0
"""A worker may take so long to import what it needs and to load model and images, whatever the limit (our choice)."""


@dataclass(frozen=True)
class Pulse:
    """What the driver has heard of a shard."""

    beats: int = 0
    """Signs of life so far; 0 before it begins."""
    heard_at: float = 0.0
    """When the last one was noticed, in seconds of the driver's monotonic clock."""


def heard(before: Pulse, beats: int, now: float) -> Pulse:
    """Return the pulse after another look, at which there were so many beats."""
    return before if beats == before.beats else Pulse(beats, now)


def is_silent(pulse: Pulse, now: float, hang_after_s: float) -> bool:
    """Return whether a shard that has begun has been silent for too long. is_silent(Pulse(2, 0), 30, 30)  # True"""
    return pulse.beats > 0 and now - pulse.heard_at >= longest_silence(hang_after_s, starting=pulse.beats == 1)


def longest_silence(hang_after_s: float, *, starting: bool) -> float:
    """Return how long nothing may be heard. Args: starting: of a worker that may still be importing and loading."""
    return max(hang_after_s, START_S) if starting else hang_after_s


def beat(place: Path | str | None) -> None:
    """Give a sign of life, if anybody listens. Runs in a worker.

    Args: place: the shard's file, in a folder that its driver has made, or the URI of its object; None: nobody listens.
    """
    if isinstance(place, str):
        _beat_far(place)
    elif place is not None:
        # a driver that is gone has put the folder away, and of a full disk the next unit tells
        with contextlib.suppress(OSError), place.open("ab") as file:
            file.write(b".")


def _beat_far(place: str) -> None:
    """Write the shard's object anew, a byte longer: objects do not grow."""
    from cluster.object_store import ObjectStore

    _given[place] += 1
    board, name = ObjectUri.read(place).parted()
    with contextlib.suppress(ObjectStoreError):  # of a store that is gone the next unit tells
        ObjectStore(board).put_object(name, b"." * _given[place])


def count_beats(place: Path | str) -> int:
    """Return how many signs of life a shard has given in a file; 0 if it has not begun."""
    try:
        return Path(place).stat().st_size
    except OSError:
        return 0
