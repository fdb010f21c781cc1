"""The exact nullspace of a patch embedding: what may be added to every patch without any change of its token.

A patch of C·p² pixels becomes the token W_e x + b, with W_e (D, C·p²). Any v with W_e v = 0 is invisible to the model
(Liu et al. 2024, arXiv:2403.10476). The nullspace has C·p² − rank(W_e) dimensions: 2304 for ViT-B/32, 2688 for
ViT-S/32, none for ViT-B/16, whose matrix is square, and none as a rule where patches have fewer numbers than tokens.

Differs: the published code takes the nullspace of each colour channel by itself, which is part of this one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.errors import ModelError
from trainables.vit import PixelVit, find_vit


def nullspace_basis(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis of {v : matrix v = 0} as columns, float64.

    A singular value counts as zero up to eps · max(m, n) · σ₁, with the eps of the matrix's own precision, as in
    scipy.linalg.null_space.

    Args:    matrix: (m, n).
    Returns: (n, n − rank); no columns if the nullspace is empty.
    """
    _, sigmas, rows = torch.linalg.svd(matrix.double())
    cutoff = torch.finfo(matrix.dtype).eps * max(matrix.shape) * float(sigmas.max())
    rank = int((sigmas > cutoff).sum())
    basis: Tensor = rows[rank:].T
    return basis


@torch.no_grad()
def patch_nullspace(model: nn.Module) -> Tensor:
    """Return the nullspace of the patch embedding of the vision transformer in `model`: (C·p², dimensions), float64.

    Its numbers are in the order channel, row, column, and on the scale of normalised pixels.

    Raises: ModelError if patches are not cut from the pixels.
    """
    return nullspace_basis(_projection(model).weight.flatten(1))


@torch.no_grad()
def describe_nullspace(model: nn.Module) -> str:
    """Say in one sentence how large the exact nullspace is, and what an empty one means."""
    dimensions, width = _projection(model).weight.flatten(1).shape[::-1]
    found = patch_nullspace(model).shape[1]
    if found:
        return f"the exact nullspace of the patch embedding has {found} of {dimensions} dimensions."
    return (
        f"the exact nullspace of the patch embedding is empty: {dimensions} numbers of a patch become {width}, none "
        "is lost. No change of the pixels hides from every token; noise on the tokens may still hide from the logits."
    )


@torch.no_grad()
def draw_invisible_noise(model: PixelVit, count: int, size: float, generator: torch.Generator) -> Tensor:
    """Return noise that, added to any images in [0, 1], changes no token of theirs beyond rounding.

    It is invisible as it is. Clipped to the pixel range, rounded to 8 bits or cropped it is not in the nullspace any
    more, so that it is a diagnosis and no attack.

    Args:
        count: how many, each of its own.
        size: the largest change of a pixel in each, on the [0, 1] pixel scale.
        generator: of the CPU.

    Returns: (count, C, H, W) in the precision of the model's weights, on its device.
    Raises:  ModelError if the nullspace is empty, or there is none.
    """
    basis = patch_nullspace(model)
    if not basis.shape[1]:
        raise ModelError(describe_nullspace(model))
    projection, patches = _projection(model), find_vit(model).patch_embed
    rows, columns = patches.grid_size
    channels, (height, width) = projection.in_channels, projection.kernel_size
    coefficients = torch.randn((count, rows, columns, basis.shape[1]), generator=generator, dtype=basis.dtype)
    noise = (coefficients.to(basis) @ basis.T).unflatten(-1, (channels, height, width))  # (B, rows, columns, C, p, p)
    noise = noise.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, rows * height, columns * width)
    noise = noise * model.std  # the model divides by it
    scaled: Tensor = noise * (size / noise.abs().amax((1, 2, 3), keepdim=True))
    return scaled.to(projection.weight.dtype)


def _projection(model: nn.Module) -> nn.Conv2d:
    projection = getattr(find_vit(model).patch_embed, "proj", None)
    if not isinstance(projection, nn.Conv2d) or hasattr(find_vit(model).patch_embed, "backbone"):
        raise ModelError("the patch embedding is not one linear map of the pixels, and has no nullspace of that kind.")
    return projection
