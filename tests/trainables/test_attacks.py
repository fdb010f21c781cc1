"""FGSM, PGD, CW, APGD, FAB and AutoAttack beyond the contract that all attacks share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from search_spaces.errors import AttackError
from tests.trainables.victims import Linear, labelled, passes_of
from trainables.attack import Attack, Threat
from trainables.attacks.apgd_ce import ApgdCe, ApgdCeConfig
from trainables.attacks.apgd_dlr import ApgdDlr
from trainables.attacks.apgd_t import ApgdT, ApgdTConfig
from trainables.attacks.autoattack import Autoattack, AutoattackConfig
from trainables.attacks.cw import Cw
from trainables.attacks.fgsm import Fgsm, FgsmConfig
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import AttackConfig
from trainables.verdicts import clean_correct, judge
from trainables.worst_case import WorstCase, wrong_lead

CPU = torch.device("cpu")
THREAT = Threat(norm="linf", epsilon=0.05)


def verdict(trained, attack, count=64):
    """Judge the images among the first `count` of the test split that the model classifies correctly."""
    test, ids = trained.splits.test, torch.arange(count)
    ids = ids[clean_correct(trained.model, test, ids, 64, CPU)]
    return judge(trained.model, attack, test, ids, seed=0, batch_size=64, device=CPU)


def share(found):
    """Return the share of the judged images that withstood."""
    return float(found.correct.float().mean())


@pytest.fixture
def some(trained):
    ids = torch.arange(6)
    return trained.splits.test.take(ids), trained.splits.test.labels[ids], ids


def test_fgsm_is_one_signed_step_of_the_full_radius(trained, some):
    images, labels, ids = some
    pixels = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(trained.model(pixels), labels), pixels)
    expected = (images + 0.05 * gradient.sign()).clamp(0, 1)
    attacked = Fgsm(FgsmConfig(), THREAT).perturb(trained.model, images, labels, 0, ids)
    assert torch.allclose(attacked, expected, atol=1e-6)


def test_stronger_attacks_leave_no_more_correct(trained):
    fgsm = verdict(trained, Fgsm(FgsmConfig(), THREAT))
    pgd = verdict(trained, Pgd(PgdConfig(), THREAT))
    more = verdict(trained, Pgd(PgdConfig(steps=40, restarts=3), THREAT))
    package = verdict(trained, Autoattack(AutoattackConfig(steps=20, queries=50), THREAT))
    accuracies = [share(fgsm), share(pgd), share(more), share(package)]
    assert accuracies[0] < 1
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]


def test_a_larger_radius_leaves_fewer_correct(trained):
    accuracies = [share(verdict(trained, Pgd(PgdConfig(), Threat(epsilon=epsilon)))) for epsilon in (0.01, 0.05, 0.1)]
    assert accuracies[0] > accuracies[1] > accuracies[2]


def test_the_start_differs_by_seed_by_image_and_by_restart(some):
    images = some[0][:1].expand(3, -1, -1, -1)
    attack = Pgd(PgdConfig(), THREAT)
    starts = [attack._start(images, [5, 6, 7], seed, restart, 0.05) for seed, restart in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(start.flatten().tolist()) for batch in starts for start in batch}) == 9


def test_restarts_never_save_an_image(trained):
    threat = Threat(norm="linf", epsilon=0.2)
    blind = {"steps": 1, "step_size": 1e-4}  # where it starts decides
    few, many = (verdict(trained, Pgd(PgdConfig(**blind, restarts=n), threat)).correct for n in (2, 12))
    assert bool((many <= few).all())
    assert many.sum() < few.sum()


def test_fooled_images_leave_the_working_batch(trained):
    strong = Threat(norm="linf", epsilon=0.3)
    found = verdict(trained, Pgd(PgdConfig(steps=50), strong))
    assert share(found) < 0.1
    assert found.backward_images < 0.3 * 50 * len(found.ids)


def test_an_image_that_is_not_surely_fooled_is_handed_back_as_its_worst_iterate(trained, some):
    class Faint(nn.Module):
        """The same decisions with leads that are all below the sure margin."""

        def forward(self, x):
            iterates.append(x.detach().clone())
            return trained.model(x) * 1e-6

    images, labels, ids = some
    iterates = []
    config = PgdConfig(steps=6, step_size=0.02, restarts=2)
    attacked = Pgd(config, Threat(epsilon=0.1)).perturb(Faint(), images, labels, 0, ids)
    assert [len(batch) for batch in iterates] == [len(images)] * 14
    with torch.no_grad():
        leads = torch.stack([wrong_lead(trained.model(batch), labels) for batch in iterates])
        assert torch.allclose(wrong_lead(trained.model(attacked), labels), leads.amax(0), rtol=0, atol=1e-3)


def test_cw_is_the_ascent_of_pgd_on_the_margin_of_the_logits(trained, some):
    images, labels, ids = some
    pixels = images.clone().requires_grad_(True)
    logits = trained.model(pixels)
    margins = logits.scatter(1, labels[:, None], -1e9).amax(1) - logits.gather(1, labels[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(margins.clamp_min(-10).sum(), pixels)
    expected = (images + 0.05 * gradient.sign()).clamp(0, 1)
    one_step = PgdConfig(steps=1, step_size=0.05, random_start=False)
    attacked = Cw(one_step, THREAT).perturb(trained.model, images, labels, 0, ids)
    moved = (attacked != images).flatten(1).any(1)  # a step that made nothing worse is not handed back
    assert moved.any()
    assert torch.allclose(attacked[moved], expected[moved], atol=1e-6)
    assert Cw.Config().steps == 20


def test_cw_starts_elsewhere_than_pgd(some):
    images = some[0]
    starts = [attack(PgdConfig(), THREAT)._start(images, range(6), 0, 0, 0.05) for attack in (Pgd, Cw)]
    assert not torch.equal(*starts)


def test_apgd_t_takes_no_more_targets_than_there_are_and_refuses_too_few_classes():
    model = Linear(5)
    data = labelled(model)
    assert ApgdT.passes(ApgdTConfig(steps=4), 5) == (4, 1 + 4 * 13)
    attacked = ApgdT(ApgdTConfig(steps=4), THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))
    assert (model(attacked).argmax(1) != data.labels).any()
    (reason,) = ApgdT.check(ApgdTConfig(), THREAT, 3)
    assert "at least 4 classes, the data set has 3" in reason
    model = Linear(3)
    data = labelled(model)
    with pytest.raises(AttackError, match="at least 4 classes"):
        ApgdT(ApgdTConfig(), THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))


@pytest.mark.parametrize(
    "attack", [ApgdCe(ApgdCeConfig(steps=6, restarts=2), THREAT), ApgdT(ApgdTConfig(steps=6), THREAT)]
)
def test_apgd_costs_what_it_says(attack):
    model, ids = Linear(6), torch.arange(1)
    data = labelled(model, 1)
    wrong = (data.labels + 1) % 6
    fewest, most = attack.passes(attack.config, 6)
    safe = type(attack)(attack.config, Threat(epsilon=1e-6))
    assert passes_of(model, lambda: safe.perturb(model, data.pixels, data.labels, 0, ids)) == most
    assert passes_of(model, lambda: attack.perturb(model, data.pixels, wrong, 0, ids)) == fewest


def test_without_a_random_start_the_seed_does_not_matter(trained, some):
    images, labels, ids = some
    attack = Pgd(PgdConfig(steps=2, random_start=False), THREAT)
    first, second = (attack.perturb(trained.model, images, labels, seed, ids) for seed in (1, 2))
    assert torch.equal(first, second)
    with pytest.raises(ValidationError, match="restart"):
        PgdConfig(restarts=2, random_start=False)


def test_a_rank_alone_gives_the_verdicts_and_starts_of_that_rank_among_all(trained):
    test, ids = trained.splits.test, torch.arange(40)
    ids = ids[clean_correct(trained.model, test, ids, 40, CPU)]
    threat = Threat(epsilon=0.03)

    def attacked(worst, **config):
        ApgdT(ApgdTConfig(steps=5, **config), threat).run(trained.model, worst, 3, ids)
        return worst

    whole, alone = (WorstCase(test.take(ids), test.labels[ids]) for _ in range(2))
    attacked(whole)
    reached = [len(attacked(alone, first=rank, targets=1).standing) for rank in range(9)]
    assert torch.equal(alone.images, whole.images)
    assert len(ids) > reached[0] > reached[3] >= reached[8] > 0


def test_apgd_t_counts_the_ranks_that_are_left_and_refuses_one_too_many():
    assert ApgdT.passes(ApgdTConfig(steps=4, first=3, targets=1), 10) == (4, 1 + 13)
    assert ApgdT.passes(ApgdTConfig(steps=4, first=2), 5) == (4, 1 + 2 * 13)
    assert list(ApgdT.check(ApgdTConfig(first=3), THREAT, 5)) == []
    (reason,) = ApgdT.check(ApgdTConfig(first=4), THREAT, 5)
    assert "first must be below the 4 wrong classes" in reason
    assert "found 4" in reason
    model = Linear(5)
    data = labelled(model)
    with pytest.raises(AttackError, match="below the 4 wrong classes, found 4"):
        ApgdT(ApgdTConfig(first=4), THREAT).perturb(model, data.pixels, data.labels, 0, torch.arange(20))


def test_apgd_dlr_is_apgd_on_the_ratio_with_starts_of_its_own(trained, some):
    images, labels, ids = some
    with torch.no_grad():
        labels = trained.model(images).argmax(1)
    config = ApgdCeConfig(steps=6)

    def scaled(x):
        return 1000 * trained.model(x)  # cross-entropy has no gradient left there, the ratio does not notice

    worst = [WorstCase(images, labels) for _ in range(2)]
    for case, attack in zip(worst, (ApgdDlr(config, THREAT), ApgdCe(config, THREAT)), strict=True):
        attack.run(scaled, case, 0, ids)
    assert not worst[0].flat.any()
    assert worst[1].flat.any()
    assert len(worst[0].standing) < len(images)
    (reason,) = ApgdDlr.check(config, THREAT, 2)
    assert "at least 3 classes, the data set has 2" in reason
    assert list(ApgdDlr.check(config, THREAT, 3)) == []


ASCENTS = [
    Fgsm(FgsmConfig(), THREAT),
    Pgd(PgdConfig(steps=2, restarts=2), THREAT),
    Cw(PgdConfig(steps=2), THREAT),
    ApgdCe(ApgdCeConfig(steps=2), THREAT),
    ApgdDlr(ApgdCeConfig(steps=2), THREAT),
    ApgdT(ApgdTConfig(steps=2, targets=1), THREAT),
]


@pytest.mark.parametrize("attack", ASCENTS, ids=lambda attack: type(attack).__name__)
def test_an_ascent_remembers_at_whose_start_the_gradient_is_zero(attack):
    model = Linear(6)
    data, ids = labelled(model, 8), torch.arange(8)
    blind = torch.tensor([2, 5])

    def partly_blind(x):
        """The model, but where the first pixel is exactly 1 its logits do not depend on the image."""
        dark = (x[:, 0, 0, 0] > 0.9)[:, None]
        return torch.where(dark, F.one_hot(data.labels[blind[0]], 6) * 2.0 + 0 * x.sum(), model(x))

    images = data.pixels.clone()
    images[:, 0, 0, 0] = 0.5
    images[blind, 0, 0, 0] = 1.0
    worst = WorstCase(images, data.labels)
    attack.run(partly_blind, worst, 0, ids)
    assert worst.flat.nonzero().squeeze(1).tolist() == blind.tolist()


@pytest.mark.parametrize("attack", ASCENTS, ids=lambda attack: type(attack).__name__)
def test_who_has_surely_fallen_is_left_alone(attack):
    model, batches = Linear(6), []
    data = labelled(model, 8)
    worst = WorstCase(data.pixels, data.labels)
    fallen = torch.tensor([1, 4, 6])
    kept = torch.full_like(data.pixels[fallen], 0.25)
    worst.offer(fallen, kept, F.one_hot((data.labels[fallen] + 1) % 6, 6).float())
    model.register_forward_hook(lambda _module, inputs, _output: batches.append(len(inputs[0])))
    attack.run(model, worst, 0, torch.arange(8))
    assert batches[0] == 5
    assert torch.equal(worst.images[fallen], kept)
    batches.clear()
    worst.offer(torch.arange(8), worst.images, F.one_hot((data.labels + 1) % 6, 6).float())
    attack.run(model, worst, 0, torch.arange(8))
    assert batches == []


def test_an_attack_overrides_run_or_perturb():
    with pytest.raises(TypeError, match="attack Neither must override run or perturb"):

        class Neither(Attack[AttackConfig]):
            pass


def test_an_attack_that_only_perturbs_runs_on_those_who_stand():
    class Darkens(Attack[AttackConfig]):
        def perturb(self, model, images, labels, seed, image_ids):
            seen.append(image_ids.tolist())
            return images / 2

    seen = []
    data = labelled(Linear(6), 4)
    worst = WorstCase(data.pixels, data.labels)
    worst.offer(torch.tensor([0, 2]), data.pixels[[0, 2]], F.one_hot((data.labels[[0, 2]] + 1) % 6, 6).float())
    Darkens(AttackConfig(), THREAT).run(Linear(6), worst, 0, torch.tensor([7, 8, 9, 10]))
    assert seen == [[8, 10]]
    assert torch.equal(worst.images[[1, 3]], data.pixels[[1, 3]] / 2)
    assert torch.equal(worst.images[[0, 2]], data.pixels[[0, 2]])
