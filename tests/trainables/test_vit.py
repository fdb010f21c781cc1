"""Building models and loading weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from search_spaces.errors import ModelError
from trainables.attention import record_attention
from trainables.config import ModelConfig
from trainables.methods.jasmin import Jasmin, JasminConfig
from trainables.vit import build_model, find_vit, model_facts

TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3}


def build(seed=0, num_classes=10, channels=1, **changes):
    torch.manual_seed(seed)
    config = ModelConfig.model_validate({**TINY, **changes})
    return build_model(config, num_classes=num_classes, channels=channels, mean=(0.3,), std=(0.4,))


@pytest.fixture
def images():
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def test_normalisation_is_inside_the_model(images):
    model = build().eval()
    assert torch.equal(model(images), model.vit((images - 0.3) / 0.4))
    assert {"mean", "std"} <= model.state_dict().keys()


def test_the_configuration_shapes_the_model():
    model = build(channels=3, num_classes=7, qkv_bias=False, drop_path=0.2)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    assert model.vit.blocks[0].attn.qkv.bias is None
    assert model.vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert (len(model.vit.blocks), model.vit.embed_dim) == (3, 48)


def test_facts_cost_no_weights_and_agree_with_the_model():
    config = ModelConfig.model_validate(TINY)
    facts = model_facts(config, 1, 10)
    with record_attention(model := build()) as attention:
        model(torch.rand(2, 1, 8, 8))
    assert (facts.tokens, facts.depth, facts.num_heads, facts.embed_dim) == (17, 3, 3, 48)
    assert attention[0].probabilities.shape == (2, facts.num_heads, facts.tokens, facts.tokens)
    assert len(attention) == facts.depth
    assert facts.exposes_attention


def test_register_tokens_count_as_tokens():
    registers = ModelConfig(name="vit_small_patch14_reg4_dinov2", img_size=28, patch_size=14)
    assert model_facts(registers, 3, 10).tokens == 2 * 2 + 1 + 4


def test_parallel_blocks_do_not_expose_their_attention():
    facts = model_facts(ModelConfig(name="vit_small_patch16_18x2_224", img_size=32, patch_size=16), 3, 10)
    assert not facts.exposes_attention
    assert list(Jasmin.check(JasminConfig(k=0), facts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_tinny_patch16_224"}, "Did you mean 'vit_tiny_patch16_224'"),
        ({"name": "resnet18"}, "resnet18 is a ResNet"),
        ({"name": "swin_tiny_patch4_window7_224"}, "SwinTransformer"),
        ({"embed_dim": 50, "num_heads": None}, "timm cannot build"),
    ],
)
def test_models_that_cannot_be_built_are_refused_by_name(changes, message):
    with pytest.raises(ModelError, match=message):
        build(**changes)
    with pytest.raises(ModelError, match=message):
        model_facts(ModelConfig.model_validate({**TINY, **changes}), 1, 10)


def test_statistics_must_fit_the_channels():
    with pytest.raises(ModelError, match="one value per channel"):
        build_model(ModelConfig.model_validate(TINY), num_classes=10, channels=3, mean=(0.5, 0.5), std=(0.5, 0.5))


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped"])
def test_local_weights_come_back_equal(form, images, tmp_path):
    source = build(seed=1)
    path = tmp_path / ("weights.pth" if form == "pth" else "weights.safetensors")
    if form == "pth":
        torch.save(source.vit.state_dict(), path)
    else:
        save_file(source.state_dict() if form == "wrapped" else source.vit.state_dict(), path)
    loaded = build(seed=2, weights=path)
    assert loaded.notes == ()
    assert torch.equal(loaded.eval()(images), source.eval()(images))


def test_a_head_for_other_classes_starts_anew_and_is_reported(tmp_path):
    save_file(build(seed=1).state_dict(), tmp_path / "w.safetensors")
    loaded = build(seed=2, num_classes=4, weights=tmp_path / "w.safetensors")
    assert "10 classes, not 4" in loaded.notes[0]
    assert torch.equal(loaded.vit.head.weight, build(seed=2, num_classes=4).vit.head.weight)
    assert torch.equal(loaded.vit.blocks[0].attn.qkv.weight, build(seed=1).vit.blocks[0].attn.qkv.weight)


def test_qkv_biases_stay_out_of_a_model_without_them(tmp_path):
    save_file(build(seed=1).state_dict(), tmp_path / "w.safetensors")
    assert "3 qkv biases left out" in build(weights=tmp_path / "w.safetensors", qkv_bias=False).notes[0]


def test_position_embeddings_are_resampled_to_another_grid(tmp_path):
    save_file(build(seed=1).state_dict(), tmp_path / "w.safetensors")
    larger = build(img_size=16, weights=tmp_path / "w.safetensors")
    assert larger.vit.pos_embed.shape[1] == 65
    assert larger(torch.rand(1, 1, 16, 16)).shape == (1, 10)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file(build().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"blocks\.2\.attn"):
        build(depth=2, weights=tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="missing, unexpected or differently shaped"):
        build(embed_dim=24, weights=tmp_path / "w.safetensors")


def test_unreadable_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no file"):
        build(weights=tmp_path / "absent.safetensors")
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ModelError, match=name):
            build(weights=tmp_path / name)


class Exploit:
    def __reduce__(self):
        return (print, ("executed",))


def test_weights_that_would_run_code_are_refused(tmp_path, capsys):
    torch.save({"weight": Exploit()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"evil\.pth"):
        build(weights=tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out


def test_timms_model_is_found_inside_another():
    model = build()
    assert find_vit(model) is find_vit(torch.nn.Sequential(torch.nn.Identity(), model)) is model.vit
    with pytest.raises(ModelError, match="Linear holds no timm VisionTransformer"):
        find_vit(torch.nn.Linear(2, 2))
