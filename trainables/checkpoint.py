"""Checkpoints of one trial: whole directories that appear at once, or not at all.

::

    <folder>/checkpoints/epoch-0004/   after four epochs; the last two are kept
        weights.safetensors            the model in training
        selected.safetensors           the best epoch so far, if training.select is "best"
        state.pt                       everything else that the next epoch depends on
        meta.json                      what it is, and the SHA-256 of each file
    <folder>/final/                    the trial's model; once it is there, checkpoints/ goes
        weights.safetensors
        meta.json

A directory is written under a temporary name that carries the writer's pid, synced to disk and renamed. What an earlier
writer left half-written goes with the next one's first checkpoint: a trial's folder has one writer, and names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from search_spaces.config import canonical_json
from search_spaces.durable_files import make_folder, sync
from search_spaces.errors import CheckpointCorrupt, CheckpointMismatch
from search_spaces.faults import Durable, durable

FORMAT = 1
KEPT = 2
WEIGHTS, SELECTED, STATE, META = "weights.safetensors", "selected.safetensors", "state.pt", "meta.json"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Identity:
    """Whose checkpoint it is; two attempts of one trial agree, two trials never do."""

    config: str
    """Digest of the trial's configuration."""
    seed: int


@dataclass(frozen=True)
class Checkpoint:
    """A trial after `epoch` epochs."""

    epoch: int
    weights: Weights
    state: dict[str, Any]
    """Optimizer, methods, moving average, random numbers: loadable with ``torch.load(weights_only=True)``."""
    history: list[dict[str, float]]
    selected: Weights | None = None


@dataclass(frozen=True)
class Final:
    """A trial's finished model."""

    weights: Weights
    meta: dict[str, Any] = field(repr=False)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, identity: Identity) -> Path:
    """Write a checkpoint into the trial's folder, drop all but the last two, and return where it is."""
    target = _checkpoints(folder) / f"epoch-{checkpoint.epoch:04d}"
    meta = {**_head(identity), "epoch": checkpoint.epoch, "history": checkpoint.history}
    with durable("checkpoint.epoch") as write, _appearing(target, meta, write) as place:
        save_file(_contiguous(checkpoint.weights), place / WEIGHTS)
        write.torn(place / WEIGHTS)
        if checkpoint.selected is not None:
            save_file(_contiguous(checkpoint.selected), place / SELECTED)
        with (place / STATE).open("wb") as file:  # to a path torch loses the system's error: disk full, read-only
            torch.save(checkpoint.state, file)
    if retired := _epochs(folder)[KEPT:]:
        with durable("checkpoint.retire") as write:
            for old in retired:
                _remove(old, write)
    return target


def newest_good(folder: Path, identity: Identity) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose bytes are intact, and one sentence for each newer one that was skipped.

    Raises: CheckpointMismatch if a readable checkpoint belongs to another configuration or seed.
    """
    notes: list[str] = []
    for place in _epochs(folder):
        try:
            return _read_checkpoint(place, identity), notes
        except CheckpointCorrupt as error:
            notes.append(f"skipped: {error}")
    return None, notes


def write_final(folder: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any], identity: Identity) -> Path:
    """Write the finished model; training checkpoints are left for `drop_checkpoints`."""
    target = folder / "final"
    body = {**_head(identity), **meta, "weights_digest": weights_digest(weights)}
    with durable("checkpoint.final") as write, _appearing(target, body, write) as place:
        save_file(_contiguous(weights), place / WEIGHTS)
        write.torn(place / WEIGHTS)
    return target


def drop_checkpoints(folder: Path) -> None:
    """Remove the training checkpoints, which nothing needs beside a good final model."""
    if _checkpoints(folder).is_dir():
        with durable("checkpoint.drop") as write:
            _remove(_checkpoints(folder), write)


def read_final(folder: Path, identity: Identity | None = None) -> Final | None:
    """Return the finished model, or None if there is none yet.

    Raises: CheckpointCorrupt if its bytes are not those that were written; CheckpointMismatch if `identity` is given
        and it is another's.
    """
    place = folder / "final"
    if not place.is_dir():
        return None
    meta = _read_meta(place, identity)
    weights = _read_weights(place / WEIGHTS)
    if weights_digest(weights) != meta.get("weights_digest"):
        raise CheckpointCorrupt(f"{place / WEIGHTS}: the weights differ from their digest.")
    return Final(weights, meta)


def is_whole(place: Path) -> bool:
    """Return whether a directory of a checkpoint or a final model has every file that it names, byte for byte."""
    try:
        _read_meta(place, None)
    except CheckpointCorrupt:
        return False
    return True


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that name the tensors' names, types, shapes and bytes, in any order and place."""
    content = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def _head(identity: Identity) -> dict[str, Any]:
    return {"format": FORMAT, "config_digest": identity.config, "seed": identity.seed}


