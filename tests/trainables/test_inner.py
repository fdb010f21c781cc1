"""What PGD-AT and TRADES share: the ball, its warm-up, the climb, and the penalties that stack on both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.ascent import distance
from trainables.config import method_config_type
from trainables.inner import InnerAttack, InnerAttackConfig
from trainables.method import build_stack, check_stack
from trainables.registry import find
from trainables.training import Training

PENALTIES = {"jasmin": {"k": 0}, "msvp": {}}


pytestmark = pytest.mark.usefixtures("_same_numbers")


def inner(**values):
    return InnerAttack(InnerAttackConfig(**{"epsilon": 0.1, "steps": 4, **values}))


def rising(pixels, _targets):
    """A loss that rises with every pixel."""
    return pixels.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm):
    images = torch.full((2000, 1, 2, 2), 0.5)
    start = inner(norm=norm).uniform_start(images)
    lengths = distance(start, images, norm)
    assert float(lengths.max()) <= 0.1 + 1e-6
    assert float((lengths < 0.05).double().mean()) == pytest.approx(1 / 16, abs=0.02)  # half the radius in 4 dimensions
    assert float((start - images).mean()) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_climb_takes_steps_of_the_given_length_and_stops_at_the_sphere(norm):
    images, ones = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, dtype=torch.long)
    for steps, reached in ((1, 0.03), (2, 0.06), (3, 0.09), (4, 0.1), (9, 0.1)):
        climbed = inner(norm=norm, steps=steps, step_size=0.03).climb(nn.Identity(), images, images, ones, rising)
        assert float(distance(climbed, images, norm)) == pytest.approx(reached, abs=1e-6)


@pytest.mark.parametrize(("norm", "steps"), [("linf", 5), ("l2", 5), ("linf", 10)])
def test_without_a_step_size_the_climb_could_go_two_and_a_half_times_the_radius(norm, steps):
    images, ones = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, dtype=torch.long)
    lengths = []
    model = nn.Identity()
    model.register_forward_hook(lambda _module, inputs, _: lengths.append(distance(inputs[0], images, norm).item()))
    inner(norm=norm, steps=steps).climb(model, images, images, ones, rising)
    assert lengths[1] == pytest.approx(2.5 * 0.1 / steps, abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_and_step_grow_together(norm):
    images, ones = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, dtype=torch.long)
    ramping = inner(norm=norm, steps=1, step_size=0.04, epsilon_warmup_epochs=4)
    found = []
    for epoch in (0, 1, 2, 4, 9):
        ramping.start_epoch(epoch)
        climbed = ramping.climb(nn.Identity(), images, images, ones, rising)
        found.append((ramping.epsilon, float(distance(climbed, images, norm))))
    assert [radius for radius, _ in found] == pytest.approx([0, 0.025, 0.05, 0.1, 0.1])
    assert [length for _, length in found] == pytest.approx([0, 0.01, 0.02, 0.04, 0.04], abs=1e-6)


@pytest.mark.parametrize("key", ["adversarial", "trades"])
def test_penalties_stack_on_it_and_the_two_exclude_each_other(key, tiny_trial, tmp_path):
    first = Training(tiny_trial({**PENALTIES, key: {"steps": 1}}), 0, tmp_path).run_epoch()
    terms = first["train/task_loss"] + first["train/jasmin"] + first["train/msvp"]
    assert first["train/loss"] == pytest.approx(terms, abs=1e-5)
    assert first["train/jasmin"] < 0 < first["train/msvp"]
    other = {"adversarial": "trades", "trades": "adversarial"}[key]
    assert check_stack({name: find("methods", name) for name in (key, other)})


@pytest.mark.parametrize("key", ["adversarial", "trades"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_in_reduced_precision_the_attack_still_raises_what_it_climbs(key, norm, batch, trained, tiny_trial):
    epsilon = {"linf": 0.1, "l2": 0.8}[norm]
    (method,) = build_stack(tiny_trial({key: {"epsilon": epsilon, "norm": norm}})).methods.values()
    attacked = {}
    for reduced in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
            seen = method.perturb(trained.model, batch)
        assert seen.images.dtype == torch.float32
        assert float(distance(seen.images, batch.images, norm).max()) <= epsilon + 1e-6
        with torch.no_grad():
            attacked[reduced] = nn.functional.cross_entropy(trained.model(seen.images), batch.targets).item()
    clean = nn.functional.cross_entropy(trained.model(batch.images), batch.targets).item()
    assert attacked[True] - clean > 0.8 * (attacked[False] - clean) > 0


def test_both_methods_have_the_fields_of_the_ball():
    shared = InnerAttackConfig.model_fields.keys()
    assert all(shared <= method_config_type(key).model_fields.keys() for key in ("adversarial", "trades"))
