"""Learnt tokens at the end of a vision transformer's sequence, and the transformer without them.

They come after position embedding, patch dropout and `norm_pre`, immediately before the first block, and go after the
last one, so that norm, pooling and head see the sequence as it was. timm runs whatever stands in ``vit.blocks``: the
tokens are two more modules there, with no hook and nothing of timm's forward pass written again, and the blocks keep
their names in the state dict.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import copy

import torch
from torch import Tensor, nn

from trainables.vit import find_vit

START_DEVIATION = 0.01
"""Of the normal numbers that the tokens start from (published code)."""


class AppendTokens(nn.Module):
    """Puts learnt tokens, the same for all images, at the end of each sequence: (B, N, D) → (B, N + n, D)."""

    def __init__(self, tokens: Tensor) -> None:
        """Args: tokens: (1, n, D), where they start; n may be 0."""
        super().__init__()
        self.tokens = nn.Parameter(tokens)

    def forward(self, sequence: Tensor) -> Tensor:
        return torch.cat([sequence, self.tokens.expand(len(sequence), -1, -1)], dim=1)


class RemoveTokens(nn.Module):
    """Takes the last tokens off: (B, N + n, D) → (B, N, D), whatever N is after patch dropout."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, sequence: Tensor) -> Tensor:
        return sequence[:, : sequence.shape[1] - self.count]


class TokenBlocks(nn.Sequential):
    """A transformer's blocks between the appending and the removal of tokens; the blocks' own names stay."""

    def __init__(self, blocks: nn.Sequential, tokens: Tensor) -> None:
        ends = AppendTokens(tokens), RemoveTokens(tokens.shape[1])
        super().__init__(OrderedDict([("appended", ends[0]), *blocks.named_children(), ("removed", ends[1])]))

    def plain(self) -> nn.Sequential:
        """Return the blocks alone, the same modules."""
        inner = [(name, block) for name, block in self.named_children() if name not in ("appended", "removed")]
        return nn.Sequential(OrderedDict(inner)).train(self.training)


def append_tokens(model: nn.Module, count: int) -> nn.Parameter:
    """Append `count` tokens to the vision transformer in `model`, in place, and return them: (1, count, D).

    They start from torch's global random numbers. Raises: ModelError if there is no vision transformer.
    """
    vit = find_vit(model)
    start = START_DEVIATION * torch.randn(1, count, vit.embed_dim)
    vit.blocks = TokenBlocks(vit.blocks, start.to(next(vit.blocks.parameters())))
    tokens: nn.Parameter = vit.blocks.appended.tokens
    return tokens


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the model without the tokens that were appended to it; the model itself if there are none.

    It is a view: other objects where the tokens were, the same blocks and weights everywhere, so that it costs no
    memory and follows the training. Modes of shared modules and flags of parameters are the model's.
    """
    if isinstance(model, TokenBlocks):
        return model.plain()
    children = {name: backbone_of(child) for name, child in model.named_children()}
    if all(view is child for view, (_, child) in zip(children.values(), model.named_children(), strict=True)):
        return model
    view = copy(model)
    view._modules = {**model._modules, **children}
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(view, hooks, OrderedDict())  # a copy shares them: who counts the model's passes would count the view's
    return view
