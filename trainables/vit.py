"""The model: a timm vision transformer that takes pixels in [0, 1], and its facts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers import HybridEmbed
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


def find_vit(model: nn.Module) -> VisionTransformer:
    """Return timm's model inside another; ModelError if there is none."""
    for module in model.modules():
        if isinstance(module, VisionTransformer):
            return module
    raise ModelError(f"{type(model).__name__} holds no timm VisionTransformer.")


def heads_of(vit: VisionTransformer) -> tuple[nn.Module, ...]:
    """Return the classifier; a distilled model has two."""
    found = vit.get_classifier()
    return tuple(found) if isinstance(found, tuple | list) else (found,)


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
    _own_model(config.name)
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
    _own_model(config.name)
    if config.pretrained:
        with torch.device("meta"):
            shapes = timm.create_model(config.name, in_chans=channels, weight_init="skip").state_dict()
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
    _own_model(config.name)
    with torch.device("meta"):
        vit = _create(config, channels, num_classes)
    layers = attention_layers(vit)
    return ModelFacts(
        name=config.name,
        tokens=vit.patch_embed.num_patches + vit.num_prefix_tokens,
        prefix_tokens=vit.num_prefix_tokens,
        register_tokens=vit.num_reg_tokens,
        has_class_token=vit.has_class_token,
        pooling=vit.global_pool,
        depth=len(vit.blocks),
        num_heads=next(module.num_heads for module in vit.blocks.modules() if hasattr(module, "num_heads")),
        embed_dim=vit.embed_dim,
        exposes_attention=len(layers) == len(vit.blocks),
        normalises_queries=any(not isinstance(layer.q_norm, nn.Identity) for layer in layers),
    )


@lru_cache(maxsize=256)
def _own_model(name: str) -> VisionTransformer:
    """Return the model as timm has it, without weights; refuse what timm does not know or is no VisionTransformer."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ModelError(f"model.name: timm has no model {name!r}.{hint}")
    with torch.device("meta"):
        model = timm.create_model(name)
    if not isinstance(model, VisionTransformer):
        kind = type(model).__name__
        raise ModelError(f"model.name: {name} is a {kind}, not a VisionTransformer (ViT, DeiT, DINOv2, …).")
    return model


def _create(config: ModelConfig, channels: int, num_classes: int) -> Any:
    own = _own_model(config.name)
    changes = {key: getattr(config, key) for key in ("embed_dim", "depth", "num_heads", "reg_tokens", "qk_norm")}
    if config.global_pool is not None:  # the norm stays before or after it, where the model's weights have one
        changes |= {"global_pool": config.global_pool, "fc_norm": not isinstance(own.fc_norm, nn.Identity)}
    if torch.get_default_device().type == "meta":
        changes["weight_init"] = "skip"  # there are no values, and computing them takes seconds for a large model
    try:
        return timm.create_model(
            config.name,
            img_size=config.img_size,
            patch_size=config.patch_size,
            qkv_bias=config.qkv_bias,
            drop_path_rate=config.drop_path,
            in_chans=channels,
            num_classes=num_classes,
            **{key: value for key, value in changes.items() if value is not None},
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).rstrip(".") or "an assertion failed"
        if isinstance(own.patch_embed, HybridEmbed):
            reason += (
                "; it cuts its patches out of the features of a convolutional network, whose positions patch_size "
                "counts (1 as a rule), and whose side it must divide"
            )
        raise ModelError(f"model: timm cannot build {config.name} so: {reason}.") from error


def _source(config: ModelConfig) -> str:
    return f"pretrained {config.name}" if config.pretrained else str(config.weights)
