"""The model: a timm vision transformer that takes pixels in [0, 1], and its facts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from search_spaces.errors import ModelError
from trainables.attention import attention_layers
from trainables.config import ModelConfig
from trainables.hub import pretrained_state
from trainables.method import ModelFacts
from trainables.weights import fill, fit, read_weights


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
        state = pretrained_state(config.name, channels)
        model.notes = fill(model.vit, state, _source(config), config.resampling)
    elif config.weights:
        model.notes = fill(model.vit, read_weights(config.weights), _source(config), config.resampling)
    return model


def check_weights(config: ModelConfig, *, num_classes: int, channels: int) -> tuple[str, ...]:
    """Return what `build_model` would leave out of the weights that the configuration names, one sentence each.

    Pretrained weights are judged by the shapes that timm gives the model, so that nothing is fetched or read; a local
    file is read. ModelError if they do not fit.
    """
    _check_name(config.name)
    if config.pretrained:
        with torch.device("meta"):
            shapes = timm.create_model(config.name, in_chans=channels).state_dict()
        state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in shapes.items()}
    elif config.weights:
        state = read_weights(config.weights)
    else:
        return ()
    with torch.device("meta"):
        vit = _create(config, channels, num_classes)
    return fit(vit, state, _source(config), config.resampling)[1]


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


@lru_cache(maxsize=256)
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


def _source(config: ModelConfig) -> str:
    return f"pretrained {config.name}" if config.pretrained else str(config.weights)
