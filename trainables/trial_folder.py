"""The folder of a trial, wherever it is: on storage that all nodes share, or in an object store with a local copy.

Training, checkpoints and attacks work in a folder and know nothing of this. With an object store that folder is this
machine's own (`ObjectUri.mirror`), and what has been written there is published after each epoch:

::

    <place>/attempt                          which attempt may write
    <place>/log.txt                          as far as it was at the last epoch
    <place>/checkpoints/epoch-0004/…         meta.json last: without it there is no checkpoint
    <place>/final/…                          the same; when it is there, the checkpoints go

What the store has is right. A copy that it does not know goes, unless it continues the store's newest checkpoint: then
a process died between writing and publishing, and what it had done is not done again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cluster.object_store import ObjectStore, make_mirror
from search_spaces.durable_files import make_folder, write_whole
from search_spaces.errors import ObjectStoreError, StorageError
from search_spaces.faults import Durable, durable
from search_spaces.object_uri import ObjectUri, is_object_uri

ATTEMPT, LOG, META = "attempt", "log.txt", "meta.json"


class TrialFolder:
    """A trial's folder on storage that driver and workers share: there is nothing to fetch or to publish."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Where the files are, or will be after `fetch`."""

    def name_attempt(self, token: str) -> None:
        """Make an attempt the current one, atomically."""
        make_folder(self.path)
        with durable("trial.attempt") as write:
            for left in self.path.glob(".attempt.*.tmp"):  # of a driver that was killed; the lease has one holder
                left.unlink()
            write_whole(self.path / ATTEMPT, token, write)

    def attempt(self) -> str:
        """Return the token of the current attempt."""
        return (self.path / ATTEMPT).read_text()

    def fetch(self) -> list[str]:
        """Bring what a training goes on from; returns a sentence for each thing that was damaged."""
        return []

    def fetch_final(self) -> None:
        """Bring the final model, if there is one."""

    def fetch_log(self) -> None:
        """Bring the trial's log, if there is one."""

    def has_final(self) -> bool:
        """Return whether there is a final model."""
        return (self.path / "final").is_dir()

    def append_log(self, line: str) -> None:
        """Add a line, with its end, to the trial's log."""
        with (self.path / LOG).open("a") as log:
            log.write(line)

    def publish(self, still_current: Callable[[], None]) -> None:
        """Let the other machines have what was written here. Args: still_current: raises Superseded."""

    def publish_log(self, still_current: Callable[[], None]) -> None:
        """The same of the log alone."""