def _checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def _epochs(folder: Path) -> list[Path]:
    """Return the checkpoint directories, newest first."""
    return sorted(_checkpoints(folder).glob("epoch-[0-9]*"), key=lambda place: int(place.name[6:]), reverse=True)


@contextmanager
def _appearing(target: Path, meta: dict[str, Any], write: Durable) -> Iterator[Path]:
    """Give a temporary directory to fill; then add meta.json with the files' digests, and rename it to `target`."""
    make_folder(target.parent)
    for left in target.parent.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    place = target.parent / f".{target.name}.{os.getpid()}.tmp"
    place.mkdir()
    try:
        yield place
        meta = {**meta, "files": {file.name: _sha256(file) for file in sorted(place.iterdir())}}
        meta["meta_digest"] = _text_digest(meta)
        (place / META).write_text(json.dumps(meta, indent=1, allow_nan=False))
        write.torn(place / META)
        for path in (*place.iterdir(), place):
            sync(path)
        if target.exists():  # damaged, or the same written by an earlier attempt: a full directory cannot be replaced
            shutil.rmtree(target)
            write.torn()
        place.rename(target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    sync(target.parent)


def _remove(folder: Path, write: Durable) -> None:
    """Remove a folder that nothing needs any more, its content first."""
    for place in folder.iterdir():
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            with suppress(OSError):
                place.unlink()
        write.torn()
    shutil.rmtree(folder, ignore_errors=True)


def _read_checkpoint(place: Path, identity: Identity) -> Checkpoint:
    meta = _read_meta(place, identity)
    selected = _read_weights(place / SELECTED) if SELECTED in meta["files"] else None
    try:
        state = torch.load(place / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointCorrupt(f"{place / STATE} cannot be read: {error}.") from error
    return Checkpoint(meta["epoch"], _read_weights(place / WEIGHTS), state, meta["history"], selected)


def _read_meta(place: Path, identity: Identity | None) -> dict[str, Any]:
    """Read meta.json and check it, whose it is, and the digest of every file that it names."""
    try:
        meta = json.loads((place / META).read_text())
        claimed = meta.pop("meta_digest")
        files = dict(meta["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointCorrupt(f"{place / META} is missing or unreadable: {error!r}.") from error
    if claimed != _text_digest(meta) or meta.get("format") != FORMAT:
        raise CheckpointCorrupt(f"{place / META} was altered, or has another format than {FORMAT}.")
    if identity and (meta["config_digest"], meta["seed"]) != (identity.config, identity.seed):
        raise CheckpointMismatch(
            f"{place} belongs to configuration {meta['config_digest']} with seed {meta['seed']}, "
            f"not to {identity.config} with seed {identity.seed}. Use another folder for the trial."
        )
    for name, digest in files.items():
        if not (place / name).is_file() or _sha256(place / name) != digest:
            raise CheckpointCorrupt(f"{place / name} is missing or differs from its digest.")
    return dict(meta)


def _read_weights(path: Path) -> Weights:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error}.") from error


def _contiguous(weights: Mapping[str, Tensor]) -> Weights:
    """Detached copies that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(meta).encode()).hexdigest()
