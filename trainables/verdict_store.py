"""The verdict store: what has been judged stays judged, whoever asks again.

::

    <folder>/ab/ab12…/0000042-9f86d081.npz          one unit of images under one question, whose digest is ab12…
    <folder>/ab/ab12…/0000042-9f86d081-images.npz   the same, with what the fallen images became

A unit is one file, written under a temporary name that carries host and pid, synced to disk and renamed; no locks, no
links, so that a network file system will do. Its name is its first id and a digest of all its ids. Two who judge the
same unit at once write the same name, and the last rename wins: what they write differs by rounding at most.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from struct import error as StructError
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from search_spaces.config import canonical_json
from search_spaces.durable_files import make_folder, sync
from search_spaces.faults import durable

COSTS = ("forwards", "backwards", "seconds")
"""Facts of a unit: images that went through the model, those whose gradient was computed, and the time."""
PER_IMAGE = ("mismatches", "flat", "logit_scale_sum")
"""Facts of one image each."""
COUNTS = ("forwards", "backwards", "mismatches", "flat")
"""Which of them are whole numbers."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, StructError, zlib.error)
"""What reading a file may raise whose bytes are not those that were written."""


class Judged(Protocol):
    """What can be stored: a verdict on some images."""

    @property
    def ids(self) -> Tensor:
        """(n,) int64 positions in the split, n > 0."""
        ...

    @property
    def correct(self) -> Tensor:
        """(n,) bool."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def costs(self) -> Mapping[str, float]:
        """Some of COSTS."""
        ...

    @property
    def per_image(self) -> Mapping[str, Tensor]:
        """Some of PER_IMAGE: each (n,)."""
        ...

    @property
    def attacked(self) -> Tensor | None:
        """(m, C, H, W): what became of the images that are not correct, in order; None if it was not kept."""
        ...


@dataclass(frozen=True)
class Found:
    """What the store knows about n images under one question."""

    known: Tensor
    """(n,) bool: who has been judged, or, where images are asked for, been judged with its image kept."""
    correct: Tensor
    """(n,) bool, valid where `known`."""
    facts: dict[str, float]
    """All of COSTS and PER_IMAGE, over the images that have been judged. What a unit cost is shared out evenly over its
    images, so that what is asked in parts adds up to what is asked at once, rounding to whole images aside."""
    warnings: tuple[str, ...]
    """Of the units that the known images come from, in the order in which they were stored, without repeats."""
    damaged: tuple[str, ...]
    """Names of files that were left out because their bytes are not those that were written."""


@dataclass(frozen=True)
class _Unit:
    name: str
    stored_at_ns: int
    ids: Tensor
    correct: Tensor
    per_image: dict[str, Tensor]
    costs: dict[str, float]
    warnings: tuple[str, ...]
    kept: bool
    """Whether its file has images, whole ones if they were asked for."""
    images: Tensor | None
    """(m, C, H, W) of `ids[~correct]`, if they were asked for."""


class VerdictStore:
    """Verdicts in a folder, by the digest of the question and the positions of the images.

    Where two units hold the same image, the one that was stored first is right: by the time that it carries, which is
    later than that of every unit before it whatever the clock says, then by name. What has been answered once is
    therefore answered so again.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: made when something is stored."""
        self.folder = folder

    def add(self, digest: str, verdict: Judged) -> Path:
        """Store a verdict durably, before this returns, and say where. Args: digest: of the question, hexadecimal."""
        head = {
            "stored_at_ns": max(time.time_ns(), self._newest(digest) + 1),  # a clock may go back; the order may not
            "costs": {name: float(value) for name, value in verdict.costs.items()},
            "warnings": list(verdict.warnings),
        }
        tensors = {"ids": verdict.ids, "correct": verdict.correct, **verdict.per_image}
        if verdict.attacked is not None:
            tensors["images"] = verdict.attacked
        arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        target = self._place(digest) / unit_name(verdict.ids, with_images="images" in tensors)
        make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}.tmp")
        with durable("verdict.unit") as write:
            try:
                with temporary.open("wb") as file:
                    np.savez(file, head=np.array(canonical_json(head)), **arrays)
                write.torn(temporary)
                sync(temporary)
                os.replace(temporary, target)
            except Exception:
                temporary.unlink(missing_ok=True)  # on a full disk its half would be in the way
                raise
            sync(target.parent)
        return target

    def find(self, digest: str, ids: Tensor, *, with_images: bool = False) -> Found:
        """Return what is known about the images `ids` (n,), each named once. Args: with_images: as in Found.known."""
        units, damaged = self._read(digest, with_images=with_images)
        judged = torch.zeros(len(ids), dtype=torch.bool)
        kept = torch.zeros(len(ids), dtype=torch.bool)
        correct = torch.zeros(len(ids), dtype=torch.bool)
        values = {name: torch.zeros(len(ids), dtype=torch.float64) for name in PER_IMAGE}
        costs = dict.fromkeys(COSTS, 0.0)
        warnings: dict[str, None] = {}
        for unit in units:
            rows, places = _matches(ids, unit.ids)
            kept[rows] |= unit.kept
            news = ~judged[rows]
            rows, places = rows[news], places[news]
            if not len(rows):
                continue
            judged[rows] = True
            correct[rows] = unit.correct[places]
            for name, value in unit.per_image.items():
                values[name][rows] = value[places].double()
            for name, cost in unit.costs.items():
                costs[name] += cost * len(rows) / len(unit.ids)
            warnings |= dict.fromkeys(unit.warnings)
        known = judged & kept if with_images else judged
        facts = costs | {name: float(value.sum()) for name, value in values.items()}
        facts |= {name: round(facts[name]) for name in COUNTS}
        return Found(known, correct, facts, tuple(warnings), damaged)

    def everything(self, digest: str) -> tuple[Tensor, Tensor]:
        """Return the ids (n,) of all images judged under a question, in order, and whether they are correct (n,)."""
        units, _ = self._read(digest, with_images=False)
        ids = torch.cat([torch.zeros(0, dtype=torch.long), *(unit.ids for unit in units)]).unique()
        return ids, self.find(digest, ids).correct

    def images(self, digest: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images that were kept, unit by unit: ids (m,) and adversarial images (m, C, H, W), each id once."""
        seen = torch.zeros(0, dtype=torch.long)
        for path in self._files(digest):
            unit = _read_unit(path, with_images=True) if path.name.endswith(_suffix(with_images=True)) else None
            if unit is None or unit.images is None:
                continue
            fallen = unit.ids[~unit.correct]
            news = ~torch.isin(fallen, seen)
            seen = torch.cat([seen, fallen[news]])
            if bool(news.any()):
                yield fallen[news], unit.images[news]

    def _place(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def _files(self, digest: str) -> list[Path]:
        """Return the units' files by name; what begins with a dot is half-written."""
        try:
            names = os.listdir(self._place(digest))
        except FileNotFoundError:
            return []
        return [self._place(digest) / name for name in sorted(names) if not name.startswith(".")]

    def _newest(self, digest: str) -> int:
        """Return when the last unit was stored, as it says itself; 0 if there is none."""
        units, _ = self._read(digest, with_images=False)
        return max((unit.stored_at_ns for unit in units), default=0)

    def _read(self, digest: str, *, with_images: bool) -> tuple[list[_Unit], tuple[str, ...]]:
        """Return the units in the order in which they were stored, and the names of the files that are damaged."""
        units, damaged = [], []
        for path in self._files(digest):
            unit = _read_unit(path, with_images=with_images)
            if unit is None:
                damaged.append(path.name)
            else:
                units.append(replace(unit, images=None))  # those of all units together may not fit into the memory
        return sorted(units, key=lambda unit: (unit.stored_at_ns, unit.name)), tuple(damaged)


def unit_name(ids: Tensor, *, with_images: bool) -> str:
    """Name the file of a unit."""
    content = hashlib.sha256(ids.cpu().long().contiguous().numpy().astype("<i8").tobytes())
    return f"{int(ids[0]):07d}-{content.hexdigest()[:8]}{_suffix(with_images=with_images)}"


def is_intact(path: Path) -> bool:
    """Return whether a unit's file has the bytes that were written, under the name that they were written to."""
    return _read_unit(path, with_images=True) is not None


def _suffix(*, with_images: bool) -> str:
    return "-images.npz" if with_images else ".npz"


def _matches(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the ids (n,) are that occur among `others` (m,), and where they occur there."""
    rows = torch.isin(ids, others).nonzero().squeeze(1)
    order = others.argsort()
    return rows, order[torch.searchsorted(others[order], ids[rows])]


def _read_unit(path: Path, *, with_images: bool) -> _Unit | None:
    """Read a unit; None if it is damaged. The checksum of each array is compared before the array is looked at."""
    try:
        with ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            kept = path.name.endswith(_suffix(with_images=True))
            wanted = names if with_images else names - {"images"}
            arrays = {name: _array(archive.read(f"{name}.npy")) for name in wanted}
        head = json.loads(str(arrays.pop("head")))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        images = tensors.pop("images", None)
        unit = _Unit(
            name=path.name,
            stored_at_ns=int(head["stored_at_ns"]),
            ids=tensors.pop("ids"),
            correct=tensors.pop("correct"),
            per_image={name: tensors[name] for name in PER_IMAGE if name in tensors},
            costs={name: float(head["costs"].get(name, 0)) for name in COSTS},
            warnings=tuple(map(str, head["warnings"])),
            kept=kept,
            images=images,
        )
        whole = path.name == unit_name(unit.ids, with_images=kept) and kept == ("images" in names)
    except _DAMAGE:
        return None
    return unit if whole and _fits(unit) else None


def _fits(unit: _Unit) -> bool:
    """Return whether all parts of a unit have the length of its ids."""
    lengths = {len(part) for part in (unit.correct, *unit.per_image.values())}
    fallen = int((~unit.correct).sum())
    return lengths == {len(unit.ids)} and (unit.images is None or len(unit.images) == fallen)


def _array(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = np.lib.format.read_array(
        io.BytesIO(content), allow_pickle=False
    )
    return array
