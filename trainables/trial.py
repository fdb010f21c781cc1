"""A trial's data and model: fresh from its configuration, or finished from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.errors import CheckpointCorrupt, ModelError
from trainables.checkpoint import read_final
from trainables.config import ModelConfig, TrialConfig
from trainables.dataset import Splits, loaded_splits
from trainables.method import Batch, MethodStack, build_stack
from trainables.node_data import NodeData
from trainables.randomness import Randomness
from trainables.vit import PixelVit, build_model
from trainables.weights import Resampling, fill, without_wrapping

TRAIN_AGAIN = "If the trial has failed by it, `retry` trains it again; `rerun` repeats any trial beside the sweep."


def find_splits(config: TrialConfig, held: NodeData | None = None) -> Splits:
    """Return the trial's images. Args: held: what this node holds of them; what it does not hold is loaded."""
    data, img_size, with_selection = config.data, config.model.img_size, config.training.select == "best"
    splits = None if held is None else held.splits(data, img_size, with_selection=with_selection)
    return loaded_splits(data, img_size, with_selection=with_selection) if splits is None else splits


def new_model(config: TrialConfig, splits: Splits, start: Mapping[str, Tensor] | None = None) -> PixelVit:
    """Return the model before any method has touched it, on the CPU; draws from torch's global random numbers.

    Args:   start: the weights of the parent that the trial starts from; None if it has none.
    Raises: ModelError if the model cannot be built, or there is a parent and its weights are not given or do not fit.
    """
    parent = config.start_from
    if parent is not None and start is None:
        raise ModelError(f"{config.label}: the weights of parent {parent.name} are needed; found none.")
    model = build_model(
        config.model if start is None else _bare(config.model),
        num_classes=splits.num_classes,
        channels=splits.channels,
        mean=splits.mean,
        std=splits.std,
    )
    if parent is not None and start is not None:
        _start(model, start, f"parent {parent.name}", config.model.resampling)
    return model


def _start(model: PixelVit, state: Mapping[str, Tensor], source: str, resampling: Resampling) -> None:
    """Give a model the weights of its parent, and its normalisation where that comes with them."""
    model.notes = fill(model.vit, without_wrapping(state), source, resampling)
    for name, own in (("mean", model.mean), ("std", model.std)):
        if name in state and state[name].shape != own.shape:
            found = f"{state[name].numel()} values, not {own.numel()}"
            raise ModelError(f"{source}: its {name} has {found}: it was trained on other images.")
        own.copy_(state.get(name, own))


def _bare(model: ModelConfig) -> ModelConfig:
    """Return the model with weights of its own instead of loaded ones."""
    return model.model_copy(update={"pretrained": False, "weights": None})


def wrap_model(stack: MethodStack, model: nn.Module, config: TrialConfig, splits: Splits) -> nn.Module:
    """Let the methods wrap the model, with the first training images as their probe, on the model's device."""
    device = next(model.parameters()).device
    index = torch.arange(min(config.training.batch_size, len(splits.train.labels)))
    probe = Batch(splits.train.take(index).to(device), splits.train.labels[index].to(device))
    return stack.wrap(model, probe)


def load_final(
    folder: Path, *, device: torch.device, held: NodeData | None = None
) -> tuple[nn.Module, Splits, dict[str, Any]]:
    """Return a trial's finished model, its images and the content of ``final/meta.json``.

    The model is in eval mode with frozen parameters; its weights are those whose digest meta.json states. Global
    random numbers stay untouched.

    Args:   held: what this node holds of the images.
    Raises: CheckpointCorrupt if there is no final model or its bytes differ from the digest.
    """
    try:
        final = read_final(folder)
    except CheckpointCorrupt as error:
        raise CheckpointCorrupt(f"{error} {TRAIN_AGAIN}") from error
    if final is None:
        raise CheckpointCorrupt(f"{folder} has no final model. {TRAIN_AGAIN}")
    config = TrialConfig.model_validate(final.meta["config"])
    bare = config.model_copy(update={"model": _bare(config.model), "start_from": None})
    splits = find_splits(config, held)
    with Randomness(final.meta["seed"]).active():
        model = wrap_model(build_stack(config), new_model(bare, splits).to(device), config, splits)
    try:
        model.load_state_dict(final.weights)
    except RuntimeError as error:
        raise CheckpointCorrupt(f"{folder}: the final weights do not fit their configuration: {error}") from error
    return model.eval().requires_grad_(False), splits, final.meta