class RemoteFolder(TrialFolder):
    """A trial's folder in an object store. Every method raises ObjectStoreError."""

    def __init__(self, place: ObjectUri) -> None:
        """Asks nothing and makes nothing."""
        super().__init__(place.mirror)
        self._store = ObjectStore(place)
        self._logged: int | None = None
        """Bytes of the log that are published; None if nobody has looked yet."""

    def name_attempt(self, token: str) -> None:
        with durable("objects.attempt") as write:
            self._store.put_object(ATTEMPT, token.encode(), write)

    def attempt(self) -> str:
        found = self._store.read(ATTEMPT)
        if found is None:
            raise ObjectStoreError(f"{self._store.place}: the object {ATTEMPT} is gone.")
        return found.decode()

    def has_final(self) -> bool:
        return self._store.read(f"final/{META}") is not None

    def fetch(self) -> list[str]:
        self.fetch_log()
        there = self._store.sizes()
        if f"final/{META}" in there:
            return self._bring(["final"], there)
        checkpoints = _checkpoints(there)
        if not checkpoints:  # what is here follows from the seed alone, or from nothing
            return []
        if self._has_good(checkpoints[0]):
            return []
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        shutil.rmtree(self.path / "final", ignore_errors=True)
        return self._bring(checkpoints, there)

    def fetch_final(self) -> None:
        make_mirror(self._store.place)
        self._bring(["final"], self._store.sizes("final"))

    def fetch_log(self) -> None:
        make_mirror(self._store.place)
        said = self._store.read(LOG) or b""
        self._logged = len(said)
        here = _read(self.path / LOG)
        if said.startswith(here):  # one who follows it has the file open
            with (self.path / LOG).open("ab") as log:
                log.write(said[len(here) :])
        elif not here.startswith(said):
            _replace(self.path / LOG, said)

    def append_log(self, line: str) -> None:
        with contextlib.suppress(StorageError, OSError):  # a line is not worth a trial
            if self._logged is None:
                self.fetch_log()
            super().append_log(line)

    def publish(self, still_current: Callable[[], None]) -> None:
        still_current()
        there = self._store.sizes()
        if (self.path / "final" / META).is_file():
            if f"final/{META}" not in there or not self._is_same("final"):
                with durable("objects.final") as write:
                    self._send("final", f"final/{META}" in there, write)
        else:
            for meta in sorted(self.path.glob(f"checkpoints/*/{META}")):
                folder = meta.parent.relative_to(self.path).as_posix()
                if f"{folder}/{META}" not in there or not self._is_same(folder):
                    with durable("objects.checkpoint") as write:
                        self._send(folder, f"{folder}/{META}" in there, write)
        retired = {str(PurePosixPath(name).parent) for name in there if name.startswith("checkpoints/")}
        retired = {folder for folder in retired if not (self.path / folder / META).is_file()}
        if retired:
            with durable("objects.retire") as write:
                for folder in sorted(retired):
                    self._store.delete_object(f"{folder}/{META}")
                    write.torn()
                    self._store.delete_folder(folder)
        self._publish_log()

    def publish_log(self, still_current: Callable[[], None]) -> None:
        still_current()
        self._publish_log()

    def _publish_log(self) -> None:
        said = _read(self.path / LOG)
        if said and len(said) != self._logged:
            with durable("objects.log") as write:
                self._store.put_object(LOG, said, write)
            self._logged = len(said)

    def _send(self, folder: str, replaces: bool, write: Durable) -> None:
        """Upload a folder, its meta.json last, so that it exists as a whole. Args: write: the caller's point."""
        if replaces:
            self._store.delete_object(f"{folder}/{META}")
        for file in sorted((self.path / folder).iterdir()):
            if file.name != META:
                self._store.upload_file(file, f"{folder}/{file.name}")
                write.torn()
        self._store.upload_file(self.path / folder / META, f"{folder}/{META}")

    def _is_same(self, folder: str) -> bool:
        return self._store.read(f"{folder}/{META}") == _read(self.path / folder / META)

    def _has_good(self, folder: str) -> bool:
        """Return whether this machine has what the store has, undamaged."""
        from trainables.checkpoint import is_whole  # and with it torch, which a driver has no use for

        return self._is_same(folder) and is_whole(self.path / folder)

    def _bring(self, folders: list[str], there: dict[str, int]) -> list[str]:
        """Download the first of some folders that is whole; returns a sentence for each that was not."""
        from trainables.checkpoint import is_whole

        notes: list[str] = []
        for folder in folders:
            if f"{folder}/{META}" not in there or self._has_good(folder):
                return notes
            target = self.path / folder
            make_folder(target.parent)
            place = target.parent / f".{target.name}.{os.getpid()}.tmp"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            try:
                for name in (name for name in there if PurePosixPath(name).parent == PurePosixPath(folder)):
                    self._store.download(name, place / PurePosixPath(name).name)
                if is_whole(place):
                    _put_in_place(place, target)
                    return notes
                notes.append(f"skipped: {self._store.place.joined(folder)} is incomplete or differs from its digest.")
            finally:
                shutil.rmtree(place, ignore_errors=True)
        return notes


def open_folder(place: str | Path) -> TrialFolder:
    """Return the folder of a trial by its place: a path, or the URI of objects."""
    return RemoteFolder(ObjectUri.read(str(place))) if is_object_uri(place) else TrialFolder(Path(place))


def fetched_final(place: str | Path) -> Path:
    """Return the folder of a trial on this machine, its final model fetched if that is needed and there is one.

    Raises: ObjectStoreError.
    """
    folder = open_folder(place)
    folder.fetch_final()
    return folder.path


def _checkpoints(names: dict[str, int]) -> list[str]:
    """Return the folders of checkpoints among objects, newest first."""
    found = [PurePosixPath(name).parent for name in names if PurePosixPath(name).match(f"checkpoints/epoch-*/{META}")]
    return [str(folder) for folder in sorted(found, key=lambda folder: int(folder.name[6:]), reverse=True)]


def _put_in_place(place: Path, target: Path) -> None:
    """Give a copy its name; another process of this machine may bring the same at the same time."""
    with contextlib.suppress(OSError):
        place.rename(target)
        return
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError):
        place.rename(target)


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def _read(file: Path) -> bytes:
    """Return a file's bytes; none if it is not there."""
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return b""
