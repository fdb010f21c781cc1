"""CIFAR-10: 60,000 colour images of 32×32 pixels in 10 classes, downloaded where that is allowed.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; files and checksums by torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from trainables.archive import Archive, ArchiveConfig, ArchiveDataset
from trainables.config import DataConfig
from trainables.dataset import Images, InMemory, Statistics, resized


class Cifar10Config(ArchiveConfig):
    """Where CIFAR-10 is kept."""

    name: str = "cifar10"


class Cifar10(ArchiveDataset[ArchiveConfig]):
    """Held in memory as bytes; other sizes than 32 are interpolated bilinearly."""

    Config: ClassVar[type[DataConfig]] = Cifar10Config
    published = Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    """As in SpecFormer's training code (microsoft/robustlearn)."""
    source: ClassVar[Any] = CIFAR10
    train_counts: ClassVar[Sequence[int]] = (5000,) * 10
    test_counts: ClassVar[Sequence[int]] = (1000,) * 10

    def archive(self) -> Archive:
        return Archive(self.source.url, self.source.filename, self.source.tgz_md5, self.source.base_folder)

    def damage(self) -> str:
        if not self.place.is_dir():
            return f"there is no folder {self.place}"
        files = [
            *self.source.train_list,
            *self.source.test_list,
            (self.source.meta["filename"], self.source.meta["md5"]),
        ]
        bad = [name for name, md5 in files if not check_integrity(self.place / name, md5)]
        return f"{self.place / bad[0]} is missing or has the wrong checksum" if bad else ""

    def read(self) -> tuple[Images, Images, int]:
        root = self.config.root
        return self._part(root, train=True), self._part(root, train=False), len(self.train_counts)

    def _part(self, root: Path, *, train: bool) -> InMemory:
        part = self.source(root, train=train)
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # (n, 32, 32, 3) → (n, 3, 32, 32)
        return InMemory(resized(pixels, self.img_size), torch.tensor(part.targets))
