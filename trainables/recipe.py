"""The fine-tuning recipe that all methods share: batch order, augmentation, targets, optimizer and learning rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.models import VisionTransformer, group_parameters
from torch import Tensor, nn

from search_spaces.errors import DataError, ModelError
from search_spaces.seeds import derive_seed
from trainables.config import TrainingConfig
from trainables.dataset import Images
from trainables.method import Batch


def steps_per_epoch(count: int, config: TrainingConfig) -> int:
    """Return how many batches `count` images make; DataError if `drop_last` leaves none."""
    steps = count // config.batch_size if config.drop_last else math.ceil(count / config.batch_size)
    if not steps:
        raise DataError(f"drop_last leaves nothing of {count} training images, batch_size is {config.batch_size}.")
    return steps


def epoch_batches(images: Images, config: TrainingConfig, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of one epoch, each image at most once; the order depends on (seed, epoch) alone.

    A restart at an epoch's boundary therefore needs no state of the loader.
    """
    yield from shuffled_batches(images, config, derive_seed(seed, "order", epoch))


def shuffled_batches(
    images: Images, config: TrainingConfig, seed: int, share: float = 1.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) batch by batch, each image at most once; the order depends on `seed` alone.

    The last batch may be smaller. Images that are read from files are read one batch ahead, by a thread.

    Args: share: how much of an epoch, in (0, 1]; one batch at least.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.labels), generator=generator).to(images.labels.device)
    batches = order.split(config.batch_size)[: math.ceil(share * steps_per_epoch(len(order), config))]
    if not images.from_files:
        yield from ((images.take(index), images.labels[index]) for index in batches)
        return
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(images.take, batches[0])
        for index, following in zip_longest(batches, batches[1:]):
            taken = coming.result()
            if following is not None:
                coming = reader.submit(images.take, following)
            yield taken, images.labels[index]


def augment(images: Tensor, config: TrainingConfig) -> Tensor:
    """Return images (B, C, H, W), each cropped at random from its zero-padded self and flipped, as configured."""
    if config.crop_padding:
        images = _random_crop(images, config.crop_padding)
    if config.flip:
        flipped = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    return images


def make_mixup(config: TrainingConfig, num_classes: int) -> Mixup | None:
    """Return timm's Mixup and CutMix (one coefficient per batch), or None if both are off. Draws from NumPy."""
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_probability,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )


def make_batch(images: Tensor, labels: Tensor, config: TrainingConfig, mixup: Mixup | None, num_classes: int) -> Batch:
    """Return what one step learns from: augmented images, targets mixed and smoothed as configured.

    Targets stay class indices when nothing turns them into probabilities. timm mixes pairs: the last image of an odd
    batch stays as it is.
    """
    images = augment(images, config)
    if mixup is None and not config.label_smoothing:
        return Batch(images, labels)
    targets = mixup_target(labels, num_classes, smoothing=config.label_smoothing)
    even = len(images) - len(images) % 2
    if mixup is None or not even:
        return Batch(images, targets)
    mixed, mixed_targets = mixup(images[:even].clone(), labels[:even])
    return Batch(torch.cat([mixed, images[even:]]), torch.cat([mixed_targets, targets[even:]]))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters: it skips frozen ones, which a method may thaw later.

    A group's ``lr_scale`` is what `layer_decay` leaves of the learning rate.
    """
    scales = layer_scales(model, config.layer_decay) if config.layer_decay < 1 else {}
    members: dict[tuple[float, bool], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        free = is_free_of_decay(name, parameter) and not config.decay_everything
        members[scales.get(name, 1.0), free].append(parameter)
    groups = [
        {"params": members[key], "weight_decay": 0.0 if key[1] else config.weight_decay, "lr_scale": key[0]}
        for key in sorted(members)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return decay ** (layers above) for every parameter of the vision transformer in `model`, by name.

    Layers are timm's: the stem (patches, positions, tokens), each block, the last with the final norm, and the head,
    whose factor is 1.
    """
    for prefix, vit in model.named_modules():
        if isinstance(vit, VisionTransformer):
            layers: dict[str, int] = group_parameters(vit, vit.group_matcher(coarse=False), reverse=True)
            top = max(layers.values())
            return {f"{prefix}.{name}".lstrip("."): decay ** (top - layer) for name, layer in layers.items()}
    raise ModelError("training.layer_decay needs a timm VisionTransformer.")


def is_free_of_decay(name: str, parameter: Tensor) -> bool:
    """Say whether weight decay leaves a parameter alone: biases, norms and scales, position embeddings, tokens."""
    return parameter.ndim <= 1 or name.rsplit(".", 1)[-1].endswith(("pos_embed", "token", "tokens"))


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of 0-based `step`: linear warm-up from 0, then a cosine, or constant."""
    total, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * min(1.0, (step + 1) / warmup)
    if config.schedule == "constant":
        return config.learning_rate
    height = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + height * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group, times the group's own scale."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        group["lr"] = value * group["lr_scale"]


def _random_crop(images: Tensor, padding: int) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    columns = left + torch.arange(width, device=images.device)  # (B, W)
    picture = torch.arange(count, device=images.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return cropped.permute(0, 3, 1, 2).contiguous()
