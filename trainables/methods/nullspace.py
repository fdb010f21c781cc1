"""Nullspace: learn from tokens under noise that the predictions hardly notice (NS-ViT, arXiv:2403.10476).

Before every epoch a noise δ is learnt for the present model, one tensor for all images, added to the output of the
patch embedding (Liu et al. 2024; code: Liu-Hy/NS-ViT):

    minimise over δ   mean over images of ‖z(x, δ) − z(x)‖₂,   z the logits,
    until             mean over images of ‖softmax z(x, δ) − softmax z(x)‖₂² < tolerance.

Then the epoch minimises CE(z(x), y) + weight · CE(z(x, δ), y). The exact nullspace of the patch embedding is in
`trainables/nullspace.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import LogUniform, Uniform
from search_spaces.errors import ModelError
from trainables.ascent import frozen
from trainables.config import MethodConfig
from trainables.method import Batch, Draw, Method, cross_entropy
from trainables.nullspace import describe_nullspace
from trainables.vit import find_vit

NOISE_DECAY = 0.01
"""Weight decay of the AdamW that learns the noise: torch's default, which the published code leaves as it is."""


class NullspaceConfig(MethodConfig):
    """The noise, how it is learnt, and its share of the loss; the defaults are the published code's choice."""

    weight: Annotated[Number, Field(ge=0), Uniform(0.25, 1)] = 1.0
    """Of the second term, the cross-entropy under noise (1 in the published code); 0 is plain fine-tuning, bit by
    bit."""
    limit: Annotated[Number, Field(gt=0), LogUniform(0.1, 3)] = 3.0
    """The noise starts uniform in [−limit, limit], on the scale of the tokens."""
    tolerance: Annotated[Number, Field(ge=0), LogUniform(1e-3, 1e-1)] = 0.01
    """The noise is learnt until it changes the probabilities of a batch by less: mean squared length, at most 2."""
    noise_learning_rate: Annotated[Number, Field(gt=0), LogUniform(0.02, 0.2)] = 0.1
    """Of the AdamW that learns the noise."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """At most so many passes to learn the noise of an epoch."""
    image_share: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """Share of the training images in one such pass, one batch at least."""


@contextmanager
def noise_on_patches(model: nn.Module, noise: Tensor) -> Iterator[None]:
    """Add noise (1, N_patches, D) to what the patch embedding returns; prefix tokens and positions come after it."""

    def add(_embedding: nn.Module, _images: object, tokens: Tensor) -> Tensor:
        return tokens + noise.view(1, *tokens.shape[1:])  # (B, N, D), or (B, rows, columns, D) for dynamic_img_size

    handle = find_vit(model).patch_embed.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def softmax_change(noisy: Tensor, clean: Tensor) -> Tensor:
    """Return ‖softmax(noisy) − softmax(clean)‖₂² of each image, in [0, 2]: (B, K), (B, K) → (B,)."""
    return (noisy.float().softmax(-1) - clean.float().softmax(-1)).square().sum(-1)


class Learnt(NamedTuple):
    """The noise of an epoch, and how it came about."""

    noise: Tensor
    """(1, N_patches, D)."""
    rounds: int
    """Passes that were begun."""
    steps: int
    """Moves of the noise."""
    is_tolerable: bool
    """Whether the stopping rule was met; otherwise the rounds ran out."""


def learn_noise(
    model: nn.Module, start: Tensor, config: NullspaceConfig, images: Callable[[int], Iterator[Sequence[Batch]]]
) -> Learnt:
    """Move the noise until the predictions hardly notice it, as tested on each batch before the step on it.

    Args:
        model: in eval mode, with frozen parameters.
        start: (1, N_patches, D).
        images: round → its batches, each in parts that fit in one forward pass.
    """
    noise = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([noise], lr=config.noise_learning_rate, weight_decay=NOISE_DECAY)
    steps = 0
    for number in range(config.rounds):
        walked = config.image_share * number / config.rounds  # of a cosine over whole passes
        optimizer.param_groups[0]["lr"] = config.noise_learning_rate * (1 + math.cos(math.pi * walked)) / 2
        for parts in images(number):
            noise.grad, change = _slope(model, noise, parts)
            if change < config.tolerance:
                return Learnt(noise.detach(), number + 1, steps, True)
            optimizer.step()
            steps += 1
    return Learnt(noise.detach(), config.rounds, steps, False)


def _slope(model: nn.Module, noise: Tensor, parts: Sequence[Batch]) -> tuple[Tensor, float]:
    """Return the gradient of the mean distance of the logits, and the mean change of the probabilities."""
    count = sum(len(part.images) for part in parts)
    gradient, change = torch.zeros_like(noise), noise.new_zeros(())
    for part in parts:
        with torch.no_grad():
            clean = model(part.images)
        with torch.enable_grad(), noise_on_patches(model, noise):
            noisy = model(part.images)
            distance = torch.linalg.vector_norm((noisy - clean).float(), dim=-1).sum() / count
            gradient += torch.autograd.grad(distance, noise)[0]
        change += softmax_change(noisy.detach(), clean).sum() / count
    return gradient, float(change)


@torch.no_grad()
def measure_noise(model: nn.Module, noise: Tensor, parts: Sequence[Batch]) -> tuple[float, float]:
    """Return the mean change of the probabilities, and the share of images whose predicted class stays."""
    count = sum(len(part.images) for part in parts)
    change = kept = 0.0
    for part in parts:
        clean = model(part.images)
        with noise_on_patches(model, noise):
            noisy = model(part.images)
        change += float(softmax_change(noisy, clean).sum()) / count
        kept += float((noisy.argmax(-1) == clean.argmax(-1)).sum()) / count
    return change, kept


class Nullspace(Method[NullspaceConfig]):
    """Both terms see the images that `perturb` made, the clean tokens first: penalties read the pass without noise.

    The noise is state of the method, not of the model, and no gradient reaches it while the model learns. Each epoch
    draws its noise anew, from torch's global random numbers, which checkpoints save: between two epochs there is
    nothing to keep. It is learnt in float32. The same noise with its entries permuted is the control: of equal length,
    but not learnt.

    Published (code): where the noise is added, the objective, the start, AdamW, the stopping rule, the share of images,
    both terms, one noise per epoch, and the defaults. Inferred: that it applies to any timm VisionTransformer.

    Differs: the noise learns from images without augmentation, so that the trial's random numbers are left alone; its
    learning rate follows the published cosine, of which only the first tenth is walked, from round to round instead of
    from step to step; `weight` is ours; control and agreement are measured on a batch of their own.
    """

    Config = NullspaceConfig
    strengths = ("weight",)

    def __init__(self, config: NullspaceConfig, total_epochs: int) -> None:
        super().__init__(config, total_epochs)
        self._noise = torch.empty(0)

    def on_epoch_start(self, model: nn.Module, epoch: int, draw: Draw) -> dict[str, float]:
        if self.config.weight == 0:
            return {}
        if epoch == 0:
            self._note_exact_nullspace(model)
        vit, weights = find_vit(model), next(model.parameters())
        uniform = torch.rand((1, vit.patch_embed.num_patches, vit.embed_dim))
        start = ((2 * uniform - 1) * self.config.limit).to(weights)
        key, share = f"nullspace/{epoch}", self.config.image_share
        model.eval()
        with torch.compiler.set_stance("force_eager"), frozen(model):
            learnt = learn_noise(model, start, self.config, lambda number: draw(f"{key}/{number}", share))
            self._noise = learnt.noise
            permuted = self._noise.flatten()[torch.randperm(self._noise.numel()).to(weights.device)]
            control = next(draw(f"{key}/control", share))
            change, kept = measure_noise(model, self._noise, control)
            permuted_change, permuted_kept = measure_noise(model, permuted.view_as(self._noise), control)
        model.train()
        return {
            "nullspace/noise_norm": float(self._noise.norm()),
            "nullspace/rounds": float(learnt.rounds),
            "nullspace/steps": float(learnt.steps),
            "nullspace/tolerance_met": float(learnt.is_tolerable),
            "nullspace/softmax_change": change,
            "nullspace/agreement": kept,
            "nullspace/permuted_softmax_change": permuted_change,
            "nullspace/permuted_agreement": permuted_kept,
        }

    def loss(self, model: nn.Module, seen: Batch, clean: Batch) -> Tensor:
        task = cross_entropy(model(seen.images), seen.targets)
        if self.config.weight == 0:
            return task
        with noise_on_patches(model, self._noise):
            noisy = model(seen.images)
        return task + self.config.weight * cross_entropy(noisy, seen.targets)

    def _note_exact_nullspace(self, model: nn.Module) -> None:
        try:
            self.notes.append(f"nullspace: {describe_nullspace(model)}")
        except ModelError as error:  # patches of a convolutional network's features
            self.notes.append(f"nullspace: {error}")
