"""Any VisionTransformer of timm, by name and with random weights, in every method: it trains, or is refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from search_spaces.errors import ModelError
from trainables.attention import attention_layers
from trainables.config import ModelConfig
from trainables.learner import Learner
from trainables.registry import find, names
from trainables.trial import find_splits
from trainables.vit import build_model, model_facts

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
MODELS = {
    "class token": {"name": "vit_tiny_patch16_224"},
    "mean of the patches": {"name": "vit_base_patch16_siglip_gap_224"},
    "attention pool": {"name": "vit_base_patch16_siglip_224"},
    "distillation token": {"name": "deit_tiny_distilled_patch16_224"},
    "LayerScale, positions of patches alone": {"name": "deit3_small_patch16_224"},
    "registers": {"name": "vit_small_patch14_reg4_dinov2"},
    "registers, no class token": {"name": "vit_so150m_patch16_reg4_gap_256"},
    "a norm before the blocks": {"name": "vit_base_patch16_clip_quickgelu_224"},
    "rows and columns of patches apart": {"name": "test_vit2"},
    "a norm in the patch embedding": {"name": "aimv2_large_patch14_224"},
    "mean of the patches beside a class token": {"name": "beit3_base_patch16_224"},
    "norms behind": {"name": "vit_base_patch16_rpn_224"},
    "two branches beside each other": {"name": "vit_small_patch16_18x2_224"},
    "attention beside the MLP": {"name": "vit_base_patch16_xp_224"},
    "differences of attention": {"name": "vit_dwee_patch16_reg1_gap_256"},
    "patches of features": {"name": "vit_tiny_r_s16_p8_224", "img_size": 32, "patch_size": 1},
    "normalised queries": {"qk_norm": True},
    "registers added": {"reg_tokens": 3},
    "avg": {"global_pool": "avg"},
    "avgmax": {"global_pool": "avgmax"},
    "max": {"global_pool": "max"},
    "map": {"global_pool": "map"},
    "prr": {"global_pool": "prr"},
}
CHEAP = {"steps": 1, "attack_steps": 1}
"""Fields that make a method dear."""


def settings(key):
    config = find("methods", key).Config
    values = {field: value for field, value in CHEAP.items() if field in config.model_fields}
    return values | ({"k": 0} if key == "jasmin" else {})


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.parametrize("key", names("methods"))
def test_what_a_method_lets_through_trains_and_what_it_refuses_is_named(key, what, tiny_trial):
    config = tiny_trial(
        {key: settings(key)},
        model={**TINY, **MODELS[what]},
        data={"train_images": 20, "validation_images": 10, "test_images": 10},
        training={"epochs": 1, "batch_size": 20},
    )
    facts = model_facts(config.model, 1, 10)
    reasons = list(find("methods", key).check(config.methods[key], facts))
    if reasons:
        assert all(config.model.name in reason for _, reason in reasons)
        assert all(field in config.methods[key].plain() for field, _ in reasons)
        return
    torch.manual_seed(0)
    splits = find_splits(config)
    learner = Learner(config, 0, splits, torch.device("cpu"))
    metrics = learner.train_epoch(0)
    assert all(math.isfinite(value) for value in metrics.values())
    logits = learner.kept_model.eval()(splits.test.take(torch.arange(3)))
    assert logits.shape == (3, 10)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("what", MODELS)
def test_facts_agree_with_the_model(what):
    config = ModelConfig.model_validate({**TINY, **MODELS[what]})
    facts = model_facts(config, 1, 10)
    model = build_model(config, num_classes=10, channels=1, mean=(0.5,), std=(0.5,))
    lengths = []
    model.vit.blocks[0].register_forward_hook(lambda _block, inputs, _tokens: lengths.append(inputs[0].shape[1]))
    model(torch.rand(2, 1, config.img_size, config.img_size))
    assert lengths == [facts.tokens]
    stride = 4 if what == "patches of features" else config.patch_size
    assert facts.tokens - facts.prefix_tokens == (config.img_size // stride) ** 2
    given = [name for name, _ in model.vit.named_parameters() if name in ("cls_token", "dist_token")]
    assert facts.has_class_token == ("cls_token" in given)
    assert facts.prefix_tokens - facts.register_tokens == len(given)
    assert facts.exposes_attention == (len(attention_layers(model)) == 2)
    assert facts.pooling == model.vit.global_pool
    assert (facts.num_heads, facts.embed_dim, facts.depth) == (2, 24, 2)
    assert model_facts(config.model_copy(update={"num_heads": None, "embed_dim": None}), 1, 10).num_heads > 1


@pytest.mark.parametrize("pooling", ["avg", "avgmax", "max", "token"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit3_base_patch16_224"])
def test_weights_fit_whatever_the_pooling(name, pooling):
    """The last norm stays where it is; timm alone would move it."""
    own, other = (
        build_model(
            ModelConfig.model_validate({**TINY, "name": name, "global_pool": choice}),
            num_classes=10,
            channels=1,
            mean=(0.5,),
            std=(0.5,),
        )
        for choice in (None, pooling)
    )
    other.load_state_dict(own.state_dict())
    same = own.vit.global_pool == pooling
    images = torch.rand(2, 1, 8, 8)
    assert torch.allclose(own.eval()(images), other.eval()(images), atol=1e-7) == same


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "eva02_tiny_patch14_224"}, "eva02_tiny_patch14_224 is a Eva, not a VisionTransformer"),
        ({"name": "beit_base_patch16_224"}, "is a Beit, not"),
        ({"name": "vit_relpos_small_patch16_224"}, "is a VisionTransformerRelPos, not"),
        ({"name": "samvit_base_patch16"}, "is a VisionTransformerSAM, not"),
        ({"name": "naflexvit_base_patch16_gap"}, "is a NaFlexVit, not"),
        ({"name": "cait_xxs24_224"}, "is a Cait, not"),
        ({"name": "vit_tiny_r_s16_p8_224"}, "timm cannot build vit_tiny_r_s16_p8_224 so: .* features of a convolut"),
        ({"name": "deit_tiny_distilled_patch16_224", "global_pool": "avg"}, "cannot build deit_tiny_distilled.* token"),
        ({"name": "vit_base_patch16_siglip_gap_224", "global_pool": "token"}, "needs the class token"),
    ],
)
def test_what_no_method_can_handle_is_refused_before_any_weight_exists(changes, reason):
    with pytest.raises(ModelError, match=reason):
        model_facts(ModelConfig.model_validate({**TINY, **changes}), 1, 10)
