"""Dataset: images with labels, and the one way in which they are split into train, selection, validation and test.

Validation figures steer the search; test images are touched once, for the members of the front. `selection` is carved
out of the training images only when the best epoch is to be chosen, so that the choice uses neither of the two.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.errors import DataError
from trainables.config import DataConfig

ConfigT = TypeVar("ConfigT", bound=DataConfig)


class Images(Protocol):
    """Labelled images, in memory or read on demand."""

    @property
    def labels(self) -> Tensor:
        """(n,) int64 class indices."""
        ...

    def take(self, index: Tensor) -> Tensor:
        """Return the images at `index` (B,): (B, C, H, W), float32 in [0, 1]."""
        ...

    def digest(self) -> str:
        """Return a hexadecimal digest that changes when the images or labels change."""
        ...

    @property
    def from_files(self) -> bool:
        """Whether `take` reads files, so that it pays to be a batch ahead."""
        ...

    def to(self, device: torch.device) -> Images:
        """Return the same images on a device, if they are small enough to live there; they are taken from there."""
        ...


DEVICE_BYTES = 2**31
"""Larger sets stay in the memory of the host (our choice: CIFAR as bytes is 0.15 GB, and trials share a GPU)."""


@dataclass(frozen=True)
class InMemory:
    """Images held as one tensor: uint8 in [0, 255] or float32 in [0, 1], (n, C, H, W)."""

    pixels: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Tensor:
        chosen = self.pixels[index.to(self.pixels.device)]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen

    def digest(self) -> str:
        content = hashlib.sha256()
        for tensor in (self.pixels, self.labels):
            content.update(tensor.cpu().contiguous().numpy().reshape(-1).data)
        return content.hexdigest()

    @property
    def from_files(self) -> bool:
        return False

    def to(self, device: torch.device) -> Images:
        if self.pixels.nbytes > DEVICE_BYTES:
            return self
        return InMemory(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Subset:
    """Some of the images of another set."""

    images: Images
    index: Tensor
    """(m,) positions in `images`."""

    @property
    def labels(self) -> Tensor:
        return self.images.labels[self.index]

    def take(self, index: Tensor) -> Tensor:
        return self.images.take(self.index[index])

    def digest(self) -> str:
        return hashlib.sha256(f"{self.images.digest()}{self.index.tolist()}".encode()).hexdigest()

    @property
    def from_files(self) -> bool:
        return self.images.from_files

    def to(self, device: torch.device) -> Images:
        if not isinstance(self.images, InMemory) or self.images.pixels.device == device:
            return self
        return InMemory(self.images.pixels[self.index], self.labels).to(device)


@dataclass(frozen=True)
class Splits:
    """The four parts of a data set and what the model needs to know about it."""

    train: Images
    validation: Images
    test: Images
    selection: Images | None
    """Chooses the epoch when training.select is "best"; None otherwise."""
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to(self, device: torch.device) -> Splits:
        """Return the same images with those that training reads on a device; the test images stay where they are."""
        near = {name: getattr(self, name).to(device) for name in ("train", "validation")}
        return replace(self, **near, selection=self.selection and self.selection.to(device))

    def digest(self) -> str:
        """Name the exact images of all parts."""
        parts = [p.digest() for p in (self.train, self.validation, self.test, self.selection) if p is not None]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


class Statistics(NamedTuple):
    """Per-channel figures on the [0, 1] pixel scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Dataset(ABC, Generic[ConfigT]):
    """A source of labelled images."""

    Config: ClassVar[type[DataConfig]] = DataConfig
    published: ClassVar[Statistics | None] = None
    """Statistics that the field uses for this data set; None measures the training split."""
    reads_files: ClassVar[bool] = False
    """Whether images are read from files when they are taken, so that there is nothing to share between processes."""

    def __init__(self, config: ConfigT, img_size: int) -> None:
        """Args: config: the data section; img_size: side of the square images that the model takes, in pixels."""
        self.config = config
        self.img_size = img_size

    @classmethod
    def check(cls, config: ConfigT) -> Iterable[tuple[str, str]]:
        """Yield (field, sentence) for what can be said without reading the images: a missing file, a bad layout."""
        return ()

    @property
    def place(self) -> Path | None:
        """The file or folder that `load` reads; None if there is none."""
        return getattr(self.config, "path", None)

    def to_fetch(self) -> str:
        """Say what `prepare` would fetch and why, in one clause without a full stop; nothing if all is there.

        Needs no network. DataError if something is missing and must not be fetched.
        """
        return ""

    def prepare(self) -> None:
        """Fetch what is missing, so that `load` needs no network; `load` calls it too. DataError if that fails."""
        return

    @abstractmethod
    def load(self) -> tuple[Images, Images, int]:
        """Return (images for training and validation, test images, number of classes); DataError if that fails."""

    def outline(self) -> tuple[Images, Images, int]:
        """Return what `load` returns, or black images with the right labels where it would have to fetch them."""
        return self.load()

    def splits(self, *, with_selection: bool) -> Splits:
        """Load and split, stratified by class, as `split_seed` says.

        Raises: DataError if a part would be empty or a class index is out of range.
        """
        return self._split(*self.load(), with_selection=with_selection)

    def outline_splits(self, *, with_selection: bool) -> Splits:
        """Return `splits` without fetching anything: right in number and labels, its pixels perhaps black."""
        return self._split(*self.outline(), with_selection=with_selection)

    def _split(self, pool: Images, test: Images, num_classes: int, *, with_selection: bool) -> Splits:
        for labels in (pool.labels, test.labels):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
                raise DataError(f"data set {self.config.name}: class indices must lie in [0, {num_classes}).")
        config = self.config
        generator = torch.Generator().manual_seed(config.split_seed)
        rest, held = split_stratified(pool.labels, config.validation_fraction, generator)
        selection = None
        if with_selection:
            rest, chosen = split_stratified(pool.labels, config.selection_fraction, generator, within=rest)
            selection = Subset(pool, chosen)
        train = Subset(pool, balanced_subset(pool.labels, rest, config.train_images, generator))
        validation = Subset(pool, balanced_subset(pool.labels, held, config.validation_images, generator))
        everything = torch.arange(len(test.labels))
        kept_test = Subset(test, balanced_subset(test.labels, everything, config.test_images, generator))
        for name, part in (("train", train), ("validation", validation), ("test", kept_test), ("selection", selection)):
            if part is not None and not len(part.labels):
                raise DataError(
                    f"data set {config.name}: the {name} split is empty; give it a larger share or more images."
                )
        mean, std = self.statistics(train)
        channels = train.take(torch.tensor([0])).shape[1]
        return Splits(train, validation, kept_test, selection, num_classes, channels, mean, std)

    def statistics(self, train: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return per-channel mean and standard deviation in [0, 1] pixels: as configured, published, or measured.

        Measured on at most 10,000 images, evenly spaced (sets on disk are sorted by class), 500 in memory at a time.
        """
        if self.config.mean and self.config.std:
            return self.config.mean, self.config.std
        if self.published is not None:
            return self.config.mean or self.published.mean, self.config.std or self.published.std
        count = min(len(train.labels), 10_000)
        chosen = torch.linspace(0, len(train.labels) - 1, count).round().long()
        moments = [_moments(train.take(part)) for part in chosen.split(500)]
        pixels = sum(number for number, _, _ in moments)
        mean = torch.stack([total for _, total, _ in moments]).sum(0) / pixels
        square = torch.stack([squares for _, _, squares in moments]).sum(0) / pixels
        std = (square - mean**2).clamp_min(0).sqrt().clamp_min(1e-3)
        return (
            self.config.mean or tuple(round(float(v), 6) for v in mean),
            self.config.std or tuple(round(float(v), 6) for v in std),
        )


def resized(pixels: Tensor, img_size: int) -> Tensor:
    """Return square images (n, C, S, S) with the sides that the model takes; the type is kept.

    Bilinear, with antialiasing where it shrinks; images that already fit are returned as they are.
    """
    if pixels.shape[-1] == img_size:
        return pixels
    return torch.cat([_resized(part, (img_size, img_size)) for part in pixels.split(1000)])  # floats take four times


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    smooth = F.interpolate(pixels.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return smooth.round().clamp(0, 255).to(torch.uint8) if pixels.dtype == torch.uint8 else smooth.clamp(0, 1)


def load_splits(config: DataConfig, img_size: int, *, with_selection: bool) -> Splits:
    """Load the data set that a configuration names."""
    from trainables.registry import find

    dataset: Dataset[Any] = find("datasets", config.name)(config, img_size)
    return dataset.splits(with_selection=with_selection)


loaded_splits = lru_cache(maxsize=2)(load_splits)
"""`load_splits`, kept in memory for two data sets: a worker runs many trials of one sweep, and the driver that has just
created one goes on with its images."""


def outline_splits(config: DataConfig, img_size: int, *, with_selection: bool) -> Splits:
    """Return the splits of the data set that a configuration names as far as they are known without fetching it."""
    from trainables.registry import find

    dataset: Dataset[Any] = find("datasets", config.name)(config, img_size)
    return dataset.outline_splits(with_selection=with_selection)


def split_stratified(
    labels: Tensor, fraction: float, generator: torch.Generator, within: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Split positions into (rest, taken): of each class round(fraction × count) are taken; both parts sorted."""
    candidates = torch.arange(len(labels)) if within is None else within
    taken = []
    for cls in labels[candidates].unique():
        members = candidates[labels[candidates] == cls]
        order = members[torch.randperm(len(members), generator=generator)]
        taken.append(order[: round(fraction * len(members))])
    chosen = torch.cat(taken).sort().values if taken else candidates[:0]
    return candidates[~torch.isin(candidates, chosen)], chosen


def _moments(images: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the number of pixels, and per channel their sum and their sum of squares."""
    values = images.double()
    return values[:, 0].numel(), values.sum((0, 2, 3)), values.square().sum((0, 2, 3))


def balanced_subset(labels: Tensor, positions: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
    """Keep `count` of the positions, classes in equal turns, sorted; all of them if count is None or larger."""
    if count is None or count >= len(positions):
        return positions
    shuffled = positions[torch.randperm(len(positions), generator=generator)]
    seen: dict[int, int] = {}
    turn = []
    for cls in labels[shuffled].tolist():
        turn.append(seen.get(cls, 0))
        seen[cls] = turn[-1] + 1
    order = torch.tensor(turn).argsort(stable=True)
    return shuffled[order[:count]].sort().values
