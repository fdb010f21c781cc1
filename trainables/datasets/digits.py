"""Digits: 1,797 handwritten digits of 8×8 pixels, embedded in scikit-learn, so that nothing is downloaded.

Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

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
        bunch = load_digits()
        pixels = resized(torch.from_numpy(bunch.images).float().div(16).unsqueeze(1), self.img_size)
        labels = torch.from_numpy(bunch.target).long()
        generator = torch.Generator().manual_seed(TEST_SEED)
        pool, test = split_stratified(labels, TEST_FRACTION, generator)
        return InMemory(pixels[pool], labels[pool]), InMemory(pixels[test], labels[test]), 10
