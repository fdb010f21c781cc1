"""Room on the disk: a driver stops before it is used up, and refuses to start where there is too little.

What a running training may still write is known: it keeps its last checkpoints, writes one more beside them, and then
its final weights. Less than that free, and `MARGIN_BYTES`, is too little.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.object_store import require_objects
from search_spaces.errors import StorageError, StorageFull
from sweeps.folder import SweepFolder

MARGIN_BYTES = 64_000_000
"""For verdicts, ledger, logs, MLflow's database and Ray's own files, until the next look (our choice)."""
LOOK_S = 5.0
"""Between two looks at the disk."""


@dataclass(frozen=True)
class TrialBytes:
    """What one training writes, at most."""

    checkpoint: int
    """One checkpoint."""
    kept: int
    """How many of them are kept at a time; while another one is written there is one more."""
    final: int
    """The final weights."""

    @property
    def most(self) -> int:
        """Most bytes that a training has on the disk at any time."""
        return (self.kept + 1) * self.checkpoint + self.final


def room_needed(size: TrialBytes, there: Sequence[int]) -> int:
    """Return how many bytes must be free. Args: there: bytes that each running training has written already.

    room_needed(TrialBytes(10, 2, 3), [20, 0]) - MARGIN_BYTES  # 13 + 33
    """
    return MARGIN_BYTES + sum(max(0, size.most - written) for written in there)


def free_bytes(place: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def used_bytes(place: Path) -> int:
    """Return the bytes of all files under a folder, or of a file; what vanishes meanwhile counts nothing."""
    found = [place] if place.is_file() else [Path(top, name) for top, _, names in os.walk(place) for name in names]
    return sum(_size_of(path) for path in found)


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def in_words(count: float) -> str:
    """Write bytes as a person would: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def require_room(folder: SweepFolder, size: TrialBytes, running: Sequence[int]) -> None:
    """Raise StorageFull if less is free than the running trainings may still write. Args: running: their numbers."""
    running = [] if folder.objects else running  # those write into an object store, whose room nobody can ask
    there = [used_bytes(folder.trial(number) / "checkpoints") for number in running]
    needed, free = room_needed(size, there), free_bytes(folder.root)
    if free < needed:
        count = f"{len(running)} training{'s' * (len(running) != 1)}"
        raise StorageFull(
            f"{folder.storage}: {in_words(free)} are free, and {in_words(needed)} are needed: "
            f"{in_words(needed - MARGIN_BYTES)} that {count} may still write, and {in_words(MARGIN_BYTES)} beside. "
            f"Make room (`gc {folder.name}` shows what nothing needs)."
        )


def require_writable(folder: SweepFolder) -> None:
    """Raise StorageError if nothing can be written into the sweep's folder, or where it will be, or into the object
    store that its files are in; leaves nothing."""
    place = folder.root
    while not place.exists():
        place = place.parent
    probe = place / f".probe.{os.getpid()}.tmp"
    try:
        try:
            probe.write_bytes(b"?" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"nothing can be written into {place}: {error.strerror}. Nothing was started.") from error
    if (objects := folder.objects) is not None:
        require_objects(objects)


class DiskWatch:
    """Looks at the disk now and then, at the price of one call to the system."""

    def __init__(self, folder: SweepFolder, size: TrialBytes) -> None:
        self._folder = folder
        self._size = size
        self._looked_at = -LOOK_S

    def look(self, running: Sequence[int]) -> None:
        """Raise StorageFull as `require_room` does; most calls return at once. Args: running: numbers of trainings."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            require_room(self._folder, self._size, running)
