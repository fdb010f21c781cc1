"""Weights from elsewhere: cut to other patches by definition, refused if they do not fit, told what is left out."""

from __future__ import annotations

import json
import urllib.error
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file

from search_spaces.errors import ModelError
from trainables import hub
from trainables.config import ModelConfig
from trainables.training import Training
from trainables.tune import TrainingJob, TrialTrainable, write_token
from trainables.vit import build_model, check_weights
from trainables.weights import sum_blocks

SMALL = {"name": "vit_tiny_patch16_224", "embed_dim": 24, "depth": 2, "num_heads": 2}
LARGE_PATCHES = {**SMALL, "img_size": 32, "patch_size": 8}
SMALL_PATCHES = {**SMALL, "img_size": 8, "patch_size": 2}
PRETRAINED = {"name": "test_vit", "img_size": 16, "patch_size": 4, "pretrained": True}
"""timm's smallest: width 64, 6 blocks, patches of 16 pixels."""


def build(seed=0, channels=3, num_classes=5, **fields):
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(fields)
    return build_model(config, num_classes=num_classes, channels=channels, mean=(0.5,), std=(0.5,))


@pytest.fixture
def weights(tmp_path):
    """Weights of a model with patches of 8×8 pixels in a 4×4 grid, its position embeddings far from zero."""
    source = build(seed=1, **LARGE_PATCHES).vit
    torch.nn.init.normal_(source.pos_embed)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", source


