"""ImageNet: the 1,000 classes of ILSVRC 2012 in the usual folders, one per class under ``train`` and under ``val``.

Its terms forbid a download without registration: image-net.org has the files.
Source: Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge", arXiv:1409.0575.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from search_spaces.errors import DataError
from trainables.config import DataConfig
from trainables.dataset import Dataset, Images, Statistics
from trainables.datasets.image_folder import read_folder

PUBLISHED = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The statistics that torchvision's and timm's ImageNet models use."""
WORDNET = re.compile(r"n\d{8}")


class ImagenetConfig(DataConfig):
    """Where ImageNet is."""

    name: str = "imagenet"
    path: Path
    """Folder with ``train`` and ``val``; relative to the working directory unless absolute."""


class Imagenet(Dataset[ImagenetConfig]):
    """RGB; the shorter side is resized to the model's size and the centre cut out. Images are decoded when taken.

    Classes count in the order of their WordNet names, as those of pretrained heads do.
    """

    Config = ImagenetConfig
    reads_files = True
    published = PUBLISHED
    num_classes: ClassVar[int] = 1000

    @classmethod
    def check(cls, config: ImagenetConfig) -> Iterable[tuple[str, str]]:
        for part in ("train", "val"):
            folder = config.path / part
            if not folder.is_dir():
                yield "path", f"there is no folder {folder}; ImageNet comes from image-net.org, after registration"
                continue
            names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
            count = sum(WORDNET.fullmatch(name) is not None for name in names)
            if not count == len(names) == cls.num_classes:
                others = f" and {len(names) - count:,} others" if len(names) > count else ""
                found = f"{folder} has {count:,} class folders named like n01440764{others}"
                step = "sort the images into such folders, or take image_folder for other classes"
                yield "path", f"{found}; ImageNet has {cls.num_classes:,}; {step}"

    def load(self) -> tuple[Images, Images, int]:
        for _, sentence in self.check(self.config):
            raise DataError(f"data set imagenet: {sentence}.")
        return read_folder(self.config.path, self.img_size)
