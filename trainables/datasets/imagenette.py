"""Imagenette: ten easy classes of ImageNet, 9,469 training and 3,925 test images, downloaded where that is allowed.

Source: github.com/fastai/imagenette, its second version; files and checksums by torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from torchvision.datasets import Imagenette as TorchvisionImagenette

from trainables.archive import Archive, ArchiveConfig, ArchiveDataset
from trainables.dataset import Images
from trainables.datasets.image_folder import read_folder
from trainables.datasets.imagenet import PUBLISHED


class ImagenetteConfig(ArchiveConfig):
    """Where Imagenette is kept, and in which size."""

    name: str = "imagenette"
    size: Literal["160px", "320px", "full"] = "160px"
    """The shorter side of the stored images; the model's img_size should not be larger."""


class Imagenette(ArchiveDataset[ImagenetteConfig]):
    """RGB; the shorter side is resized to the model's size and the centre cut out. Images are decoded when taken."""

    Config = ImagenetteConfig
    reads_files = True
    published = PUBLISHED
    train_counts: ClassVar[Sequence[int]] = (963, 955, 993, 858, 941, 956, 961, 931, 951, 960)
    test_counts: ClassVar[Sequence[int]] = (387, 395, 357, 386, 409, 394, 389, 419, 399, 390)

    def archive(self) -> Archive:
        url, md5 = TorchvisionImagenette._ARCHIVES[self.config.size]
        file = Path(urlsplit(url).path).name
        return Archive(url, file, md5, file.removesuffix(".tgz"))

    def damage(self) -> str:
        """Count the files of each class: reading them all would take long, and unpacking loses whole files."""
        for part, counts in (("train", self.train_counts), ("val", self.test_counts)):
            if not (self.place / part).is_dir():
                return f"there is no folder {self.place / part}"
            folders = sorted(folder for folder in (self.place / part).iterdir() if folder.is_dir())
            found = [len(list(folder.glob("*.JPEG"))) for folder in folders]
            if found != list(counts):
                return (
                    f"{self.place / part} has {sum(found):,} images in {len(found)} classes, expected {sum(counts):,}"
                )
        return ""

    def read(self) -> tuple[Images, Images, int]:
        return read_folder(self.place, self.img_size)
