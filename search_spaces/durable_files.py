"""Files that survive the loss of power: what has been synced, in folders whose own names have been synced too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from search_spaces.faults import Durable

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that knows no second names."""


def sync(path: Path) -> None:
    """Return once the disk has a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those that it is in, each known to the disk: else its files would go with its name."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def write_whole(path: Path, text: str, write: Durable) -> None:
    """Write a file that is there with all of its text or, for who looks earlier, as it was. Args: write: its point."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    write.torn(temporary)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def name_once(temporary: Path, target: Path, write: Durable) -> None:
    """Give a finished file its name; FileExistsError if another has it. Args: write: the point of the whole file.

    Where the file system knows no links, what has the name is replaced.
    """
    sync(temporary)
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.replace(temporary, target)
    write.torn()
    temporary.unlink(missing_ok=True)
    sync(target.parent)
