"""Image folder: one folder per class under ``train`` and under ``test`` or ``val``, as ImageNet and Imagenette come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms.v2 import functional as TF

from search_spaces.errors import DataError
from trainables.config import DataConfig
from trainables.dataset import Dataset, Images

READERS = 8
"""Threads that decode one batch; decoding releases Python's lock."""


class ImageFolderConfig(DataConfig):
    """Where the images are."""

    name: str = "image_folder"
    path: Path
    """Folder with ``train`` and ``test`` or ``val``; relative to the working directory unless absolute."""


class ImageFolder(Dataset[ImageFolderConfig]):
    """RGB; the shorter side is resized to the model's size and the centre cut out. Images are decoded when taken."""

    Config = ImageFolderConfig
    reads_files = True

    @classmethod
    def check(cls, config: ImageFolderConfig) -> Iterable[tuple[str, str]]:
        if not config.path.is_dir():
            yield "path", f"there is no folder {config.path}"
            return
        if not (config.path / "train").is_dir():
            yield "path", f"{config.path} has no folder train"
        if _test_folder(config.path) is None:
            yield "path", f"{config.path} has neither a folder test nor a folder val"

    def load(self) -> tuple[Images, Images, int]:
        for _, sentence in self.check(self.config):
            raise DataError(f"data set image_folder: {sentence}.")
        return read_folder(self.config.path, self.img_size)


@dataclass(frozen=True)
class Files:
    """Labelled image files, decoded on demand."""

    root: Path
    files: tuple[Path, ...]
    labels: Tensor
    img_size: int

    def take(self, index: Tensor) -> Tensor:
        with ThreadPoolExecutor(READERS) as readers:
            decoded = readers.map(self._decode, [self.files[i] for i in index.tolist()])
            return torch.stack(list(decoded))

    def digest(self) -> str:
        return self._digest

    @property
    def from_files(self) -> bool:
        return True

    def to(self, device: torch.device) -> Images:
        """Return these images: they are decoded batch by batch, in the memory of the host."""
        return self

    @cached_property
    def _digest(self) -> str:
        """Of names, sizes and classes; the pixels are too many to read."""
        content = hashlib.sha256()
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            content.update(f"{file.relative_to(self.root).as_posix()}\n{file.stat().st_size}\n{label}\n".encode())
        return content.hexdigest()

    def _decode(self, file: Path) -> Tensor:
        try:
            with Image.open(file) as image:
                small = TF.resize(image.convert("RGB"), [self.img_size], antialias=True)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file} cannot be read as an image: {error}.") from error
        pixels: Tensor = TF.pil_to_tensor(TF.center_crop(small, [self.img_size]))
        return pixels.float() / 255


def read_folder(path: Path, img_size: int) -> tuple[Images, Images, int]:
    """Return (training images, test images, number of classes) of a folder with ``train`` and ``test`` or ``val``.

    Raises: DataError if a class has no images, or the parts differ in their classes.
    """
    test_folder = _test_folder(path)
    assert test_folder is not None
    train, test = _listing(path / "train"), _listing(test_folder)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{path}: train and {test_folder.name} differ in the classes {', '.join(odd[:5])}.")
    return _files(train, img_size), _files(test, img_size), len(train.classes)


def _files(listing: TorchvisionFolder, img_size: int) -> Files:
    files = tuple(Path(name) for name, _ in listing.samples)
    return Files(Path(listing.root), files, torch.tensor(listing.targets), img_size)


def _test_folder(path: Path) -> Path | None:
    return next((path / name for name in ("test", "val") if (path / name).is_dir()), None)


def _listing(folder: Path) -> TorchvisionFolder:
    try:
        return TorchvisionFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without images
        raise DataError(f"{folder}: {error}.") from error
