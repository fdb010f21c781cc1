"""Where the driver hears the signs of life of all its shards: a folder that all nodes see, or an object store."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from cluster.object_store import ObjectStore
from search_spaces.object_uri import ObjectUri
from sweeps.pulse import count_beats

LISTEN_S = 0.5
"""Between two looks at the signs of life."""
LISTEN_REMOTE_S = 5.0
"""The same where each look is a request (our choice)."""
FOLDER = "pulses"


class PulseBoard:
    """A file for each shard, which grows with every sign of life."""

    listen_s = LISTEN_S
    """Between two looks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def prepare(self) -> None:
        """Make the place; workers make none."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def place_of(self, shard: str) -> Path | str:
        """Return where a shard gives signs of life."""
        return self._folder / shard

    def look(self) -> Callable[[Path | str], int]:
        """Return what tells the signs of life so far by place."""
        return count_beats


class RemotePulses(PulseBoard):
    """The same with an object for each shard; all of them are listed at once. Methods raise ObjectStoreError."""

    listen_s = LISTEN_REMOTE_S

    def __init__(self, place: ObjectUri) -> None:
        """Args: place: of the sweep."""
        self._all = place.joined(FOLDER)
        self._own = self._all.joined(uuid.uuid4().hex[:12])

    def prepare(self) -> None:
        ObjectStore(self._all).delete_folder("")  # of drivers that are gone: the lease has one holder

    def place_of(self, shard: str) -> Path | str:
        return str(self._own.joined(shard))

    def look(self) -> Callable[[Path | str], int]:
        sizes = ObjectStore(self._own).sizes()
        return lambda place: sizes.get(ObjectUri.read(str(place)).parted()[1], 0)


def pulse_board(place: Path | ObjectUri) -> PulseBoard:
    """Return the board at a place: a driver's scratch folder, or where the sweep's objects are."""
    return RemotePulses(place) if isinstance(place, ObjectUri) else PulseBoard(place)
