"""PGD adversarial training's inner maximisation."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from trainables.ascent import distance
from trainables.method import Batch
from trainables.methods.adversarial import Adversarial, AdversarialConfig


@pytest.fixture
def batch(trained):
    index = torch.arange(16)
    return Batch(trained.splits.train.take(index), trained.splits.train.labels[index])


def method(**values):
    return Adversarial(AdversarialConfig(**{"epsilon": 0.1, "steps": 3, **values}), total_epochs=10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_examples_have_a_higher_loss_and_stay_in_the_ball(norm, random_start, batch, trained):
    seen = method(norm=norm, random_start=random_start).perturb(trained.model, batch)
    assert 0.05 < float(distance(seen.images, batch.images, norm).max()) <= 0.1 + 1e-6
    clean, attacked = (F.cross_entropy(trained.model(images), batch.targets) for images in (batch.images, seen.images))
    assert float(attacked) > float(clean)
    assert seen.targets is batch.targets


def test_more_steps_find_a_higher_loss(batch, trained):
    losses = []
    for steps in (1, 10):
        seen = method(steps=steps, step_size=0.02, random_start=False).perturb(trained.model, batch)
        losses.append(float(F.cross_entropy(trained.model(seen.images), batch.targets)))
    assert losses[1] > losses[0] + 0.1


def test_targets_may_be_probabilities(batch, trained):
    soft = Batch(batch.images, F.one_hot(batch.targets, 10).float() * 0.9 + 0.01)
    seen = method().perturb(trained.model, soft)
    assert seen.targets is soft.targets
    assert not torch.equal(seen.images, soft.images)


def test_epsilon_grows_linearly_from_zero_and_then_stays(batch, trained):
    ramping = method(epsilon_warmup_epochs=4, random_start=False)
    reached = []
    for epoch in (0, 1, 2, 4, 9):
        ramping.on_epoch_start(trained.model, epoch, None)
        reached.append(float(distance(ramping.perturb(trained.model, batch).images, batch.images, "linf").max()))
    assert reached == pytest.approx([0, 0.025, 0.05, 0.1, 0.1], abs=1e-6)


def test_an_absolute_step_shrinks_with_epsilon_during_the_warmup(batch, trained):
    ramping = method(epsilon_warmup_epochs=4, random_start=False, steps=1, step_size=0.04)
    ramping.on_epoch_start(trained.model, 1, None)
    seen = ramping.perturb(trained.model, batch)
    assert float(distance(seen.images, batch.images, "linf").max()) == pytest.approx(0.01, abs=1e-6)


def test_no_pass_is_paid_for_gradients_of_weights(batch, trained):
    model = deepcopy(trained.model).requires_grad_(True)
    in_graph = []
    model.register_forward_hook(lambda *_: in_graph.append(any(p.requires_grad for p in model.parameters())))
    method(steps=3).perturb(model, batch)
    assert in_graph == [False] * 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_epsilon_zero_returns_the_batch_itself(batch, trained):
    assert method(epsilon=0).perturb(trained.model, batch) is batch


def test_an_absolute_step_size_is_taken(batch, trained):
    seen = method(steps=1, step_size=0.01, random_start=False).perturb(trained.model, batch)
    assert float(distance(seen.images, batch.images, "linf").max()) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("values", [{"steps": 0}, {"epsilon": -0.1}, {"epsilon": 8}, {"norm": "l1"}, {"step_size": 0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        AdversarialConfig(**values)
