"""Arrays: images and labels in one NumPy file, ``x_train``, ``y_train``, ``x_test`` and ``y_test``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import DataError
from trainables.config import DataConfig
from trainables.dataset import Dataset, Images, InMemory, resized

NAMES = ("x_train", "y_train", "x_test", "y_test")


class ArraysConfig(DataConfig):
    """Where the arrays are."""

    name: str = "arrays"
    path: Path
    """An .npz file; relative to the working directory unless absolute."""


class Arrays(Dataset[ArraysConfig]):
    """Square images (n, H, W) or (n, H, W, C) as uint8, or as floats in [0, 1]; class indices (n,) from 0.

    Other sizes than the model's are interpolated bilinearly. Pickled arrays are refused.
    """

    Config = ArraysConfig

    @classmethod
    def check(cls, config: ArraysConfig) -> Iterable[tuple[str, str]]:
        if not config.path.is_file():
            yield "path", f"there is no file {config.path}"
            return
        try:
            present = _names_in(config.path)
        except DataError as error:
            yield "path", str(error)
            return
        missing = [name for name in NAMES if name not in present]
        if missing:
            yield "path", f"{config.path} lacks {', '.join(missing)}; it holds {', '.join(present) or 'nothing'}"

    def load(self) -> tuple[Images, Images, int]:
        for _, sentence in self.check(self.config):
            raise DataError(f"data set arrays: {sentence}.")
        train, test = self._part("train"), self._part("test")
        if train.pixels.shape[1] != test.pixels.shape[1]:
            channels = train.pixels.shape[1], test.pixels.shape[1]
            raise DataError(f"{self.config.path}: x_train has {channels[0]} channels and x_test {channels[1]}.")
        num_classes = int(train.labels.max()) + 1
        if int(test.labels.max()) >= num_classes:
            raise DataError(
                f"{self.config.path}: y_test has class {int(test.labels.max())}, which y_train never shows."
            )
        return train, test, num_classes

    def _part(self, part: str) -> InMemory:
        path = self.config.path
        x, y = _read(path, f"x_{part}"), _read(path, f"y_{part}")
        pixels, labels = _pixels(x, f"{path}: x_{part}"), _labels(y, f"{path}: y_{part}")
        if len(pixels) != len(labels):
            raise DataError(f"{path}: x_{part} has {len(pixels)} images and y_{part} {len(labels)} labels.")
        return InMemory(resized(pixels, self.img_size), labels)


def _names_in(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no .npz file: {error}") from error


def _read(path: Path, name: str) -> NDArray[np.generic]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[np.generic] = archive[name]
            return array
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: {name} cannot be read: {error}.") from error


def _pixels(array: NDArray[np.generic], where: str) -> Tensor:
    """Check images and return them as (n, C, H, W), uint8 or float32."""
    if array.ndim not in (3, 4) or array.shape[1] != array.shape[2] or (array.ndim == 4 and array.shape[3] > 4):
        raise DataError(
            f"{where} has the shape {array.shape}; expected square images (n, H, W) or (n, H, W, C), C ≤ 4."
        )
    if 0 in array.shape:
        raise DataError(f"{where} is empty, its shape is {array.shape}.")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{where} has the type {array.dtype}; expected uint8, or floats in [0, 1].")
    if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
        raise DataError(f"{where} must lie in [0, 1]; found {array.min():g} … {array.max():g}.")
    pixels = torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.contiguous()


def _labels(array: NDArray[np.generic], where: str) -> Tensor:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{where} has the shape {array.shape} and type {array.dtype}; expected (n,) whole numbers.")
    if array.size and int(array.min()) < 0:
        raise DataError(f"{where} has the class {int(array.min())}; classes count from 0.")
    return torch.from_numpy(array.astype(np.int64))
