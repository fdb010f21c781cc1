"""A parent's weights as its children find them: where they are, and what they must be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from search_spaces.errors import CheckpointCorrupt, ModelError, ParentChanged
from trainables.checkpoint import read_final
from trainables.trial_folder import fetched_final
from trainables.weights import read_state


@dataclass(frozen=True)
class ParentFile:
    """The weights of a parent; one of the digests is given. Travels as JSON with the job of a training."""

    path: str
    """The folder of a parent that was trained, a path or the URI of objects; the file of a checkpoint."""
    weights_digest: str | None = None
    """Of the final weights, as the ledger has it (`checkpoint.weights_digest`)."""
    sha256: str | None = None
    """Of the file."""


def read_parent(file: ParentFile, name: str) -> dict[str, Tensor]:
    """Return the state dict of a parent, with its normalisation if that is among its weights.

    Args:   name: of the parent, for the errors.
    Raises: ParentChanged if it is not there, or is not what its digest says.
    """
    try:
        return _read_trained(file, name) if file.sha256 is None else _read_checkpoint(file, name)
    except (CheckpointCorrupt, ModelError, OSError) as error:
        raise ParentChanged(f"parent {name}: {error}") from error


def check_sha256(path: Path, wanted: str, name: str) -> None:
    """Raise ParentChanged if the file of a parent is not there, or its bytes are not those of the digest."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ParentChanged(f"parent {name}: no file {path}.") from error
    if found != wanted:
        raise ParentChanged(
            f"parent {name}: {path} has changed: its SHA-256 is {found[:16]}… and was {wanted[:16]}…. Bring back the "
            "file, or launch another sweep with this one."
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; OSError if it cannot be read. Asked again, an untouched file is not read again."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _sha256(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_trained(file: ParentFile, name: str) -> dict[str, Tensor]:
    final = read_final(fetched_final(file.path))
    if final is None:
        raise ParentChanged(f"parent {name}: {file.path} has no final weights.")
    found = final.meta["weights_digest"]
    if found != file.weights_digest:
        raise ParentChanged(f"parent {name}: {file.path} holds the weights {found}, not {file.weights_digest}.")
    return final.weights


def _read_checkpoint(file: ParentFile, name: str) -> dict[str, Tensor]:
    assert file.sha256 is not None
    check_sha256(Path(file.path), file.sha256, name)
    return read_state(Path(file.path))
