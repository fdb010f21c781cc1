"""Budgets in units of the normalised image, against attacks written in those units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from search_spaces.errors import AttackError
from trainables.attack import Threat
from trainables.attacks.apgd_ce import ApgdCeConfig
from trainables.attacks.cw import Cw
from trainables.attacks.fgsm import Fgsm, FgsmConfig
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.vit import PixelVit

MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)
EPSILON = 0.05
THREAT = Threat(epsilon=EPSILON)
LEGACY = {"legacy_normalized_budget": True}


class Inner(nn.Module):
    """What sees the normalised image: two layers, five classes."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(16, 48, generator=generator, dtype=torch.float64) / 7)
        self.second = nn.Parameter(torch.randn(5, 16, generator=generator, dtype=torch.float64))

    def forward(self, z):
        return (z.flatten(1) @ self.first.T).tanh() @ self.second.T


@pytest.fixture
def scene():
    """A model, and images away from the ends of the pixel range, that no clamp hides the budget."""
    model = PixelVit(Inner(), MEAN, STD).double().eval()
    images = 0.1 + 0.8 * torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return model, images, model(images).argmax(1)


def channels(values):
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def test_fgsm_is_one_signed_step_of_epsilon_in_the_normalised_image(scene):
    model, images, labels = scene
    normalised = ((images - channels(MEAN)) / channels(STD)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.vit(normalised), labels), normalised)
    moved = normalised.detach() + EPSILON * gradient.sign()
    expected = moved * channels(STD) + channels(MEAN)
    attacked = Fgsm(FgsmConfig(**LEGACY), THREAT).perturb(model, images, labels, 0, torch.arange(30))
    assert torch.allclose(attacked, expected, rtol=0, atol=1e-7)  # the model keeps its σ in float32


def test_pgd_walks_and_is_projected_in_the_normalised_image(scene):
    model, images, labels = scene
    steps, step_size = 6, 0.02
    low, high = (((bound - images) / channels(STD)).clamp(-EPSILON, EPSILON) for bound in (0.0, 1.0))
    origin = (images - channels(MEAN)) / channels(STD)
    change, leads, points = torch.zeros_like(origin), [], []
    for step in range(steps + 1):
        point = (origin + change).requires_grad_(True)
        logits = model.vit(point)
        wrong = logits.detach().scatter(1, labels[:, None], -torch.inf).amax(1)
        leads.append(wrong - logits.detach().gather(1, labels[:, None]).squeeze(1))
        points.append(point.detach() * channels(STD) + channels(MEAN))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), point)
        if step < steps:
            change = torch.max(torch.min(change + step_size * gradient.sign(), high), low)
    config = PgdConfig(steps=steps, step_size=step_size, random_start=False, **LEGACY)
    attacked = Pgd(config, THREAT).perturb(model, images, labels, 0, torch.arange(30))
    leads, points = torch.stack(leads), torch.stack(points)
    fell = leads > 1e-4
    chosen = torch.where(fell.any(0), fell.int().argmax(0), leads.argmax(0))
    assert torch.allclose(attacked, points[chosen, torch.arange(30)], rtol=0, atol=1e-6)
    assert 0 < int(fell.any(0).sum()) < 30


@pytest.mark.parametrize(
    "attack",
    [Fgsm(FgsmConfig(**LEGACY), THREAT), *(kind(PgdConfig(steps=3, **LEGACY), THREAT) for kind in (Pgd, Cw))],
)
def test_the_budget_of_a_channel_is_epsilon_times_its_deviation(attack, scene):
    model, images, labels = scene
    attacked = attack.perturb(model, images, labels, 0, torch.arange(30))
    furthest = (attacked - images).abs().amax((0, 2, 3))
    assert furthest.tolist() == pytest.approx([EPSILON * std for std in STD], rel=1e-6)


@pytest.mark.parametrize("config_type", [FgsmConfig, PgdConfig])
def test_it_is_off_unless_asked_for_and_for_linf_alone(config_type, scene):
    attack_type = {FgsmConfig: Fgsm, PgdConfig: Pgd}[config_type]
    assert not config_type().legacy_normalized_budget
    l2 = Threat(norm="l2", epsilon=0.5)
    assert list(attack_type.check(config_type(), l2, 10)) == []
    assert list(attack_type.check(config_type(**LEGACY), THREAT, 10)) == []
    (reason,) = attack_type.check(config_type(**LEGACY), l2, 10)
    assert "linf alone; found l2" in reason
    model, images, labels = scene
    plain = attack_type(config_type(), THREAT).perturb(model, images, labels, 0, torch.arange(30))
    assert float((plain - images).abs().max()) == pytest.approx(EPSILON)
    with pytest.raises(ValidationError):
        ApgdCeConfig(**LEGACY)


def test_the_deviation_is_found_inside_a_wrapped_model(scene):
    model, images, labels = scene
    attack = Fgsm(FgsmConfig(**LEGACY), THREAT)
    found = attack.perturb(nn.Sequential(model), images, labels, 0, torch.arange(30))
    assert torch.equal(found, attack.perturb(model, images, labels, 0, torch.arange(30)))


def test_a_model_without_a_fitting_deviation_is_refused(scene):
    model, images, labels = scene
    attack = Fgsm(FgsmConfig(**LEGACY), THREAT)
    with pytest.raises(AttackError, match="Inner has no tensor std"):
        attack.perturb(model.vit, images, labels, 0, torch.arange(30))
    with pytest.raises(AttackError, match=r"\[0, 1\] pixel scale, found 58"):
        attack.perturb(PixelVit(model.vit, MEAN, (58.0,)), images, labels, 0, torch.arange(30))
