"""The changes that Square tries (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 2 and 3), all images at once.

Everywhere: images (n, C, H, W) in [0, 1], not necessarily square; random numbers are uniform in [0, 1) and come in the
order in which the authors' code draws them for one image. All images of a query share the size of the square, and no
more than that.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import torch
from torch import Tensor

FIRST_SHARE = 0.8
"""Share p of the image that the first squares cover."""
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which queries p halves, published for 10,000 queries."""
GUARD = 1e-12
"""Added to norms that are divided by, as in the authors' code."""


def square_share(query: int, queries: int | None) -> float:
    """Return the share p of the image that the squares of a query cover.

    Args: queries: how many the published schedule is stretched or shrunk to; None leaves it as it is.
    """
    at = query if queries is None else int(query / queries * 10_000)
    share: float = FIRST_SHARE / 2 ** bisect_left(HALVINGS, at)
    return share


def square_side(share: float, shape: torch.Size, norm: str) -> int:
    """Return the side of a square that covers a share of images (n, C, H, W): at most theirs; in L2 odd, 3 or more."""
    channels, height, width = shape[1:]
    side = round(math.sqrt(share * (channels * height * width) / channels))
    side = max(side, 1) if norm == "linf" else max(side, 3) // 2 * 2 + 1
    return min(side, height, width)


def stripes(origin: Tensor, numbers: Tensor, epsilon: float) -> Tensor:
    """Return the images with vertical stripes of ±ε, one pixel wide, with which the search in L∞ begins.

    Args: numbers: (n, C, W).
    """
    return (origin + epsilon * _signs(numbers)[:, :, None]).clamp(0, 1)


def square(images: Tensor, origin: Tensor, numbers: Tensor, *, side: int, epsilon: float) -> Tensor:
    """Return the images with each channel of one square moved by ±2ε, cut to the L∞ ball around `origin`.

    Args: numbers: (n, 2 + C): row, column, signs.
    """
    where = _window(numbers[:, :2], side, images.shape)
    centre = origin.flatten(2).gather(2, where)
    moved = images.flatten(2).gather(2, where) + 2 * epsilon * _signs(numbers[:, 2:])[:, :, None]
    inside = torch.min(torch.max(moved, centre - epsilon), centre + epsilon).clamp(0, 1)
    return images.flatten(2).scatter(2, where, inside).view_as(images)


def tile_corners(shape: torch.Size) -> list[tuple[int, int]]:
    """Return row and column of the tiles, about 5×5 of them, that cover images (n, C, H, W)."""
    height, width = shape[2:]
    side = _tile_side(height)
    start = max((height - 5 * side) // 2, 0)
    return [(start + i * side, start + j * side) for i in range(height // side) for j in range(width // side)]


def tiles(origin: Tensor, numbers: Tensor, epsilon: float) -> Tensor:
    """Return the images with one bump per tile, together ε long, with which the search in L2 begins.

    Differs: tiles that stick out of the image are cut off, where the authors' code fails.

    Args: numbers: (n, tiles, 1 + C): orientation, signs.
    """
    side = _tile_side(origin.shape[2])
    change = torch.zeros_like(origin)
    for index, (top, left) in enumerate(tile_corners(origin.shape)):
        tile = _bump(numbers[:, index, 0], side) * _signs(numbers[:, index, 1:])[:, :, None]
        part = change[:, :, top : top + side, left : left + side]
        part += tile.view(*tile.shape[:2], side, side)[:, :, : part.shape[2], : part.shape[3]]
    return _on_sphere(origin, change, epsilon)


def bumps(images: Tensor, origin: Tensor, numbers: Tensor, *, side: int, epsilon: float) -> Tensor:
    """Return the images with the change of a second window moved into a bump in the first, and the change ε long.

    Args: numbers: (n, 5 + C): row and column of both windows, orientation, signs.
    """
    change = (images - origin).flatten(2)  # (n, C, H·W)
    free = (epsilon**2 - change.square().sum((1, 2), keepdim=True)).clamp_min(0) / change.shape[1]
    first, second = (_window(numbers[:, at : at + 2], side, images.shape) for at in (0, 2))
    old = change.gather(2, first)
    change = change.scatter(2, first, 0.0)
    spent = old.square().sum(2, keepdim=True) + change.gather(2, second).square().sum(2, keepdim=True)
    new = _unit(_bump(numbers[:, 4], side) * _signs(numbers[:, 5:])[:, :, None] + _unit(old))
    change = change.scatter(2, second, 0.0).scatter(2, first, new * (free + spent).sqrt())
    return _on_sphere(origin, change.view_as(images), epsilon)


@lru_cache(maxsize=64)
def bump(side: int) -> Tensor:
    """Return two pyramids, the upper one positive and the lower one negative, together of length 1: (side, side)."""
    upper = side // 2
    both = torch.cat([_pyramid(upper, side), -_pyramid(side - upper, side)])
    length: Tensor = torch.linalg.vector_norm(both)
    return both / length


def _pyramid(height: int, width: int) -> Tensor:
    """Return Σ 1/(k + 1)², k from the distance to the centre up to the longest there is, of length 1: (H, W)."""
    longest = max(height, width) // 2
    terms = torch.tensor([1 / (k + 1) ** 2 for k in range(longest + 1)], dtype=torch.float64)
    rows, columns = ((torch.arange(size) - size // 2).abs() for size in (height, width))
    found = terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]
    length: Tensor = torch.linalg.vector_norm(found)
    return found / length


def _bump(numbers: Tensor, side: int) -> Tensor:
    """Return the bump, above 0.5 turned on its side, for numbers (n,): (n, 1, side²)."""
    upright = bump(side).to(numbers)
    return torch.where(numbers[:, None] > 0.5, upright.T.flatten(), upright.flatten())[:, None]


def _window(numbers: Tensor, side: int, shape: torch.Size) -> Tensor:
    """Return where among H·W the pixels of a square are, its corner from numbers (n, 2): (n, C, side²)."""
    channels, height, width = shape[1:]
    along = torch.arange(side, device=numbers.device)
    # as in the authors' code, a square smaller than the image reaches neither its last row nor its last column
    top = (numbers[:, 0] * (height - side)).long()[:, None] + along
    left = (numbers[:, 1] * (width - side)).long()[:, None] + along
    return (top[:, :, None] * width + left[:, None]).flatten(1)[:, None].expand(-1, channels, -1)


def _tile_side(height: int) -> int:
    return max(height // 5, 1)


def _signs(numbers: Tensor) -> Tensor:
    return (2 * numbers - 1).sign()


def _unit(part: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(part, dim=2, keepdim=True)
    return part / (GUARD + length)


def _on_sphere(origin: Tensor, change: Tensor, epsilon: float) -> Tensor:
    """Return the images at distance ε in the direction of the change, clamped to [0, 1]."""
    length: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return (origin + change / (length + GUARD) * epsilon).clamp(0, 1)
