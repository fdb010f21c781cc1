"""Verdicts: which images a model still classifies correctly under one attack, checked independently of the attack."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.errors import AttackError
from trainables.ascent import distance, frozen
from trainables.attack import Attack, Threat
from trainables.dataset import Images

TOLERANCE = 1e-6
"""How far float32 rounding may carry a pixel out of the ε-ball or of [0, 1]; in L2 it grows with √pixels."""


@dataclass(frozen=True)
class Verdict:
    """One attack on one model, image by image."""

    ids: Tensor
    """(n,) positions in the split."""
    clean: Tensor
    """(n,) bool: classified correctly without an attack."""
    correct: Tensor
    """(n,) bool: still classified correctly after the attack; false where `clean` is."""
    warnings: tuple[str, ...]
    """What the attack had to say, each sentence once."""
    forward_images: int
    """Images that went through the model, all passes together, the evaluator's own included."""
    backward_images: int
    """Images whose gradient was computed."""
    seconds: float

    @property
    def clean_accuracy(self) -> float:
        return float(self.clean.double().mean())

    @property
    def robust_accuracy(self) -> float:
        return float(self.correct.double().mean())


def judge(
    model: nn.Module,
    attack: Attack[Any],
    images: Images,
    ids: Tensor,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Verdict:
    """Attack the correctly classified images among `ids` and say which withstood.

    An image falls only if a forward pass of our own, in batches of one shape, misclassifies what the attack returned.
    The model comes back in its mode and with its flags; TF32 is off throughout.

    Raises: AttackError if an attack returns images outside [0, 1] or outside its ε-ball, by more than rounding
        (TOLERANCE), or of another shape.
    """
    started = time.monotonic()
    with _evaluating(model), frozen(model), _counting(model) as counts, _collected_warnings() as said:
        clean = clean_correct(model, images, ids, batch_size, device)
        correct = clean.clone()
        for where in _batches(clean.nonzero().squeeze(1), batch_size):
            origin = images.take(ids[where]).to(device)
            labels = images.labels[ids[where]].to(device)
            attacked = attack.perturb(model, origin, labels, seed, ids[where])
            attacked = _verified(attacked.detach(), origin, attack.threat, type(attack).__name__)
            correct[where] = (_padded_logits(model, attacked, batch_size).argmax(1) == labels).cpu()
    texts = tuple(dict.fromkeys(str(item.message) for item in said))
    return Verdict(ids, clean, correct, texts, counts["forward"], counts["backward"], time.monotonic() - started)


def clean_correct(model: nn.Module, images: Images, ids: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Return which of the images `ids` the model classifies correctly in eval mode: (n,) bool, on the CPU."""
    if not len(ids):
        return torch.zeros(0, dtype=torch.bool)
    return predict_logits(model, images, ids, batch_size, device).argmax(1) == images.labels[ids]


def predict_logits(model: nn.Module, images: Images, ids: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Return the logits (n, K) of the images `ids`, n > 0, in eval mode, on the CPU.

    Every pass has the shape of a full batch, so that an image's logits do not depend on how many others there are.
    """
    with _evaluating(model):
        parts = [
            _padded_logits(model, images.take(part).to(device), batch_size).cpu() for part in _batches(ids, batch_size)
        ]
    return torch.cat(parts)


def _batches(positions: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split positions; none at all make no batch, where torch's own split makes an empty one."""
    return positions.split(size) if len(positions) else ()


@torch.no_grad()
def _padded_logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    missing = batch_size - len(images)
    full = torch.cat([images, images[:1].expand(missing, *images.shape[1:])]) if missing > 0 else images
    logits: Tensor = model(full)[: len(images)]
    return logits.float()


def _verified(attacked: Tensor, origin: Tensor, threat: Threat, name: str) -> Tensor:
    """Return the attacked images clamped to [0, 1], or raise AttackError if they break the threat model."""
    if attacked.shape != origin.shape:
        raise AttackError(f"{name} returned images of shape {tuple(attacked.shape)}, expected {tuple(origin.shape)}.")
    if not (attacked.min() >= -TOLERANCE and attacked.max() <= 1 + TOLERANCE):  # also false for NaN
        raise AttackError(f"{name} returned pixels in [{attacked.min():g}, {attacked.max():g}], outside [0, 1].")
    slack = TOLERANCE if threat.norm == "linf" else TOLERANCE * max(1.0, math.sqrt(origin[0].numel()) / 10)
    furthest = float(distance(attacked, origin, threat.norm).max())
    if furthest > threat.epsilon + slack:
        raise AttackError(
            f"{name} moved an image by {furthest:g} in {threat.norm}, further than ε = {threat.epsilon:g}."
        )
    return attacked.clamp(0, 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with full float32 precision, and everything back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model.eval()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        for module, training in modes:
            module.training = training


@contextmanager
def _counting(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that pass through the model, and those whose gradient comes back."""
    counts = {"forward": 0, "backward": 0}

    def seen(count: int) -> Callable[[Tensor], None]:
        def add(_gradient: Tensor) -> None:
            counts["backward"] += count

        return add

    def on_forward(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        counts["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(seen(len(output)))

    handle = model.register_forward_hook(on_forward)
    try:
        yield counts
    finally:
        handle.remove()


@contextmanager
def _collected_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said
