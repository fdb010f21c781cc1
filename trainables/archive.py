"""Data sets that come as one archive from the web: fetched once, verified, unpacked to the side, then put in place.

A download or an unpacking that is cut short leaves nothing where the data set is looked for. Processes of one machine
(or of several, if the file system keeps locks) that need the same archive wait for the first of them.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import tarfile
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from filelock import FileLock
from torchvision.datasets.utils import calculate_md5, download_url, extract_archive

from search_spaces.errors import DataError
from trainables.config import DataConfig
from trainables.dataset import Dataset, Images, InMemory

PATIENCE_S = 60.0
"""How long a server may stay silent."""


class ArchiveConfig(DataConfig):
    """Where the data set is kept, and whether it may be downloaded."""

    root: Path = Path("data")
    """Folder that holds or receives the data set; relative to the working directory unless absolute."""
    download: bool = True
    """Whether a data set that is missing or damaged may be downloaded."""


@dataclass(frozen=True)
class Archive:
    """A file on the web and what it unpacks to."""

    url: str
    file: str
    """Its name in the root folder."""
    md5: str
    folder: str
    """The one folder that it unpacks to."""


ConfigT = TypeVar("ConfigT", bound=ArchiveConfig)


class ArchiveDataset(Dataset[ConfigT]):
    """A data set in an archive whose checksum, classes and numbers of images are known."""

    Config: ClassVar[type[DataConfig]] = ArchiveConfig
    train_counts: ClassVar[Sequence[int]]
    """Training images of each class."""
    test_counts: ClassVar[Sequence[int]]

    @abstractmethod
    def archive(self) -> Archive:
        """Return what to fetch."""

    @abstractmethod
    def damage(self) -> str:
        """Say what is missing or damaged of the unpacked files; nothing if they are whole."""

    @abstractmethod
    def read(self) -> tuple[Images, Images, int]:
        """Return the images of files that are whole, as `load` does."""

    @property
    def place(self) -> Path:
        return self.config.root / self.archive().folder

    @classmethod
    def check(cls, config: ConfigT) -> Iterable[tuple[str, str]]:
        place = cls(config, 1).place
        if not config.download and not place.is_dir():
            yield (
                "download",
                f"there is no folder {place}, and download is false. {_next_step(cls(config, 1).archive())}",
            )

    def to_fetch(self) -> str:
        damage = self.damage()
        if not damage:
            return ""
        archive = self.archive()
        if not self.config.download:
            raise DataError(f"{self._title}: {damage}, and data.download is false. {_next_step(archive)}")
        flaw = _flaw(self.config.root / archive.file, archive.md5)
        if not flaw:
            return f"{damage}; to be unpacked from {self.config.root / archive.file}"
        reason = "" if flaw == MISSING else f"; {self.config.root / archive.file} {flaw}"
        return f"{damage}{reason}; to be downloaded from {archive.url}"

    def prepare(self) -> None:
        if not self.to_fetch():
            return
        root, archive = self.config.root, self.archive()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{archive.file}.lock"):
                if self.damage():  # unless another process was faster
                    fetch_archive(archive, root)
        except DataError as error:
            raise DataError(f"{self._title}: {error}") from error
        except OSError as error:
            raise DataError(f"{self._title}: {root} cannot be written: {error}. Choose another data.root.") from error
        if self.damage():
            raise DataError(f"{self._title}: {archive.url} has the right checksum, and yet {self.damage()}.")

    def load(self) -> tuple[Images, Images, int]:
        self.prepare()
        return self.read()

    def outline(self) -> tuple[Images, Images, int]:
        if not self.to_fetch():
            return self.read()
        size = self.img_size
        parts = []
        for counts in (self.train_counts, self.test_counts):
            labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            parts.append(InMemory(torch.zeros(1, 3, 1, 1).expand(len(labels), 3, size, size), labels))
        return parts[0], parts[1], len(self.train_counts)

    @property
    def _title(self) -> str:
        return f"data set {self.config.name}"


def fetch_archive(archive: Archive, root: Path) -> None:
    """Put ``root/archive.folder`` in place, from ``root/archive.file`` if that is whole, and from the web if not.

    Raises: DataError if the archive cannot be had, has the wrong checksum or cannot be unpacked; what was there before
        stays then, except an archive with the wrong checksum that a good one has replaced.
    """
    side = root / f".{archive.file}.partial"
    shutil.rmtree(side, ignore_errors=True)  # of a process that was killed; the caller holds the lock
    side.mkdir()
    try:
        if _flaw(root / archive.file, archive.md5):
            _download(archive, root, side)
            os.replace(side / archive.file, root / archive.file)
        _unpack(root / archive.file, side)
        if not (side / archive.folder).is_dir():
            raise DataError(f"{root / archive.file} holds no folder {archive.folder}.")
        shutil.rmtree(root / archive.folder, ignore_errors=True)
        os.replace(side / archive.folder, root / archive.folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)


MISSING = "is missing"


def _flaw(file: Path, md5: str) -> str:
    """Say what is wrong with a file; nothing if it is there and has the checksum."""
    if not file.is_file():
        return MISSING
    found = calculate_md5(file)
    return "" if found == md5 else f"has the checksum {found} (md5), expected {md5}"


def _download(archive: Archive, root: Path, side: Path) -> None:
    by_hand = f"put the file into {root.absolute()} yourself"
    try:
        with _silence_ends_after(PATIENCE_S):
            download_url(archive.url, side, archive.file)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise DataError(
            f"{archive.url} cannot be downloaded: {getattr(error, 'reason', '') or error}. "
            f"Run `run_sweep.py prefetch FILE` where there is network, or {by_hand}."
        ) from error
    flaw = _flaw(side / archive.file, archive.md5)
    if flaw:
        size = (side / archive.file).stat().st_size
        raise DataError(
            f"{archive.url} was downloaded, {size:,} bytes, and {flaw}: it was cut short or is another file. "
            f"Nothing of it was kept; try again, or {by_hand}."
        )


def _unpack(file: Path, folder: Path) -> None:
    try:
        extract_archive(str(file), str(folder))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be unpacked: {error}.") from error


@contextmanager
def _silence_ends_after(seconds: float) -> Iterator[None]:
    """Limit how long a connection waits; torchvision sets no limit, and a lost connection would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _next_step(archive: Archive) -> str:
    return f"Set data.download: true, correct data.root, or unpack {archive.url} there"
