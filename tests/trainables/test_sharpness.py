"""Layers and their sharpness, against the definition."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.errors import ModelError
from trainables.method import Batch
from trainables.sharpness import block_layers, head_layers, linear_layers, moved, sharpest, sharpness, train_only

OF_A_BLOCK = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def vit(name="vit_tiny_patch16_224", **fields):
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "in_chans": 1}
    return timm.create_model(name, num_classes=4, **shape, **fields).double().eval()


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(1)
    return [Batch(torch.rand(n, 1, 8, 8).double(), torch.arange(n) % 4) for n in (6, 3)]


def measure(model, batches, layers=None, **how):
    return sharpness(
        model, layers or linear_layers(model), batches, **{"radius": 0.3, "relative": False, "exact": True, **how}
    )


def mean_loss(model, batches, changes=None):
    """The definition: one pass over all images, with some weights replaced."""
    images, targets = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])
    return F.cross_entropy(torch.func.functional_call(model, changes or {}, (images,)), targets)


def in_direction(model, layer, directions, reach):
    """The layer's weights after a step of that length, by name."""
    norm = torch.cat([d.flatten() for d in directions]).norm()
    names = [f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters()]
    return {n: model.get_parameter(n).detach() + reach * d / norm for n, d in zip(names, directions, strict=True)}


def test_layers_are_the_linear_maps_below_the_head():
    model = nn.Sequential(OrderedDict(vit=vit()))
    assert list(linear_layers(model)) == ["patch_embed.proj", *(f"blocks.{i}.{n}" for i in (0, 1) for n in OF_A_BLOCK)]
    assert all(len(parameters) == 2 for parameters in linear_layers(model).values())
    assert list(head_layers(model)) == ["head"]
    blocks = block_layers(model)
    assert list(blocks) == ["blocks.0", "blocks.1"]
    expected = [p for name, ps in linear_layers(model).items() if name.startswith("blocks.1.") for p in ps]
    assert [id(p) for p in blocks["blocks.1"]] == [id(p) for p in expected]


def test_the_tenth_block_is_not_the_first():
    torch.manual_seed(0)
    deep = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=6, depth=11, num_heads=1)
    assert {len(parameters) for parameters in block_layers(deep).values()} == {8}


def test_a_distilled_model_has_two_heads_and_none_of_them_is_a_layer():
    model = vit("deit_tiny_distilled_patch16_224")
    assert list(head_layers(model)) == ["head", "head_dist"]
    assert not {"head", "head_dist"} & linear_layers(model).keys()


def test_layers_are_looked_for_in_vision_transformers_alone():
    with pytest.raises(ModelError, match="Linear holds no timm VisionTransformer"):
        linear_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("relative", [False, True])
def test_an_exact_score_is_the_rise_of_the_loss_along_the_layers_gradient(batches, relative):
    model = vit()
    scores = measure(model, batches, relative=relative)
    for layer in ("patch_embed.proj", "blocks.1.mlp.fc1"):
        parameters = list(model.get_submodule(layer).parameters())
        gradients = torch.autograd.grad(mean_loss(model, batches), parameters)
        reach = 0.3 * (torch.cat([p.flatten() for p in parameters]).norm() if relative else 1)
        rise = mean_loss(model, batches, in_direction(model, layer, gradients, reach)) - mean_loss(model, batches)
        assert scores[layer] == pytest.approx(rise.item(), rel=1e-9)


def test_no_random_direction_of_that_length_raises_the_loss_as_much(batches):
    model, generator = vit(), torch.Generator().manual_seed(0)
    for layer, score in measure(model, batches, radius=0.05).items():
        for _ in range(5):
            noise = [
                torch.randn(p.shape, generator=generator, dtype=p.dtype)
                for p in model.get_submodule(layer).parameters()
            ]
            there = mean_loss(model, batches, in_direction(model, layer, noise, 0.05))
            assert (there - mean_loss(model, batches)).item() < score, layer


def test_both_scores_are_the_same_slope_in_a_ball_that_vanishes(batches):
    model = vit()
    exact, first = (measure(model, batches, radius=1e-6, exact=exact) for exact in (True, False))
    assert exact == pytest.approx(first, rel=1e-4)
    assert measure(model, batches, radius=1, exact=False)["blocks.0.attn.qkv"] == pytest.approx(
        1e6 * first["blocks.0.attn.qkv"]
    )


def test_first_order_measures_nothing_but_one_backward_pass(batches):
    model, passes = vit(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    measure(model, batches, exact=False)
    assert len(passes) == len(batches)
    measure(model, batches)
    assert len(passes) == len(batches) * (1 + 1 + len(linear_layers(model)))


@pytest.mark.parametrize("exact", [False, True])
def test_a_layer_without_a_gradient_scores_exactly_zero(batches, exact):
    model = vit()
    nn.init.zeros_(model.head.weight)
    assert set(measure(model, batches, exact=exact).values()) == {0.0}
    assert measure(model, batches, head_layers(model), exact=exact)["head"] > 0


def test_how_images_are_cut_into_batches_changes_nothing(batches):
    model = vit()
    whole = [Batch(torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches]))]
    assert measure(model, batches) == pytest.approx(measure(model, whole), rel=1e-9)


def test_scoring_leaves_weights_and_gradients_as_they_were(batches):
    model = vit().float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure(model, [Batch(b.images.float(), b.targets) for b in batches])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.01, "c"), (0.2, "c"), (0.21, "ce"), (0.6, "bce"), (0.8, "abce"), (1, "abcde")]
)
def test_the_sharpest_are_chosen_rounded_up_and_the_earlier_of_equals(fraction, expected):
    scores = {"a": 0.5, "b": 2.0, "c": 3.0, "d": 0.5, "e": 3.0}
    assert sharpest(scores, fraction) == list(expected)


def test_a_fraction_that_is_a_whole_number_of_layers_is_not_rounded_up():
    assert 0.07 * 100 > 7
    assert len(sharpest(dict.fromkeys(range(100), 1.0), 0.07)) == 7


def test_weights_move_together_and_come_back_bit_by_bit_whatever_happens():
    torch.manual_seed(0)
    weights, directions = ([torch.randn(50), torch.randn(3, 4)] for _ in range(2))
    before = [w.clone() for w in weights]

    def leave_it_moved():
        with moved(weights, directions, 0.7):
            steps = torch.cat([(w - b).flatten() for w, b in zip(weights, before, strict=True)])
            along = torch.cat([d.flatten() for d in directions])
            assert float(steps.norm()) == pytest.approx(0.7, rel=1e-5)
            assert float(F.cosine_similarity(steps, along, dim=0)) == pytest.approx(1, rel=1e-5)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        leave_it_moved()
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_only_what_is_named_is_trained_and_no_gradient_stays_elsewhere():
    model = vit()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    train_only(model, model.blocks[1].mlp.fc1.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == name.startswith("blocks.1.mlp.fc1."), name
