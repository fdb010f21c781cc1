"""Appended tokens on every kind of sequence that timm has: where they stand, and that nothing else changes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from search_spaces.errors import ModelError
from trainables.appended_tokens import TokenBlocks, append_tokens, backbone_of
from trainables.vit import PixelVit

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 4, "num_classes": 10}
KINDS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "distillation token": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "no position for the class": ("deit3_small_patch16_224", {}),
    "norm before the blocks": ("vit_base_patch16_clip_224", {}),
    "average": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "patch dropout": ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}),
}


@pytest.fixture(params=KINDS)
def model(request):
    name, more = KINDS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PixelVit(timm.create_model(name, **SIZES, **more), (0.3,), (0.4,)).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(model, images):
    with torch.no_grad():
        return model.vit.forward_features(images), model(images)


def test_no_tokens_are_the_backbone_bit_by_bit(model, images):
    before = outputs(model, images)
    append_tokens(model, 0)
    assert all(torch.equal(*pair) for pair in zip(outputs(model, images), before, strict=True))


def test_the_backbone_beside_the_tokens_is_timms_own_forward_bit_by_bit(model, images):
    before = outputs(model, images)
    append_tokens(model, 5)
    backbone = backbone_of(model)
    assert all(torch.equal(*pair) for pair in zip(outputs(backbone, images), before, strict=True))
    assert backbone_of(backbone) is backbone
    assert {id(p) for p in backbone.parameters()} < {id(p) for p in model.parameters()}


def test_tokens_stand_behind_the_sequence_of_the_blocks_alone(model, images):
    into, out = {}, {}
    for name, where in (("block", model.vit.blocks[0]), ("norm", model.vit.norm)):
        where.register_forward_pre_hook(lambda _module, inputs, name=name: into.update({name: inputs[0]}))
    model.vit.blocks[-1].register_forward_hook(lambda _module, _inputs, output: out.update(block=output))
    before = outputs(model, images)
    sequence = into["block"]
    tokens = append_tokens(model, 5)
    after = outputs(model, images)
    length = sequence.shape[1]
    assert torch.equal(into["block"], torch.cat([sequence, tokens.expand(3, -1, -1)], 1))
    assert out["block"].shape[1] == length + 5
    assert torch.equal(into["norm"], out["block"][:, :length])
    assert after[0].shape == before[0].shape
    assert not torch.equal(after[1], before[1])


def test_with_patch_dropout_in_training_the_tokens_are_what_is_taken_off(images):
    vit = timm.create_model("vit_tiny_patch16_224", **SIZES, patch_drop_rate=0.5).train()
    append_tokens(vit, 5)
    assert vit.forward_features(images).shape[1] == 1 + 2


def test_other_weights_keep_their_names_and_the_tokens_belong_to_the_state(model, images):
    names = set(model.state_dict())
    tokens = append_tokens(model, 5)
    assert set(model.state_dict()) - names == {"vit.blocks.appended.tokens"}
    assert names < set(model.state_dict())
    fresh = deepcopy(model)
    with torch.no_grad():
        tokens.add_(1.0)
    assert not torch.equal(fresh(images), model(images))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))


def test_gradients_reach_the_tokens_through_checkpointed_blocks(model, images):
    tokens = append_tokens(model, 5)
    model(images).square().sum().backward()
    expected, tokens.grad = tokens.grad.clone(), None
    model.vit.set_grad_checkpointing(True)
    model(images).square().sum().backward()
    torch.testing.assert_close(tokens.grad, expected)
    assert float(expected.abs().sum()) > 0


def test_who_watches_the_model_does_not_see_the_backbone(model, images):
    append_tokens(model, 5)
    seen = []
    model.register_forward_hook(lambda *_: seen.append("model"))
    backbone = backbone_of(model)
    backbone.register_forward_hook(lambda *_: seen.append("backbone"))
    model(images)
    backbone(images)
    assert seen == ["model", "backbone"]


def test_the_backbone_follows_weights_that_change(model, images):
    append_tokens(model, 5)
    backbone = backbone_of(model)
    before = backbone(images)
    with torch.no_grad():
        next(model.vit.blocks[1].parameters()).mul_(1.5)
    assert not torch.equal(backbone(images), before)


def test_a_model_that_is_no_vision_transformer_is_refused():
    with pytest.raises(ModelError, match=r"(?=.*Linear).*no timm VisionTransformer"):
        append_tokens(nn.Linear(2, 2), 3)
    assert isinstance(TokenBlocks(nn.Sequential(nn.Identity()), torch.zeros(1, 2, 3)).plain(), nn.Sequential)
