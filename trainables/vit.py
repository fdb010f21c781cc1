"""The model: a timm vision transformer that takes pixels in [0, 1], and its facts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from search_spaces.errors import ModelError
from trainables.attention import attention_layers
from trainables.config import ModelConfig
from trainables.method import ModelFacts


class PixelVit(nn.Module):
    """A vision transformer with its normalisation inside, so that attacks see pixels: (B, C, H, W) → logits (B, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Args: vit: takes normalised images; mean, std: per channel, on the [0, 1] pixel scale."""
        super().__init__()
        self.vit = vit
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.notes: tuple[str, ...] = ()
        """What the loading of weights left out, one sentence each."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.vit((images - self.mean) / self.std)
        return logits


def build_model(
    config: ModelConfig, *, num_classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> PixelVit:
    """Return the model with fresh weights (from torch's global random numbers) or with those that the config names.

    Args:
        num_classes: size of the head.
        channels: of the images.
        mean: per channel, on the [0, 1] pixel scale; one value serves all channels.
        std: like `mean`.

    Raises: ModelError if timm has no such model, it is no VisionTransformer, or weights do not fit.
    """
    if {len(mean), len(std)} - {1, channels}:
        raise ModelError(f"mean and std need one value per channel ({channels}), found {len(mean)} and {len(std)}.")
    _check_name(config.name)
    model = PixelVit(_create(config, channels, num_classes), mean, std)
    if config.pretrained:
        model.notes = _fill(model.vit, _pretrained_state(config.name, channels), f"pretrained {config.name}")
    elif config.weights:
        model.notes = _fill(model.vit, _read_weights(config.weights), str(config.weights))
    return model


def model_facts(config: ModelConfig, channels: int, num_classes: int) -> ModelFacts:
    """Return what methods may ask about the model, without allocating its weights; ModelError as in `build_model`."""
    _check_name(config.name)
    with torch.device("meta"):
        vit = _create(config, channels, num_classes)
    layers = attention_layers(vit)
    return ModelFacts(
        name=config.name,
        tokens=vit.patch_embed.num_patches + vit.num_prefix_tokens,
        depth=len(vit.blocks),
        num_heads=layers[0].num_heads if layers else config.num_heads or 0,
        embed_dim=vit.embed_dim,
        exposes_attention=len(layers) == len(vit.blocks),
        normalises_queries=any(not isinstance(layer.q_norm, nn.Identity) for layer in layers),
    )


def _check_name(name: str) -> None:
    """Refuse what timm does not know or what is not a VisionTransformer; costs no weights."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ModelError(f"model.name: timm has no model {name!r}.{hint}")
    with torch.device("meta"):
        kind = type(timm.create_model(name))
    if not issubclass(kind, VisionTransformer):
        raise ModelError(f"model.name: {name} is a {kind.__name__}, not a VisionTransformer (ViT, DeiT, DINOv2, …).")


def _create(config: ModelConfig, channels: int, num_classes: int) -> Any:
    shape = {key: getattr(config, key) for key in ("embed_dim", "depth", "num_heads")}
    try:
        return timm.create_model(
            config.name,
            img_size=config.img_size,
            patch_size=config.patch_size,
            qkv_bias=config.qkv_bias,
            drop_path_rate=config.drop_path,
            in_chans=channels,
            num_classes=num_classes,
            **{key: value for key, value in shape.items() if value is not None},
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(f"model: timm cannot build {config.name} so: {error}.") from error


def _pretrained_state(name: str, channels: int) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True, in_chans=channels).state_dict()
    except (RuntimeError, OSError) as error:  # no weights for this name; no network and nothing cached
        raise ModelError(
            f"model.pretrained: no pretrained weights of {name} can be had: {str(error).splitlines()[0]} "
            "Use model.weights with a local file."
        ) from error
    return state


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without unpickling anything but tensors; our own final weights lose their wrapping."""
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
    if any(key.startswith("vit.") for key in state):
        return {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    return dict(state)


def _fill(vit: Any, state: dict[str, Tensor], source: str) -> tuple[str, ...]:
    """Load a state dict into `vit`, patch and position embeddings resampled to its grid (timm's bicubic and pinv).

    A head with another number of classes, and the qkv biases of a model built without them, stay out; anything else
    that does not match is a ModelError.

    Returns: one sentence for each thing left out.
    """
    try:
        fitted = checkpoint_filter_fn(state, vit)
    except (RuntimeError, ValueError, AttributeError, AssertionError) as error:
        raise ModelError(f"{source}: these weights do not fit {type(vit).__name__}: {error}.") from error
    own = vit.state_dict()
    notes = []
    heads = vit.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        names = [key for key in fitted if key.startswith(f"{head}.")]
        if any(key in own and own[key].shape != fitted[key].shape for key in names):
            notes.append(f"{source}: {head} has {len(fitted[names[0]])} classes, not {vit.num_classes}; starts anew.")
            fitted |= {key: own[key] for key in names}
    biases = [key for key in fitted if key.endswith(".attn.qkv.bias") and key not in own]
    if biases:
        notes.append(f"{source}: {len(biases)} qkv biases left out, because model.qkv_bias is false.")
    fitted = {key: value for key, value in fitted.items() if key not in biases}
    wrong = sorted(fitted.keys() ^ own.keys()) or [key for key in own if own[key].shape != fitted[key].shape]
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ModelError(f"{source}: missing, unexpected or differently shaped: {shown}.")
    vit.load_state_dict(fitted)
    return tuple(notes)
