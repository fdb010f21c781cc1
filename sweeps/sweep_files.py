"""What there is of a sweep's trials and verdicts, by the paths of its folder, also where they are objects."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster.object_store import ObjectStore
from search_spaces.faults import Durable
from search_spaces.object_uri import ObjectUri
from sweeps.disk import used_bytes
from sweeps.folder import SweepFolder


class SweepFiles:
    """Folders and files on storage that all nodes share."""

    def is_dir(self, path: Path) -> bool:
        """Return whether there is such a folder."""
        return path.is_dir()

    def questions(self, verdicts: Path) -> Iterator[Path]:
        """Yield the folders of questions in the verdict store."""
        yield from (place for place in verdicts.glob("*/*") if place.is_dir())

    def size(self, path: Path) -> int:
        """Return the bytes of a folder or a file."""
        return used_bytes(path)

    def remove(self, path: Path, write: Durable) -> None:
        """Remove a folder or a file. Args: write: the caller's point."""
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        write.torn()


class SweepObjects(SweepFiles):
    """The same where trials and verdicts are objects; what is a file of the folder is found there."""

    def __init__(self, place: ObjectUri, root: Path) -> None:
        """List what there is, once. Raises: ObjectStoreError."""
        self._store = ObjectStore(place)
        self._root = root
        self._sizes = self._store.sizes()
        self._folders = {str(parent) for name in self._sizes for parent in Path(name).parents}

    def is_dir(self, path: Path) -> bool:
        return self._name(path) in self._folders

    def questions(self, verdicts: Path) -> Iterator[Path]:
        start = self._name(verdicts)
        yield from (
            self._root / name for name in self._folders if name.startswith(f"{start}/") and name.count("/") == 2
        )

    def size(self, path: Path) -> int:
        start = f"{self._name(path)}/"
        return sum(size for name, size in self._sizes.items() if name.startswith(start)) + super().size(path)

    def remove(self, path: Path, write: Durable) -> None:
        if self.is_dir(path):
            self._store.delete_folder(self._name(path))
            write.torn()
        if path.exists():
            super().remove(path, write)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def files_of(folder: SweepFolder) -> SweepFiles:
    """Return what there is of a sweep. Raises: ObjectStoreError."""
    objects = folder.objects
    return SweepFiles() if objects is None else SweepObjects(objects, folder.root)
