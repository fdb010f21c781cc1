"""Coloured shapes: discs, squares, triangles and crosses of any colour, drawn when they are asked for.

Our own, small enough to learn in seconds. The class is the shape alone: colour, place and size say nothing about it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from search_spaces.config import Number
from search_spaces.seeds import derive_seed
from trainables.config import DataConfig
from trainables.dataset import Dataset, Images, InMemory

SHAPES = ("disc", "square", "triangle", "cross")


class ColouredShapesConfig(DataConfig):
    """How many, and how hard to see."""

    name: str = "coloured_shapes"
    images: Annotated[int, Field(ge=100)] = 1000
    """Images for training and validation; a quarter as many are drawn for the test."""
    noise: Annotated[Number, Field(ge=0, le=0.5)] = 0.05
    """Standard deviation of the grain, on the [0, 1] pixel scale."""
    draw_seed: Annotated[int, Field(ge=0)] = 0
    """Of the pictures; one sweep has one value, so that all trials see the same images."""


class ColouredShapes(Dataset[ColouredShapesConfig]):
    """Four classes of equal size, three channels, drawn at the side that the model takes."""

    Config = ColouredShapesConfig

    def load(self) -> tuple[Images, Images, int]:
        counts = {"pool": self.config.images, "test": self.config.images // 4}
        pool, test = (self._draw(name, count) for name, count in counts.items())
        return pool, test, len(SHAPES)

    def _draw(self, part: str, count: int) -> InMemory:
        generator = torch.Generator().manual_seed(derive_seed(self.config.draw_seed, part))
        labels = torch.arange(count) % len(SHAPES)
        place = 0.35 + 0.3 * torch.rand(count, 2, 1, 1, generator=generator)
        radius = 0.2 + 0.15 * torch.rand(count, 1, 1, generator=generator)
        ground = 0.3 * torch.rand(count, 3, 1, 1, generator=generator)
        bright = 0.6 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)  # than any ground
        covered = cover(labels, place, radius, self.img_size)[:, None]
        grain = self.config.noise * torch.randn(count, 3, self.img_size, self.img_size, generator=generator)
        return InMemory((torch.where(covered, bright, ground) + grain).clamp(0, 1), labels)


def cover(labels: Tensor, place: Tensor, radius: Tensor, size: int) -> Tensor:
    """Return which pixels lie in the shapes: (n, size, size) bool.

    Args:
        labels: (n,) positions in SHAPES.
        place: (n, 2, 1, 1) centres, row and column as shares of the side.
        radius: (n, 1, 1) half the shape's height as a share of the side.
        size: side of the images, in pixels.
    """
    middle = (torch.arange(size) + 0.5) / size
    down, across = (middle[:, None] - place[:, 0]) / radius, (middle[None, :] - place[:, 1]) / radius  # (n, S, S)
    box = torch.maximum(down.abs(), across.abs()) <= 1
    arm = torch.minimum(down.abs(), across.abs()) <= 0.35
    shapes = (down.square() + across.square() <= 1, box, box & (2 * across.abs() <= down + 1), box & arm)
    return torch.stack(shapes)[labels, torch.arange(len(labels))]
