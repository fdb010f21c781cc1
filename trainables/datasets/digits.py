"""Digits: 1,797 handwritten digits of 8×8 pixels, embedded in scikit-learn, so that nothing is downloaded.

Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.config import DataConfig
from trainables.dataset import Dataset, Images, InMemory, resized, split_stratified

TEST_FRACTION = 0.2
TEST_SEED = 20260101
"""Fixed: `split_seed` moves images between training and validation, never into or out of the test part."""


class DigitsConfig(DataConfig):
    """The embedded digits; nothing to set beyond the splits."""

    name: str = "digits"


class Digits(Dataset[DigitsConfig]):
    """Ten classes, one channel; other sizes than 8 are interpolated bilinearly."""

    Config = DigitsConfig

    def load(self) -> tuple[Images, Images, int]:
        table = torch.from_numpy(_table())
        pixels = resized(table[:, :-1].float().div(16).reshape(-1, 1, 8, 8), self.img_size)
        labels = table[:, -1].long()
        generator = torch.Generator().manual_seed(TEST_SEED)
        pool, test = split_stratified(labels, TEST_FRACTION, generator)
        return InMemory(pixels[pool], labels[pool]), InMemory(pixels[test], labels[test]), 10


def _table() -> NDArray[np.float64]:
    """Return (1797, 65): 64 grey levels of 0 … 16 and the class.

    scikit-learn keeps them in a file. Reading it spares every process the import, which takes over a second; should the
    file move, the import finds it.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    table: NDArray[np.float64] = np.column_stack([bunch.data, bunch.target])
    return table
