"""CIFAR-100: 60,000 colour images of 32×32 pixels in 100 classes, downloaded where that is allowed.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; files and checksums by torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torchvision.datasets import CIFAR100

from trainables.archive import ArchiveConfig
from trainables.config import DataConfig
from trainables.dataset import Statistics
from trainables.datasets.cifar10 import Cifar10


class Cifar100Config(ArchiveConfig):
    """Where CIFAR-100 is kept."""

    name: str = "cifar100"


class Cifar100(Cifar10):
    """The 100 fine classes, alphabetical; held in memory as bytes, other sizes than 32 interpolated bilinearly."""

    Config: ClassVar[type[DataConfig]] = Cifar100Config
    published = Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    """As in SpecFormer's training code (microsoft/robustlearn)."""
    source: ClassVar[Any] = CIFAR100
    train_counts: ClassVar[Sequence[int]] = (500,) * 100
    test_counts: ClassVar[Sequence[int]] = (100,) * 100
