"""JaSMin, the method: what it sums, which path it takes, what it refuses."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.autograd.graph import saved_tensors_hooks

from trainables.attention import Attended, record_attention
from trainables.config import ModelConfig
from trainables.method import ModelFacts
from trainables.methods.jasmin import Jasmin, JasminConfig
from trainables.softmax_jacobian import from_probabilities
from trainables.vit import build_model

FACTS = ModelFacts("vit", tokens=17, depth=3, num_heads=3, embed_dim=48, exposes_attention=True)
PATHS = ("auto", "probabilities", "recompute")


def attended(tokens):
    queries, keys = torch.randn(
        2, 2, 3, tokens, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens)
    )
    return Attended(queries, keys, 0.5, (0.5 * queries @ keys.mT).softmax(-1))


def test_the_penalty_sums_layers_and_heads_and_averages_the_batch():
    attention = [attended(tokens=9), attended(tokens=7)]
    method = Jasmin(JasminConfig(k=3, weight=0.5, aggregation="mean"), 1)
    heads = [from_probabilities(layer.probabilities, 3, "mean") for layer in attention]
    expected = 0.5 * sum(heads).sum(1).mean()
    assert float(method.penalty(torch.nn.Identity(), attention)["jasmin"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_both_paths_give_the_same_penalty(aggregation):
    attention = [attended(tokens=9), attended(tokens=7)]
    bare = [layer._replace(probabilities=None) for layer in attention]
    method = Jasmin(JasminConfig(k=3, aggregation=aggregation), 1)
    values = [float(method.penalty(torch.nn.Identity(), layers)["jasmin"]) for layers in (attention, bare)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("aggregation", ["max", "mean"])
@pytest.mark.parametrize(("img_size", "patch_size", "tokens"), [(32, 4, 65), (224, 16, 197)])
def test_a_whole_step_on_the_recomputing_path_saves_no_attention_map(img_size, patch_size, tokens, aggregation):
    shape = ModelConfig(img_size=img_size, patch_size=patch_size, embed_dim=24, depth=2, num_heads=2)
    model = build_model(shape, num_classes=10, channels=1, mean=(0.5,), std=(0.5,))

    def quadratic(path):
        method = Jasmin(JasminConfig(k=10, aggregation=aggregation, path=path), 1)
        saved = []

        def note(tensor):
            saved.append(tuple(tensor.shape))
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            with record_attention(model, method.reads(torch.device("cpu"))) as attention:
                model(torch.rand(1, 1, img_size, img_size))
            method.penalty(model, attention)["jasmin"].backward()
        return [shape for shape in saved if shape[-2:] == (tokens, tokens)]

    assert quadratic("recompute") == []
    assert quadratic("probabilities")  # the hooks do see them


def test_the_penalty_reaches_queries_and_keys_of_every_block_and_nothing_behind_the_last_scores():
    model = build_model(
        ModelConfig(img_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2),
        num_classes=10, channels=1, mean=(0.5,), std=(0.5,),
    )  # fmt: skip
    for path in PATHS[1:]:
        model.zero_grad()
        method = Jasmin(JasminConfig(k=3, path=path), 1)
        with record_attention(model, method.reads(torch.device("cpu"))) as attention:
            model(torch.rand(4, 1, 8, 8))
        method.penalty(model, attention)["jasmin"].backward()
        first, last = (block.attn.qkv.weight.grad.unflatten(0, (3, -1)).abs().sum((1, 2)) for block in model.vit.blocks)
        assert bool((first > 0).all())  # its values feed the next block's scores
        assert [bool(part > 0) for part in last] == [True, True, False]
        assert model.vit.blocks[1].mlp.fc1.weight.grad is None
        assert model.vit.head.weight.grad is None
        assert float(model.vit.patch_embed.proj.weight.grad.abs().sum()) > 0


def test_the_path_follows_the_device_unless_the_configuration_names_it():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    found = {path: [Jasmin(JasminConfig(path=path), 1).reads(d) for d in (cpu, gpu)] for path in PATHS}
    assert found == {
        "auto": ["probabilities", "projections"],
        "probabilities": ["probabilities"] * 2,
        "recompute": ["projections"] * 2,
    }


def test_a_weight_of_zero_needs_no_attention_and_adds_nothing():
    method = Jasmin(JasminConfig(weight=0), 1)
    assert method.reads(torch.device("cpu")) == method.reads(torch.device("cuda")) == "nothing"
    assert method.penalty(torch.nn.Identity(), []) == {}


@pytest.mark.parametrize("values", [{"k": 1}, {"k": -1}, {"weight": -1e-3}, {"aggregation": "sum"}, {"lambda": 1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        JasminConfig(**values)


def test_the_number_of_tokens_bounds_k():
    assert list(Jasmin.check(JasminConfig(k=16), FACTS)) == []
    ((field, sentence),) = Jasmin.check(JasminConfig(k=17), FACTS)
    assert field == "k"
    assert "17 tokens" in sentence


def test_a_model_that_hides_its_attention_is_refused_by_name():
    hidden = ModelFacts("vit_parallel", 17, 3, 3, 48, exposes_attention=False)
    ((_, sentence),) = Jasmin.check(JasminConfig(k=0), hidden)
    assert "vit_parallel" in sentence
