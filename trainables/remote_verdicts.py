"""The verdict store in an object store: a folder of this machine in front, the objects behind are right.

Before a question is looked up, the units that other machines have stored are brought here, and those of a process that
died before it could publish are sent. An intact unit that is there already under its name is kept: the first verdict
stays. Pyarrow knows no condition for a write, so that two who publish the same unit within milliseconds both write;
what they write differs by rounding at most, and a shard is judged by one worker at a time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cluster.object_store import ObjectStore, make_mirror
from search_spaces.durable_files import make_folder
from search_spaces.faults import durable
from search_spaces.object_uri import ObjectUri, is_object_uri
from trainables.verdict_store import Judged, VerdictStore, is_intact


class RemoteVerdicts(VerdictStore):
    """Verdicts as objects below one place. Every method raises ObjectStoreError."""

    def __init__(self, place: ObjectUri) -> None:
        """Asks nothing."""
        super().__init__(place.mirror)
        self._objects = ObjectStore(place)

    def add(self, digest: str, verdict: Judged) -> Path:
        path = super().add(digest, verdict)
        self._send(path)
        return path

    def _files(self, digest: str) -> list[Path]:
        make_mirror(self._objects.place)
        here = super()._files(digest)
        there = self._objects.sizes(self._name(self._place(digest)))
        for name in sorted(set(there) - {self._name(path) for path in here}):
            self._bring(self.folder / name)
        for path in here:
            if self._name(path) not in there and is_intact(path):
                self._send(path)
        return super()._files(digest)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _send(self, path: Path) -> None:
        """Publish a unit, or take the one that another machine has published under its name, if it is intact."""
        if not self._bring(path, only_intact=True):
            with durable("objects.verdict") as write:
                self._objects.put_object(self._name(path), path.read_bytes(), write)

    def _bring(self, path: Path, *, only_intact: bool = False) -> bool:
        """Download a unit; whoever looks meanwhile sees nothing of it. Returns whether it was there, and taken."""
        make_folder(path.parent)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as aside:
            copy = Path(aside) / path.name
            taken = self._objects.download(self._name(path), copy) and (not only_intact or is_intact(copy))
            if taken:
                os.replace(copy, path)
        return taken


def open_verdicts(place: str | Path) -> VerdictStore:
    """Return the verdicts at a place: a folder, or the URI of objects."""
    return RemoteVerdicts(ObjectUri.read(str(place))) if is_object_uri(place) else VerdictStore(Path(place))
