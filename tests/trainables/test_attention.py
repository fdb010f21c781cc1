"""Recording what attention computes: the right tensors, of the right forward pass, and nothing left behind."""

from __future__ import annotations

import pytest
import timm
import torch

from search_spaces.errors import ModelError
from trainables.attention import attention_layers, record_attention
from trainables.config import ModelConfig
from trainables.vit import build_model

TINY = ModelConfig(img_size=8, patch_size=2, embed_dim=48, depth=3, num_heads=3)


def build():
    torch.manual_seed(0)
    return build_model(TINY, num_classes=10, channels=1, mean=(0.3,), std=(0.4,))


@pytest.fixture
def images():
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def left_behind(model):
    """Hooks on any module of the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_recorded_attention_is_the_softmax_of_scaled_scores(images):
    model = build().eval()
    with record_attention(model) as attention:
        model(images)
    vit = model.vit
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed((images - 0.3) / 0.4)))
    layer = vit.blocks[0].attn
    query, key, _ = layer.qkv(vit.blocks[0].norm1(tokens)).reshape(4, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(query @ key.transpose(-2, -1) / 4, dim=-1)
    assert torch.allclose(attention[0].probabilities, expected, atol=1e-6)


def test_recording_happens_before_attention_dropout(images):
    model = build().train()
    for layer in attention_layers(model):
        layer.attn_drop.p = 0.5
    with record_attention(model) as attention:
        model(images)
    assert all(torch.allclose(a.probabilities.sum(-1), torch.ones(4, 3, 17), atol=1e-5) for a in attention)


def test_only_the_first_forward_inside_is_recorded(images):
    model = build()
    model(images)
    with record_attention(model) as attention:
        model(images)
        first = [a.probabilities.clone() for a in attention]
        model(images * 0.5)
    model(images)
    assert len(attention) == 3
    assert all(torch.equal(a.probabilities, b) for a, b in zip(attention, first, strict=True))
    assert all(a.probabilities.requires_grad and a.queries.requires_grad for a in attention)


def test_recording_gives_the_fused_attention_back_even_after_an_error(images):
    model = build()
    for layer, fused in zip(attention_layers(model), (True, False, True), strict=True):
        layer.fused_attn = fused
    with pytest.raises(RuntimeError, match="stop"), record_attention(model):
        raise RuntimeError("stop")
    with record_attention(model):
        model(images)
        assert [layer.fused_attn for layer in attention_layers(model)] == [True, False, True]
    assert [layer.fused_attn for layer in attention_layers(model)] == [True, False, True]
    assert left_behind(model) == 0


def test_recording_changes_the_logits_by_rounding_only(images):
    model = build().eval()
    plain = model(images)
    with record_attention(model):
        recorded = model(images)
    assert torch.allclose(plain, recorded, atol=1e-5)


def test_a_model_without_readable_attention_cannot_be_recorded():
    with pytest.raises(ModelError, match="exposes"), record_attention(torch.nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("fused", [True, False])
def test_projections_are_read_beside_the_attention_as_it_is_and_give_its_probabilities(images, fused):
    model = build().eval()
    for layer in attention_layers(model):
        layer.fused_attn = fused
    plain = model(images)
    with record_attention(model, "projections") as attention:
        logits = model(images)
    with record_attention(model) as complete:
        model(images)
    assert torch.equal(plain, logits)
    assert left_behind(model) == 0
    assert [layer.fused_attn for layer in attention_layers(model)] == [fused] * 3
    for ours, whole in zip(attention, complete, strict=True):
        assert ours.probabilities is None
        scores = ours.scale * ours.queries @ ours.keys.mT
        assert torch.allclose(scores.softmax(-1), whole.probabilities, atol=1e-6)


def test_normalised_queries_are_recorded_after_their_norm(images):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=48, depth=2, num_heads=3, in_chans=1, qk_norm=True
    ).eval()
    with record_attention(model) as attention:
        model(images)
    for layer in attention:
        assert torch.allclose((layer.scale * layer.queries @ layer.keys.mT).softmax(-1), layer.probabilities, atol=1e-6)
        assert float(layer.queries.detach().mean(-1).abs().max()) < 1e-5  # a layer norm's output


def test_nothing_is_recorded_where_nothing_is_read(images):
    model = build()
    with record_attention(model, "nothing") as attention:
        assert left_behind(model) == 0
        model(images)
    assert attention == []
    with record_attention(torch.nn.Linear(2, 2), "nothing"):
        pass
