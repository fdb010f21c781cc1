"""TRADES: both terms against loops over images, and the attack that climbs the divergence."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from trainables.ascent import distance, loss_gradient
from trainables.method import Batch
from trainables.methods.trades import START_DEVIATION, Trades, TradesConfig, divergence, summed_divergence
from trainables.training import Training

pytestmark = pytest.mark.usefixtures("_same_numbers")


def method(**values):
    return Trades(TradesConfig(**{"epsilon": 0.1, "steps": 3, **values}), total_epochs=10)


def kl_by_hand(model, images, attacked):
    """Return KL(f(x) ‖ f(x′)) of each image, class by class in float64."""
    values = []
    for one, other in zip(images, attacked, strict=True):
        p, q = (model(x[None])[0].double().softmax(0).tolist() for x in (one, other))
        values.append(
            sum(a * (torch.tensor(a).log() - torch.tensor(b).log()).item() for a, b in zip(p, q, strict=True))
        )
    return torch.tensor(values)


def test_the_divergence_is_the_sum_over_the_classes():
    clean, attacked = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5)
    p, q = clean.double().softmax(1), attacked.double().softmax(1)
    terms = [[float(p[i, j] * (p[i, j] / q[i, j]).log()) for j in range(5)] for i in range(6)]
    expected = torch.tensor([sum(row) for row in terms])
    torch.testing.assert_close(divergence(clean, attacked), expected, rtol=1e-5, atol=1e-6)
    assert float(summed_divergence(attacked, clean)) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert float(divergence(clean, clean).abs().max()) == 0


def test_the_divergence_of_sure_predictions_is_finite():
    clean, attacked = torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]])
    assert float(divergence(clean, attacked)) == pytest.approx(400)


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_clean_cross_entropy_plus_beta_times_the_mean_divergence(soft, batch, trained):
    probabilities = F.one_hot(batch.targets, 10).float() * 0.9 + 0.01
    clean = Batch(batch.images, probabilities) if soft else batch
    seen = method().perturb(trained.model, clean)
    with torch.no_grad():
        found = method(beta=2.5).loss(trained.model, seen, clean)
        entropies = [
            -(row.double() * trained.model(image[None])[0].double().log_softmax(0)).sum()
            for image, row in zip(clean.images, probabilities if soft else F.one_hot(batch.targets, 10), strict=True)
        ]
        expected = torch.stack(entropies).mean() + 2.5 * kl_by_hand(trained.model, clean.images, seen.images).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_both_predictions_carry_gradient():
    clean, attacked = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    logits = iter((clean, attacked))
    images, targets = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    method(beta=3.0).loss(lambda _: next(logits), Batch(images, targets), Batch(images, targets)).backward()
    p, q = clean.detach().softmax(1), attacked.detach().softmax(1)
    torch.testing.assert_close(attacked.grad, 3 * (q - p) / 4)
    log_ratio = (p / q).log()
    through_kl = 3 * p * (log_ratio - (p * log_ratio).sum(1, keepdim=True)) / 4
    torch.testing.assert_close(clean.grad, through_kl + (p - F.one_hot(targets, 5)) / 4, rtol=1e-5, atol=1e-6)


def test_the_clean_images_pass_first(batch, trained):
    passed = []
    seen = Batch(batch.images + 0.01, batch.targets)
    handle = trained.model.register_forward_hook(lambda _module, inputs, _output: passed.append(inputs[0]))
    method().loss(trained.model, seen, batch)
    handle.remove()
    assert [images is batch.images for images in passed] == [True, False]
    assert passed[1] is seen.images


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_raises_the_divergence_and_stays_in_the_ball(norm, batch, trained):
    seen = method(norm=norm).perturb(trained.model, batch)
    assert 0.05 < float(distance(seen.images, batch.images, norm).max()) <= 0.1 + 1e-6
    assert float(seen.images.min()) >= 0
    assert float(seen.images.max()) <= 1
    assert seen.targets is batch.targets
    noise = (batch.images + START_DEVIATION * torch.randn_like(batch.images)).clamp(0, 1)
    with torch.no_grad():
        reached, started = (kl_by_hand(trained.model, batch.images, images) for images in (seen.images, noise))
    assert bool((reached > started).all())


def test_the_attack_never_looks_at_the_labels(batch, trained):
    attacked = []
    for targets in (batch.targets, batch.targets.flip(0)):
        torch.manual_seed(1)
        attacked.append(method().perturb(trained.model, Batch(batch.images, targets)).images)
    assert torch.equal(*attacked)


def test_it_starts_beside_the_image_because_at_the_image_the_divergence_has_no_slope(batch, trained):
    with torch.no_grad():
        clean = trained.model(batch.images)
    beside = batch.images + START_DEVIATION * torch.randn_like(batch.images)
    steepness = [
        float(loss_gradient(trained.model, images, clean, summed_divergence)[1].abs().max())
        for images in (batch.images, beside)
    ]
    assert steepness[0] < 1e-5 < 1e-3 < steepness[1]


def test_epsilon_grows_linearly_and_at_zero_only_the_clean_term_is_left(batch, trained):
    ramping = method(epsilon_warmup_epochs=4)
    reached = []
    for epoch in (0, 1, 2, 4, 9):
        ramping.on_epoch_start(trained.model, epoch, None)
        reached.append(float(distance(ramping.perturb(trained.model, batch).images, batch.images, "linf").max()))
    assert reached == pytest.approx([0, 0.025, 0.05, 0.1, 0.1], abs=1e-6)
    ramping.on_epoch_start(trained.model, 0, None)
    assert ramping.perturb(trained.model, batch) is batch
    assert torch.equal(
        ramping.loss(trained.model, batch, batch), F.cross_entropy(trained.model(batch.images), batch.targets)
    )


def test_beta_zero_attacks_nothing_and_draws_nothing(batch, trained):
    off = method(beta=0)
    before = torch.get_rng_state()
    assert off.perturb(trained.model, batch) is batch
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(
        off.loss(trained.model, batch, batch), F.cross_entropy(trained.model(batch.images), batch.targets)
    )


def test_no_gradient_is_left_and_no_pass_is_paid_for_gradients_of_weights(batch, trained):
    model = deepcopy(trained.model).requires_grad_(True)
    recorded = []
    model.register_forward_hook(lambda _module, _inputs, output: recorded.append(output.requires_grad))
    seen = method(steps=2).perturb(model, batch)
    assert recorded == [False, True, True]  # one prediction of the clean images, then only the pixels are in the graph
    assert not seen.images.requires_grad
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_step_attacks_in_eval_mode_and_learns_in_training_mode(tiny_trial, tmp_path):
    learner = Training(tiny_trial({"trades": {"steps": 2}}), 0, tmp_path)._learner
    in_training = []
    learner.model.register_forward_pre_hook(lambda model, _: in_training.append(model.training))
    learner.train_epoch(0)
    assert in_training == [False, False, False, True, True] * 4  # 4 batches: a clean look and two steps; both terms


def test_an_absolute_step_size_is_taken(batch, trained):
    seen = method(steps=1, step_size=0.01).perturb(trained.model, batch)
    furthest = float(distance(seen.images, batch.images, "linf").max())
    assert 0.01 <= furthest <= 0.01 + 6 * START_DEVIATION


@pytest.mark.parametrize(
    "values", [{"beta": -1}, {"steps": 0}, {"epsilon": 8}, {"norm": "l1"}, {"random_start": False}]
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        TradesConfig(**values)
