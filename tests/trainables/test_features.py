"""Features and their cosine against loops, and the attack that turns them away."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from trainables.ascent import distance
from trainables.features import Features, cosine, in_eval_mode, turned_away
from trainables.inner import InnerAttack, InnerAttackConfig
from trainables.vit import PixelVit

pytestmark = pytest.mark.usefixtures("_same_numbers")


def angle(first, second):
    """The cosine of two vectors, number by number."""
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


@pytest.mark.parametrize("dim", [-1, 1, "flatten"])
def test_the_cosine_is_the_mean_over_the_vectors_along_its_axis(dim):
    first, second = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if dim == -1:
            pairs = list(zip(a, b, strict=True))
        elif dim == 1:
            pairs = [([t[d] for t in a], [t[d] for t in b]) for d in range(4)]
        else:
            pairs = [([x for t in a for x in t], [x for t in b for x in t])]
        expected.append(sum(angle(*pair) for pair in pairs) / len(pairs))
    torch.testing.assert_close(cosine(first, second, dim), torch.tensor(expected))


def test_the_cosine_of_rounded_features_is_taken_in_float32():
    first = torch.randn(2, 3, 4).bfloat16()
    assert cosine(first, first, -1).dtype == torch.float32
    torch.testing.assert_close(cosine(first, first, -1), torch.ones(2))


def test_features_are_class_and_patch_tokens_without_registers():
    vit = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=8, patch_size=4, embed_dim=24, depth=1, num_heads=2
    ).eval()
    features = Features(PixelVit(vit, (0.3,), (0.4,)))
    images = torch.rand(2, 3, 8, 8)
    sequence = vit.forward_features((images - 0.3) / 0.4)
    assert sequence.shape[1] == 1 + 4 + 4
    torch.testing.assert_close(features(images), sequence[:, [0, 5, 6, 7, 8]])
    torch.testing.assert_close(features.logits(sequence), vit((images - 0.3) / 0.4))


@pytest.mark.parametrize("dim", [-1, 1, "flatten"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_turns_features_away_within_the_ball(dim, norm, batch, trained):
    epsilon = 0.1 if norm == "linf" else 0.5
    features = Features(trained.model)
    with torch.no_grad():
        target = features(batch.images)
    attack = InnerAttack(InnerAttackConfig(norm=norm, epsilon=epsilon, steps=5))
    noise = torch.randn_like(batch.images)
    attacked = turned_away(attack, features, batch.images, target, noise, dim)
    random = attack.projected(batch.images + epsilon * noise.sign(), batch.images)
    with torch.no_grad():
        found, drawn = (cosine(features(images), target, dim) for images in (attacked, random))
    assert bool((found < drawn).all())
    assert float(distance(attacked, batch.images, norm).max()) <= epsilon + 1e-6
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1
    assert torch.equal(
        turned_away(InnerAttack(InnerAttackConfig(epsilon=0)), features, batch.images, target, noise, dim), batch.images
    )


def test_eval_mode_ends_where_it_began():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval())
    with in_eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
