"""A checkpoint from elsewhere as a finished trial: the files that an attack evaluation reads, and nothing trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from search_spaces.errors import ModelError
from trainables.checkpoint import Identity, weights_digest, write_final
from trainables.config import TrialConfig
from trainables.training import default_device
from trainables.trial import find_splits, new_model
from trainables.verdicts import clean_correct
from trainables.vit import PixelVit
from trainables.weights import fill, read_weights


@dataclass(frozen=True)
class Imported:
    """What the checkpoint turned out to be."""

    clean_acc: float
    """On the whole validation split."""
    weights_digest: str


def import_checkpoint(checkpoint: Path, config: TrialConfig, seed: int, folder: Path) -> Imported:
    """Write a checkpoint into a trial's folder as its final model.

    Args:
        checkpoint: a state dict of the timm model (.safetensors, or .pth of tensors), or the final weights of a trial,
            which bring their normalisation with them. Every weight is needed, the head too.
        config: of the trial; its model section says which model that is, its data section on which images.

    Raises: ModelError if the file cannot be read, or does not fill the model; DataError if there are no images.
    """
    splits = find_splits(config)
    bare = config.model.model_copy(update={"pretrained": False, "weights": None})
    model = new_model(config.model_copy(update={"model": bare}), splits)
    _load(model, checkpoint, config)
    device = default_device()
    everything = torch.arange(len(splits.validation.labels))
    model = model.to(device)
    correct = clean_correct(model, splits.validation, everything, config.training.batch_size, device)
    clean_acc = float(correct.double().mean())
    meta = {
        "config": config.plain(),
        "epoch": 0,
        "clean_acc": clean_acc,
        "history": [],
        "data_digest": splits.digest(),
        "num_classes": splits.num_classes,
        "channels": splits.channels,
        "mean": splits.mean,
        "std": splits.std,
    }
    state = model.state_dict()
    write_final(folder, state, meta, Identity(config.digest(), seed))
    return Imported(clean_acc, weights_digest(state))


def _load(model: PixelVit, checkpoint: Path, config: TrialConfig) -> None:
    own = _with_normalisation(model, checkpoint)
    if own is not None:
        model.load_state_dict(own)
        return
    left_out = fill(model.vit, read_weights(checkpoint), str(checkpoint), config.model.resampling)
    if left_out:
        raise ModelError(
            f"{' '.join(left_out)} An evaluation needs the model whole: check model.name, model.qkv_bias and the data "
            "set's number of classes."
        )


def _with_normalisation(model: PixelVit, checkpoint: Path) -> dict[str, Tensor] | None:
    """Return the final weights of a trial, whose mean and std are those it was trained with; None if it is not that."""
    try:
        state = dict(load_file(checkpoint))
    except (SafetensorError, OSError):
        return None
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return state if {name: tensor.shape for name, tensor in state.items()} == shapes else None