def pretend_pretrained(folder, monkeypatch, name="test_vit"):
    """Put weights that timm would load as pretrained where the hub's cache has them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    torch.manual_seed(3)
    model = timm.create_model(name)
    repository = folder / f"models--{hub.address(name).replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    file = repository / "snapshots" / ("0" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(model.state_dict(), file)
    return file, model


# Cutting to smaller patches


@pytest.mark.parametrize(("old", "new"), [(16, 4), (8, 2), (6, 3), (4, 4), (4, 1)])
def test_summed_blocks_see_a_small_image_as_the_kernel_sees_it_with_every_pixel_repeated(old, new):
    draw = torch.Generator().manual_seed(0)
    kernel = torch.randn(7, 3, old, old, generator=draw)
    image = torch.randn(2, 3, 4 * new, 4 * new, generator=draw)
    repeated = F.interpolate(image, scale_factor=old // new, mode="nearest")
    expected = F.conv2d(repeated, kernel, stride=old)
    assert torch.allclose(F.conv2d(image, sum_blocks(kernel, new), stride=new), expected, atol=1e-4)


def test_a_model_with_summed_blocks_equals_the_original_on_the_enlarged_image(weights):
    path, source = weights
    small = build(weights=path, resampling="block_sum", **SMALL_PATCHES).vit.eval()
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(image, scale_factor=4, mode="nearest")
    assert torch.allclose(small(image), source.eval()(enlarged), atol=1e-5)  # the grid stays 4×4


def test_block_sum_takes_positions_bilinear_and_timm_by_its_own_resampling(weights):
    path, source = weights
    grid = source.pos_embed[:, 1:].detach().unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    coarse = {**SMALL, "img_size": 8, "patch_size": 4}
    published = build(weights=path, resampling="block_sum", **coarse).vit.pos_embed
    # halving a grid bilinearly, without antialiasing, averages squares of 2×2
    assert torch.allclose(published[0, 1:], F.avg_pool2d(grid, 2).flatten(2)[0].T, atol=1e-6)
    assert torch.equal(published[0, 0], source.pos_embed[0, 0])
    assert not torch.allclose(build(weights=path, **coarse).vit.pos_embed, published, atol=1e-3)


def test_timm_takes_the_kernel_that_best_answers_to_shrunk_images_as_the_old_one_to_whole_images(weights):
    path, source = weights
    old, new = source.patch_embed.proj.weight, build(weights=path, **SMALL_PATCHES).vit.patch_embed.proj.weight
    shape = (1, 3, 8, 8)

    def shrink(image):
        return F.interpolate(image, size=(2, 2), mode="bicubic", antialias=True)

    # least squares over all images: no error is left on the images that shrinking does not lose, those of its transpose
    direction = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    image = torch.autograd.functional.vjp(shrink, torch.zeros(shape), direction)[1]
    assert torch.allclose((new * shrink(image)).sum((1, 2, 3)), (old * image).sum((1, 2, 3)), atol=1e-5)


def test_block_sum_refuses_patches_that_do_not_divide(weights):
    config = {**SMALL, "img_size": 9, "patch_size": 3, "weights": weights[0], "resampling": "block_sum"}
    with pytest.raises(ModelError, match=r"model\.resampling: .* found 3 and 8\. .*resampling: timm"):
        build(**config)
    with pytest.raises(ModelError, match="found 3 and 8"):
        check_weights(ModelConfig.model_validate(config), num_classes=5, channels=3)
    assert build(**{**config, "resampling": "timm"}).notes == ()


def test_block_sum_refuses_weights_without_a_patch_kernel(tmp_path):
    save_file({"visual.conv1.weight": torch.zeros(24, 3, 8, 8)}, tmp_path / "clip.safetensors")
    with pytest.raises(ModelError, match=r"patch_embed\.proj\.weight of four dimensions; found 0"):
        build(weights=tmp_path / "clip.safetensors", resampling="block_sum", **SMALL_PATCHES)


# What is left out


def test_a_head_that_the_weights_lack_starts_anew_and_is_reported(weights, tmp_path):
    state = {key: value for key, value in weights[1].state_dict().items() if not key.startswith("head.")}
    save_file(state, tmp_path / "features.safetensors")
    loaded = build(seed=4, weights=tmp_path / "features.safetensors", **LARGE_PATCHES)
    assert [note.split(": ")[1] for note in loaded.notes] == ["head is not among the weights; starts anew."]
    assert torch.equal(loaded.vit.head.weight, build(seed=4, **LARGE_PATCHES).vit.head.weight)
    assert torch.equal(loaded.vit.norm.weight, weights[1].norm.weight)


def test_half_a_head_is_refused(weights, tmp_path):
    state = {key: value for key, value in weights[1].state_dict().items() if key != "head.bias"}
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match=r"missing, unexpected or differently shaped: head\.bias"):
        build(weights=tmp_path / "half.safetensors", **LARGE_PATCHES)


@pytest.mark.parametrize("resampling", ["timm", "block_sum"])
def test_a_check_says_what_building_says_and_keeps_random_numbers_as_they_are(weights, resampling):
    fields = {**SMALL_PATCHES, "qkv_bias": False, "weights": weights[0], "resampling": resampling}
    torch.manual_seed(7)
    notes = check_weights(ModelConfig.model_validate(fields), num_classes=2, channels=3)
    drawn = torch.rand(1)
    assert len(notes) == 2
    assert notes == build(num_classes=2, **fields).notes
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(7)))
    with pytest.raises(ModelError, match=r"differently shaped: patch_embed\.proj\.weight"):
        check_weights(ModelConfig.model_validate(fields), num_classes=2, channels=1)


def test_weights_that_are_not_named_need_no_check():
    assert check_weights(ModelConfig(), num_classes=5, channels=3) == ()


def test_what_was_left_out_stands_in_the_trials_log(tiny_trial, tmp_path):
    saved = build(channels=1, num_classes=3, **{**tiny_trial().model.plain(), "name": SMALL["name"]}).vit
    save_file(saved.state_dict(), tmp_path / "w.safetensors")
    trial = tiny_trial(model={"weights": str(tmp_path / "w.safetensors"), "qkv_bias": False}, training={"epochs": 1})
    assert len(Training(trial, 0, tmp_path / "here").notes) == 2
    write_token(tmp_path / "there", "t")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actor = TrialTrainable(config=TrainingJob(0, trial.plain(), 0, str(tmp_path / "there"), "t").tune_config())
    assert json.loads(actor.step()["report"])["status"] == "trained"
    log = (tmp_path / "there" / "log.txt").read_text()
    assert "head has 3 classes, not 10; starts anew." in log
    assert "3 qkv biases left out, because model.qkv_bias is false." in log


# timm's pretrained weights


def test_cached_weights_are_loaded_without_asking_anybody(tmp_path, monkeypatch):
    file, model = pretend_pretrained(tmp_path, monkeypatch)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.to_fetch("test_vit") == ""
    assert hub.fetch("test_vit") == file
    loaded = build(**PRETRAINED, resampling="block_sum")
    assert loaded.notes == ("pretrained test_vit: head has 1000 classes, not 5; starts anew.",)
    assert torch.equal(loaded.vit.patch_embed.proj.weight, sum_blocks(model.patch_embed.proj.weight, 4))
    assert torch.equal(loaded.vit.blocks[5].attn.qkv.weight, model.blocks[5].attn.qkv.weight)


def test_pretrained_colours_are_summed_for_grey_images(tmp_path, monkeypatch):
    _, model = pretend_pretrained(tmp_path, monkeypatch)
    loaded = build(channels=1, **PRETRAINED, resampling="block_sum").vit.patch_embed.proj.weight
    summed = sum_blocks(model.patch_embed.proj.weight.sum(1, keepdim=True), 4)
    assert torch.allclose(loaded, summed, atol=1e-6)


def test_pretrained_weights_are_checked_by_their_shapes_before_they_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig.model_validate({**PRETRAINED, "qkv_bias": False})
    first, second = check_weights(config, num_classes=10, channels=1)
    assert "1000 classes, not 10" in first
    assert "qkv biases left out" in second
    with pytest.raises(ModelError, match=r"pretrained test_vit: .*blocks\.3"):
        check_weights(config.model_copy(update={"depth": 3}), num_classes=10, channels=1)
    odd = {"patch_size": 3, "img_size": 9, "resampling": "block_sum"}
    with pytest.raises(ModelError, match="found 3 and 16"):
        check_weights(config.model_copy(update=odd), num_classes=10, channels=1)


def test_weights_for_features_only_get_a_head_of_their_own():
    config = ModelConfig(name="vit_small_patch14_dinov2", img_size=28, patch_size=7, pretrained=True)
    assert check_weights(config, num_classes=10, channels=3) == (
        "pretrained vit_small_patch14_dinov2: head is not among the weights; starts anew.",
    )


def test_a_model_without_pretrained_weights_is_told_so(tmp_path, monkeypatch):
    assert not hub.has_pretrained("vit_small_patch16_18x2_224")
    with pytest.raises(ModelError, match=r"no pretrained weights of vit_small_patch16_18x2_224.*model\.weights"):
        hub.fetch("vit_small_patch16_18x2_224")


def test_weights_that_are_not_cached_are_refused_at_once_when_the_hub_is_forbidden(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert f"to be fetched from {hub.address('test_vit')}" in hub.to_fetch("test_vit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        build(**PRETRAINED)
    for words in (hub.address("test_vit"), str(tmp_path), "HF_HUB_OFFLINE", "run_sweep.py prefetch", "model.weights"):
        assert words in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelError) as caught:
        build(**PRETRAINED)
    for words in ("http://127.0.0.1:1 cannot be reached", "refused", "run_sweep.py prefetch", "model.weights"):
        assert words in str(caught.value)


def test_a_damaged_file_in_the_cache_is_named(tmp_path, monkeypatch):
    file, _ = pretend_pretrained(tmp_path, monkeypatch)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read as weights of test_vit.*Delete it"):
        build(**PRETRAINED)


def test_weights_outside_the_hub_are_looked_for_in_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "vit_huge_patch14_gap_224.in1k_ijepa"
    assert hub.address(name).startswith("https://")
    assert hub.cached_file(name) is None
    file = tmp_path / "hub" / "checkpoints" / "IN1K-vit.h.14-300e.pth.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert hub.cached_file(name) == file
