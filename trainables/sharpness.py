"""Sharpness: which layers of a vision transformer there are, how far the loss rises when one moves, and the sharpest.

A layer's weights and biases count as one vector W_i, its length is the L2 norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.ascent import summed_cross_entropy
from trainables.method import Batch
from trainables.vit import find_vit, heads_of

Layers = Mapping[str, Sequence[nn.Parameter]]
"""Name of a layer → its weights and biases, in the order of the forward pass."""


def linear_layers(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return every linear map and convolution below the head: patch embedding, qkv, proj, fc1, fc2 of each block."""
    vit = find_vit(model)
    heads = {id(module) for module in heads_of(vit)}
    return {
        name: list(module.parameters())
        for name, module in vit.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and id(module) not in heads
    }


def block_layers(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return every block as one layer: its linear maps, without norms and scales."""
    linear = linear_layers(model)
    blocks = (f"blocks.{index}" for index in range(len(find_vit(model).blocks)))
    return {block: [p for name, ps in linear.items() if name.startswith(f"{block}.") for p in ps] for block in blocks}


def head_layers(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the classifier; a distilled model has two."""
    vit = find_vit(model)
    names = {id(module): name for name, module in vit.named_modules()}
    return {names[id(head)]: list(head.parameters()) for head in heads_of(vit) if list(head.parameters())}


def train_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze all parameters of a model but these; a frozen one keeps no gradient."""
    trained = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if not parameter.requires_grad:
            parameter.grad = None


def sharpness(
    model: nn.Module, layers: Layers, batches: Sequence[Batch], *, radius: float, relative: bool, exact: bool
) -> dict[str, float]:
    """Return how sharp each layer is: S_i = max over ‖e‖ ≤ r_i of L(W_i + e) − L(W_i).

    L is the mean cross-entropy over the images of all batches, and e = r_i g_i / ‖g_i‖ is the maximiser to first order,
    g_i the gradient of L. It takes one backward pass over the batches, and one forward pass for each layer if exact. A
    layer without a gradient has 0. The weights come back bit by bit.

    Args:
        model: in eval mode; the layers' parameters ask for gradients.
        batches: images and targets of at least one.
        radius: r_i = radius · ‖W_i‖ if relative, else r_i = radius.
        exact: measure the rise by a forward pass; else r_i ‖g_i‖, what it is to first order.
    """
    here, gradients = _loss_and_gradients(model, layers, batches)
    scores = {}
    for name, parameters in layers.items():
        reach = radius * (float(length(parameters)) if relative else 1.0)
        slope = float(length(gradients[name]))
        if exact and slope:
            with moved(parameters, gradients[name], reach):
                scores[name] = _loss(model, batches) - here
        else:
            scores[name] = reach * slope
    return scores


def sharpest(scores: Mapping[str, float], fraction: float) -> list[str]:
    """Return the max(1, ⌈fraction · n⌉) layers of the highest scores, in their own order; of equals the earlier one.

    sharpest({"a": 1.0, "b": 3.0, "c": 3.0}, 0.2)  # ["b"]
    """
    names = list(scores)
    count = max(1, math.ceil(round(fraction * len(names), 9)))  # 0.07 · 100 is a little more than 7
    ranked = sorted(range(len(names)), key=lambda index: (-scores[names[index]], index))
    return [names[index] for index in sorted(ranked[:count])]


@contextmanager
def moved(parameters: Sequence[Tensor], directions: Sequence[Tensor], distance: float) -> Iterator[None]:
    """Move parameters together by `distance` along `directions`, and put them back bit by bit afterwards.

    The step is distance · d / (‖d‖ + 1e-12), ‖d‖ the length of all directions as one vector, as SAM has it.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    scale = distance / (length(directions) + 1e-12)
    with torch.no_grad():
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, kept, strict=True):
                parameter.copy_(original)


@torch.no_grad()
def length(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of tensors as one vector, a scalar on their device."""
    norms = torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])
    whole: Tensor = torch.linalg.vector_norm(norms)
    return whole


def _loss_and_gradients(
    model: nn.Module, layers: Layers, batches: Sequence[Batch]
) -> tuple[float, dict[str, list[Tensor]]]:
    """Return the mean cross-entropy, and its gradient for every layer."""
    parameters = [parameter for members in layers.values() for parameter in members]
    count = sum(len(batch.images) for batch in batches)
    total, sums = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        loss = summed_cross_entropy(model(batch.images), batch.targets)
        gradients = torch.autograd.grad(loss / count, parameters, allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, gradients, strict=True)]
        total += float(loss.detach())
    iterator = iter(sums)
    return total / count, {name: [next(iterator) for _ in members] for name, members in layers.items()}


@torch.no_grad()
def _loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    count = sum(len(batch.images) for batch in batches)
    return sum(float(summed_cross_entropy(model(batch.images), batch.targets)) for batch in batches) / count
