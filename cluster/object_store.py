"""An object store by a few verbs: pyarrow's file systems, with time limits and one error for all that they raise.

What is relied on: an object is there with all of its bytes or not at all, also one that replaces another, and who lists
or reads after a write sees it (S3 since 2020, Google's store, MinIO, Ceph). There is no rename and no lock. Pyarrow's
SDK tries a request again that timed out or was throttled, three times in all.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from search_spaces.durable_files import make_folder
from search_spaces.errors import ObjectStoreError, StorageError
from search_spaces.faults import Durable
from search_spaces.object_uri import ObjectUri, mirror_root

CONNECT_S = 5.0
"""A connection may take so long (our choice)."""
SILENCE_S = 10.0
"""A request may move no byte for so long; with the retries a dead server is given up after some 40 s (our choice)."""
CHUNK_BYTES = 16 * 2**20


class ObjectStore:
    """The objects below one place. Every call goes to the server; names are relative to the place.

    Raises: ObjectStoreError, from every verb, if the server does not answer, or refuses.
    """

    def __init__(self, place: ObjectUri) -> None:
        """Asks nothing."""
        self.place = place

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes; None if there is none."""
        with self._translated(), contextlib.suppress(FileNotFoundError), self._source(name) as stream:
            return bytes(stream.read())
        return None

    def read_head(self, name: str, count: int) -> bytes | None:
        """Return the first `count` bytes of an object, or all if it is shorter; None if there is none."""
        with self._translated(), contextlib.suppress(FileNotFoundError):
            system = _file_system(self.place.scheme, self.place.options)
            with system.open_input_file(self._path(name)) as file:
                return bytes(file.read_at(min(count, file.size()), 0))
        return None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the bytes of every object whose name begins with the folder `prefix`, by name."""
        from pyarrow.fs import FileSelector, FileType

        with self._translated():
            selector = FileSelector(self._path(prefix), allow_not_found=True, recursive=True)
            found = _file_system(self.place.scheme, self.place.options).get_file_info(selector)
        start = len(self.place.path) + 1
        return {info.path[start:]: info.size for info in found if info.type == FileType.File}

    def download(self, name: str, file: Path) -> bool:
        """Write an object into a file, which is not whole before this returns; False if there is no such object."""
        with self._translated(), contextlib.suppress(FileNotFoundError), self._source(name) as stream:
            _write_all(stream, file)
            return True
        return False

    def put_object(self, name: str, content: bytes, write: Durable | None = None) -> None:
        """Write an object as a whole. Args: write: the caller's point, if it is a durable one."""
        with self._translated(), self._sink(name) as sink:
            sink.write(content)
            if write is not None:
                write.torn()

    def upload_file(self, file: Path, name: str) -> None:
        """Write a file's bytes as an object. OSError if the file cannot be read."""
        with file.open("rb") as source, self._translated(), self._sink(name) as sink:
            while chunk := source.read(CHUNK_BYTES):
                sink.write(chunk)

    def delete_object(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._translated(), contextlib.suppress(FileNotFoundError):
            _file_system(self.place.scheme, self.place.options).delete_file(self._path(name))

    def delete_folder(self, prefix: str) -> None:
        """Remove every object whose name begins with the folder `prefix`, one request for a thousand."""
        with self._translated(), contextlib.suppress(FileNotFoundError):
            _file_system(self.place.scheme, self.place.options).delete_dir(self._path(prefix))

    def check(self) -> None:
        """Write, read, list and delete an object of its own; ObjectStoreError says which of them is refused."""
        folder, word = f".probe-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex.encode()
        self.put_object(f"{folder}/word", word)
        found, names = self.read(f"{folder}/word"), self.sizes(folder)
        self.delete_folder(folder)
        if found != word or list(names) != [f"{folder}/word"]:
            raise ObjectStoreError(f"{self.place}: an object that was written is not read or listed as it was.")

    def _path(self, name: str) -> str:
        return f"{self.place.path}/{name}".rstrip("/")

    def _source(self, name: str) -> Any:
        return _file_system(self.place.scheme, self.place.options).open_input_stream(self._path(name))

    def _sink(self, name: str) -> Any:
        return _file_system(self.place.scheme, self.place.options).open_output_stream(self._path(name))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno is not None:  # that of a local file has a number, that of a server has none
                raise
            raise ObjectStoreError(f"{self.place}: {_in_short(error)}") from error


def require_objects(place: ObjectUri) -> None:
    """Raise ObjectStoreError if objects cannot be written, read, listed and deleted there; leaves nothing."""
    try:
        ObjectStore(place).check()
    except ObjectStoreError as error:
        raise ObjectStoreError(
            f"{error} Nothing was started. The bucket must exist, the server be reachable from every node, and the "
            "credentials in the environment (AWS_ACCESS_KEY_ID …) or the machine's role allow to put, get, list and "
            "delete objects there."
        ) from error


def make_mirror(place: ObjectUri) -> None:
    """Make this machine's folder for copies of what is at a place, readable by this user alone.

    Raises: StorageError if the folder that all of them are in is another user's.
    """
    root = mirror_root()
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise StorageError(f"{root} belongs to another user. Set TMPDIR to a folder of your own on this machine.")
    make_folder(place.mirror)


def _in_short(error: OSError) -> str:
    """Return what a server or the SDK says, in one line: no request number, nothing about the connection's history."""
    text = re.sub(r"\s*\(Request ID: [^)]*\)", "", str(error)).splitlines()[0]
    return re.sub(r"; Details: .*", "", text).rstrip(". ") + "."


def _write_all(stream: Any, file: Path) -> None:
    with file.open("wb") as sink:
        while chunk := stream.read(CHUNK_BYTES):
            sink.write(chunk)


@lru_cache(maxsize=8)
def _file_system(scheme: str, options: tuple[tuple[str, str], ...]) -> Any:
    """Return pyarrow's file system, one for the process: it holds the connections and the credentials."""
    from pyarrow import fs

    given = dict(options)
    if scheme == "s3":
        return fs.S3FileSystem(
            **given,
            connect_timeout=CONNECT_S,
            request_timeout=SILENCE_S,
            allow_delayed_open=True,  # what is small goes with one request instead of three
        )
    from datetime import timedelta

    return fs.GcsFileSystem(**given, retry_time_limit=timedelta(seconds=4 * SILENCE_S))
