"""Images that a node holds once: the driver puts them into Ray's object store, and the node's workers map them there.

Without it every process that trains or attacks loads the data set into memory of its own. Whatever stands in the way
(the store is too small, the object is lost, another trial asks for other images) a worker loads for itself, as it does
outside Ray. Ray takes the images to the other nodes when a worker there first asks, also to those that join later.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.config import digest_of
from trainables.config import DataConfig
from trainables.dataset import InMemory, Splits, Subset

log = logging.getLogger("paretune.node_data")

PARTS = ("train", "validation", "test", "selection")
STORE_SHARE = 0.5
"""Of the smallest node's object store; larger sets are not put there, because Ray would go on on the disk (our choice).
"""
TAKE_S = 120.0
"""Within so many seconds a node has the images, or its worker loads them itself (our choice: 15 GB on 1 Gbit/s)."""

UNHELD = "every worker loads them into memory of its own."

Arrays = tuple[NDArray[np.generic], NDArray[np.int64]]
"""Pixels (n, C, H, W), uint8 or float32, and labels (n,)."""


@dataclass(frozen=True)
class PackedSplits:
    """`Splits` as arrays, which Ray stores beside the pickled rest and hands out without a copy."""

    sets: tuple[Arrays, ...]
    """Each set of images once, however many parts are taken from it."""
    parts: Mapping[str, tuple[int, NDArray[np.int64]]]
    """Of each part that there is: the position of its set, and its own positions in there."""
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def nbytes(self) -> int:
        arrays = [*(array for pair in self.sets for array in pair), *(index for _, index in self.parts.values())]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class NodeData:
    """Where the images of a sweep are; small, and goes to every worker with its work."""

    key: str
    """Which images they are, as `key_of` says."""
    reference: Any
    """ray.ObjectRef of their `PackedSplits`. Owned by the driver: they are freed when it ends."""

    def splits(self, config: DataConfig, img_size: int, *, with_selection: bool) -> Splits | None:
        """Return the images that this node holds, read-only; None if they are others or cannot be had."""
        if key_of(config, img_size, with_selection=with_selection) != self.key:
            return None
        return _mapped(self.reference)


def key_of(config: DataConfig, img_size: int, *, with_selection: bool) -> str:
    """Return a digest of all that decides which images a trial sees."""
    return digest_of([config.plain(), img_size, with_selection])


def hold(key: str, splits: Splits) -> NodeData | None:
    """Put the images into Ray's object store. None, and the reason in the log, if every worker loads for itself.

    Args: key: as `key_of` says; splits: not needed any more afterwards.
    """
    import ray
    from ray.exceptions import RayError

    packed = pack(splits)
    if packed is None:
        return None
    if not has_room(packed.nbytes, store_bytes(ray.nodes())):
        log.warning("%.1f GB of images, over half of the smallest object store: %s", packed.nbytes / 1e9, UNHELD)
        return None
    try:
        return NodeData(key, ray.put(packed))
    except RayError as error:
        log.warning("Ray's object store does not take the images (%s): %s", error, UNHELD)
        return None


def store_bytes(nodes: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the size of each living node's object store in bytes, of nodes as ``ray.nodes()`` lists them."""
    return [n["Resources"].get("object_store_memory", 0.0) for n in nodes if n["Alive"]]


def has_room(nbytes: int, stores: Sequence[float]) -> bool:
    """Return whether so many bytes may be put into each of these object stores.

    has_room(180_000_000, [2e9, 4e8])  # True
    """
    return nbytes <= STORE_SHARE * min(stores, default=0.0)


def pack(splits: Splits) -> PackedSplits | None:
    """Return the images as arrays; None if some of them are not held in memory as bytes or float32."""
    sets: list[InMemory] = []
    parts: dict[str, tuple[int, NDArray[np.int64]]] = {}
    for name in PARTS:
        part = getattr(splits, name)
        if part is None:
            continue
        if not (isinstance(part, Subset) and isinstance(part.images, InMemory)):
            return None
        images = part.images
        if images.pixels.dtype not in (torch.uint8, torch.float32):
            return None
        if not any(images is known for known in sets):
            sets.append(images)
        position = next(i for i, known in enumerate(sets) if known is images)
        parts[name] = position, _array(part.index)
    arrays = tuple((_array(images.pixels), _array(images.labels)) for images in sets)
    return PackedSplits(arrays, parts, splits.num_classes, splits.channels, splits.mean, splits.std)


def unpack(packed: PackedSplits) -> Splits:
    """Return the splits that `pack` was given, on the same memory."""
    sets = [InMemory(_tensor(pixels), _tensor(labels)) for pixels, labels in packed.sets]
    found = {name: Subset(sets[position], _tensor(index)) for name, (position, index) in packed.parts.items()}
    return Splits(
        train=found["train"],
        validation=found["validation"],
        test=found["test"],
        selection=found.get("selection"),
        num_classes=packed.num_classes,
        channels=packed.channels,
        mean=packed.mean,
        std=packed.std,
    )


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().contiguous().numpy()
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor on the same memory, which nobody may write."""
    with warnings.catch_warnings():  # images are only taken from, which copies, and torch knows no read-only tensors
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


@lru_cache(maxsize=1)
def _mapped(reference: Any) -> Splits | None:
    """Return the images behind a reference; one set stays mapped, and what could not be had is not asked for again."""
    import ray
    from ray.exceptions import RayError

    try:
        return unpack(ray.get(reference, timeout=TAKE_S))
    except RayError as error:  # GetTimeoutError among them
        log.warning("the images cannot be had from Ray's object store (%s): this worker loads them.", error)
        return None
