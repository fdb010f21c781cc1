"""Weights from elsewhere: read without running code, cut to the model's patches and grid, loaded whole or refused.

Two ways to cut: timm's, and the one that SpecFormer published (Hu et al. 2024, arXiv:2402.03317; code:
microsoft/robustlearn, specformer/model_for_cifar/vit.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from search_spaces.errors import ModelError

Resampling = Literal["timm", "block_sum"]
PATCHES = "patch_embed.proj.weight"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a timm model as `read_state`; our own final weights lose their wrapping."""
    return without_wrapping(read_state(path))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without unpickling anything but tensors.

    Raises: ModelError if there is no such file or it holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"model.weights: no file {path}.") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"model.weights: {path} cannot be read as weights: {error}.") from error
    except Exception as error:  # pickle.UnpicklingError and whatever torch's restricted unpickler raises
        raise ModelError(f"model.weights: {path} is not a plain state dict of tensors: {error}.") from error
    return dict(state)


def without_wrapping(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the timm model alone, if it is that of a `PixelVit`; any other as it is."""
    inner = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    return inner or dict(state)


def fill(vit: Any, state: dict[str, Tensor], source: str, resampling: Resampling) -> tuple[str, ...]:
    """Load a state dict into a timm model.

    Args:    source: what the weights are called in notes and errors.
    Returns: one sentence for each thing left out.
    Raises:  ModelError as `fit`.
    """
    fitted, notes = fit(vit, state, source, resampling)
    vit.load_state_dict(fitted)
    return notes


def fit(
    vit: Any, state: dict[str, Tensor], source: str, resampling: Resampling
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Cut a state dict to a timm model, of which only the shapes are looked at: it may lie on the meta device.

    A head that is missing or has another number of classes, and the qkv biases of a model built without them, stay
    out; anything else that does not match is a ModelError.

    Returns: (a state dict that loads, its head the model's own where it starts anew; one sentence for each thing left
        out).
    """
    fitted = _resample(vit, state, source, resampling)
    own = vit.state_dict()
    notes = []
    heads = vit.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        reason = _unusable_head(head, fitted, own)
        if reason:
            notes.append(f"{source}: {head} {reason}; starts anew.")
            fitted |= {key: value for key, value in own.items() if key.startswith(f"{head}.")}
    biases = [key for key in fitted if key.endswith(".attn.qkv.bias") and key not in own]
    if biases:
        notes.append(f"{source}: {len(biases)} qkv biases left out, because model.qkv_bias is false.")
    fitted = {key: value for key, value in fitted.items() if key not in biases}
    wrong = sorted(fitted.keys() ^ own.keys()) or [key for key in own if own[key].shape != fitted[key].shape]
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ModelError(f"{source}: missing, unexpected or differently shaped: {shown}.")
    return fitted, tuple(notes)


def sum_blocks(kernel: Tensor, patch_size: int) -> Tensor:
    """Cut a patch kernel (D, C, P, P) to (D, C, p, p): each (P/p)×(P/p) block becomes its sum; p must divide P.

    On an image it gives what the old kernel gives on that image with every pixel repeated (P/p)×(P/p) times.
    """
    side = kernel.shape[-1] // patch_size
    blocks = kernel.unflatten(-1, (patch_size, side)).unflatten(-3, (patch_size, side))  # (D, C, p, P/p, p, P/p)
    summed: Tensor = blocks.sum((-3, -1))
    return summed


def _resample(vit: Any, state: dict[str, Tensor], source: str, resampling: Resampling) -> dict[str, Tensor]:
    """Bring patch kernel and position embeddings to the model's patches and grid.

    timm: the kernel by the pseudo-inverse of bicubic resizing, positions bicubic with antialiasing.
    block_sum: the kernel by `sum_blocks`, positions bilinear without antialiasing.
    """
    try:
        if resampling == "timm":
            return dict(checkpoint_filter_fn(state, vit))
        return dict(
            checkpoint_filter_fn(_with_summed_blocks(vit, state), vit, interpolation="bilinear", antialias=False)
        )
    except (RuntimeError, ValueError, AttributeError, AssertionError) as error:
        raise ModelError(f"{source}: these weights do not fit {type(vit).__name__}: {error}.") from error


def _with_summed_blocks(vit: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [key for key in state if key.endswith(PATCHES)]
    if len(names) != 1 or state[names[0]].ndim != 4:
        raise ModelError(
            f"model.resampling: block_sum needs weights with one {PATCHES} of four dimensions; found {len(names)}. "
            "Choose resampling: timm."
        )
    found, wanted = state[names[0]].shape[-1], vit.patch_embed.proj.weight.shape[-1]
    if found % wanted:
        raise ModelError(
            f"model.resampling: block_sum needs a patch_size that divides the patches of the weights; found {wanted} "
            f"and {found}. Choose another patch_size, or resampling: timm."
        )
    return state | {names[0]: sum_blocks(state[names[0]], wanted)}


def _unusable_head(head: str, fitted: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Say why a head cannot be taken over; nothing if it can."""
    names = [key for key in own if key.startswith(f"{head}.")]
    missing = [key for key in names if key not in fitted]
    if names and len(missing) == len(names):
        return "is not among the weights"
    if not missing and any(own[key].shape != fitted[key].shape for key in names):
        return f"has {len(fitted[names[0]])} classes, not {len(own[names[0]])}"
    return ""
