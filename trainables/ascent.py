"""Gradient ascent on pixels inside an ε-ball: what the PGD attacks and adversarial training share.

Everywhere: images (B, C, H, W) in [0, 1]; `norm` is "linf" or "l2"; ε and step sizes are on the [0, 1] pixel scale; ε
is one number, or for "linf" one for each channel, (1, C, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.seeds import derive_seed

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, K) and targets → a scalar, summed over the images and not averaged: an image's gradient then does not
depend on its batch."""


class Batched(nn.Module):
    """A model that may be handed more images than fit at once.

    Without gradients, and in `loss_gradient`, they go through in batches of nearly equal size, as few as there can be:
    when 1,024 images have shrunk to 300, two passes of 150 run and not one for each of the batches that they came from.
    A pass whose pixels ask for a gradient goes straight through, whatever its size, because its graph must stay whole
    until the caller asks for the gradient; whoever wants bounded memory there calls `loss_gradient`.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        """Args: batch_size: most images of one pass."""
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad and torch.is_grad_enabled():
            whole: Tensor = self.model(images)
            return whole
        return torch.cat([self.model(part) for part in self.split(images)])

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Split a tensor (B, …) into ⌈B / batch_size⌉ parts whose lengths differ by one at most; none make one part."""
        return tensor.tensor_split(max(1, math.ceil(len(tensor) / self.batch_size)))


@contextmanager
def frozen(model: object) -> Iterator[None]:
    """Take the parameters of a module out of the graph, and give each its own flag back afterwards.

    A pass that only needs the pixels' gradient is then cheaper, and no gradient can be left on a parameter.
    """
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    flags = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over the images, in float32 at least, for class indices (B,) or probabilities (B, K)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, reduction="sum")


def loss_gradient(
    model: object, images: Tensor, targets: Tensor, loss: Loss = summed_cross_entropy
) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) and the gradient (B, C, H, W) of the loss with respect to the pixels.

    A `Batched` model is asked batch by batch.

    Args: targets: (B, …) whatever `loss` takes beside the logits.
    """
    if isinstance(model, Batched):
        if len(images) <= model.batch_size:
            return loss_gradient(model.model, images, targets, loss)
        batches = zip(model.split(images), model.split(targets), strict=True)
        logits, gradients = zip(*(loss_gradient(model.model, *batch, loss) for batch in batches), strict=True)
        return torch.cat(logits), torch.cat(gradients)
    assert callable(model)
    pixels = images.detach().requires_grad_(True)
    with torch.enable_grad():
        outputs: Tensor = model(pixels)
        (gradient,) = torch.autograd.grad(loss(outputs, targets), pixels)
    return outputs.detach(), gradient


def ascend(
    images: Tensor, gradient: Tensor, origin: Tensor, *, norm: str, epsilon: float | Tensor, step_size: float | Tensor
) -> Tensor:
    """Return the images after one steepest-ascent step, projected onto the ε-ball around `origin` and onto [0, 1].

    Args: step_size: one for all, or (B, 1, 1, 1).
    """
    direction = gradient.sign() if norm == "linf" else gradient / _length(gradient).clamp_min(1e-12)
    return project(images + step_size * direction, origin, norm=norm, epsilon=epsilon)


def project(images: Tensor, origin: Tensor, *, norm: str, epsilon: float | Tensor) -> Tensor:
    """Return the nearest images of the ε-ball, then clamped to [0, 1], which leads no further away from `origin`."""
    change = images - origin
    if norm == "linf":
        bound = epsilon if isinstance(epsilon, Tensor) else change.new_full((), epsilon)
        change = change.clamp(-bound, bound)
    else:
        change = change * (epsilon / _length(change).clamp_min(1e-12)).clamp_max(1.0)
    return (origin + change).clamp(0, 1)


def distance(images: Tensor, origin: Tensor, norm: str) -> Tensor:
    """Return how far each image is from its origin, in float64: (B,)."""
    change = (images.double() - origin.double()).flatten(1)
    length: Tensor = torch.linalg.vector_norm(change, ord=torch.inf if norm == "linf" else 2, dim=1)
    return length


def image_noise(origin: Tensor, ids: Iterable[int], norm: str, *parts: object) -> tuple[Tensor, Tensor]:
    """Draw random numbers for each image from a generator of its own, so that order and batching do not matter.

    Args:
        ids: the images' positions in their split.
        parts: (seed, attack, …) what else the generator depends on; the id goes in after the attack.

    Returns: noise (B, C, H, W), uniform in [0, 1) for "linf", standard normal for "l2"; a radius (B,), uniform too.
    """
    draw = torch.rand if norm == "linf" else torch.randn
    noises, radii = [], []
    for image_id in ids:
        generator = torch.Generator().manual_seed(derive_seed(*parts[:2], image_id, *parts[2:]))
        noises.append(draw(origin.shape[1:], generator=generator))
        radii.append(torch.rand((), generator=generator))
    return torch.stack(noises).to(origin), torch.stack(radii).to(origin)


def spread(noise: Tensor, radius: Tensor, *, norm: str, epsilon: float | Tensor) -> Tensor:
    """Turn ready-made random numbers into perturbations that are uniform in the ε-ball.

    Args:
        noise: (B, C, H, W), uniform in [0, 1) for "linf", standard normal for "l2".
        radius: (B,), uniform in [0, 1); read for "l2" only.
    """
    if norm == "linf":
        return (2 * noise - 1) * epsilon
    dimensions = noise[0].numel()
    scale = epsilon * radius.pow(1 / dimensions)
    return noise / _length(noise).clamp_min(1e-12) * scale.view(-1, 1, 1, 1)


def _length(change: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return length.view(-1, 1, 1, 1)
