"""Features of a vision transformer, their cosine, and the attack that turns them away from those of the clean image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.ascent import Loss
from trainables.inner import InnerAttack
from trainables.vit import PixelVit, find_vit

CosDim = Literal[-1, 1, "flatten"]
"""Along which axis of (B, T, D) a cosine is taken: each token's features, each feature over the tokens, or all."""
START_DEVIATION = 0.01 * 0.225
"""Of the normal noise at which the attack starts: 0.01 in units of the normalised image (published code), in pixels; at
the image itself the cosine is 1 and has no slope."""


class Features(nn.Module):
    """Pixels in [0, 1] → what the final norm gives for class and patch tokens, (B, T, D); registers are left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        assert isinstance(model, PixelVit)
        self.model: PixelVit = model

    def forward(self, images: Tensor) -> Tensor:
        return self.without_registers(self.sequence(images))

    def sequence(self, images: Tensor) -> Tensor:
        """Return all that the head sees: (B, N, D), class, distillation and register tokens first."""
        vit = find_vit(self.model)
        sequence: Tensor = vit.forward_features((images - self.model.mean) / self.model.std)
        return sequence

    def logits(self, sequence: Tensor) -> Tensor:
        """Return what the head makes of a sequence (B, N, D): (B, K)."""
        logits: Tensor = find_vit(self.model).forward_head(sequence)
        return logits

    def without_registers(self, sequence: Tensor) -> Tensor:
        """Leave the registers out, the last of the tokens before the patches: (B, N, D) → (B, T, D)."""
        vit = find_vit(self.model)
        first = vit.num_prefix_tokens - vit.num_reg_tokens
        return torch.cat([sequence[:, :first], sequence[:, vit.num_prefix_tokens :]], dim=1)


def cosine(first: Tensor, second: Tensor, dim: CosDim) -> Tensor:
    """Return the cosine of two features (B, T, D) of each image in float32, a mean where there are several: (B,)."""
    first, second = first.float(), second.float()
    if dim == "flatten":
        return F.cosine_similarity(first.flatten(1), second.flatten(1))
    return F.cosine_similarity(first, second, dim=dim).mean(1)


def turned_away(
    attack: InnerAttack, features: Features, images: Tensor, target: Tensor, noise: Tensor, dim: CosDim
) -> Tensor:
    """Return images in the ball whose features have as small a cosine with the target as the attack finds.

    Args:
        images: (B, C, H, W) in [0, 1], around which the ball lies.
        target: (B, T, D), the clean images' features, without a graph.
        noise: standard normal, like `images`, for the start.
    """
    if attack.epsilon == 0:
        return images
    start = attack.projected(images + START_DEVIATION * noise, images)
    return attack.climb(features, start, images, target, _distance(dim))


def _distance(dim: CosDim) -> Loss:
    return lambda found, target: -cosine(found, target, dim).sum()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, so that nothing in it is drawn at random, and each module back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
