"""Verdicts: the evaluator trusts no attack."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch

from search_spaces.errors import AttackError
from trainables.attack import Attack, Threat
from trainables.attacks.fgsm import Fgsm
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import AttackConfig
from trainables.dataset import InMemory
from trainables.verdicts import clean_correct, judge, predict_logits

CPU = torch.device("cpu")
THREAT = Threat(norm="linf", epsilon=0.1)


class Moves(Attack[AttackConfig]):
    """Does to the images what a test asks for, and remembers what it was given."""

    def __init__(self, change, threat=THREAT):
        super().__init__(AttackConfig(), threat)
        self.change = change
        self.given = []

    def perturb(self, model, images, labels, seed, image_ids):
        self.given.append((image_ids.clone(), labels.clone(), seed))
        return self.change(images)


def run(trained, attack, count=30, batch_size=8):
    return judge(
        trained.model, attack, trained.splits.test, torch.arange(count), seed=3, batch_size=batch_size, device=CPU
    )


def test_an_attack_that_does_nothing_leaves_the_clean_accuracy(trained):
    verdict = run(trained, Moves(lambda images: images))
    assert torch.equal(verdict.correct, verdict.clean)
    assert 0 < verdict.clean_accuracy < 1
    assert verdict.robust_accuracy == verdict.clean_accuracy


def test_only_correct_images_are_attacked_each_once_with_its_label_and_position(trained):
    attack = Moves(lambda images: images)
    verdict = run(trained, attack)
    given = torch.cat([ids for ids, _, _ in attack.given])
    assert given.tolist() == verdict.ids[verdict.clean].tolist()
    assert torch.equal(torch.cat([labels for _, labels, _ in attack.given]), trained.splits.test.labels[given])
    assert {seed for _, _, seed in attack.given} == {3}


def test_positions_may_be_any_part_of_the_split_in_any_order(trained):
    ids = torch.tensor([25, 3, 17])
    everything = run(trained, Fgsm(AttackConfig(), THREAT))
    some = judge(
        trained.model, Fgsm(AttackConfig(), THREAT), trained.splits.test, ids, seed=3, batch_size=8, device=CPU
    )
    assert some.correct.tolist() == everything.correct[ids].tolist()
    assert some.ids.tolist() == [25, 3, 17]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x + 0.11).clamp(0, 1), "further than ε"),
        (lambda x: x - 0.05, "outside"),
        (lambda x: x + 0.05, "outside"),
        (lambda x: x * torch.nan, "outside"),
        (lambda x: x[:, :, :4], "shape"),
        (lambda x: x[:1], "shape"),
    ],
)
def test_an_attack_that_breaks_its_contract_is_an_error(change, message, trained):
    with pytest.raises(AttackError, match=message):
        run(trained, Moves(change))


def test_in_l2_the_length_of_the_change_counts(trained):
    inside = Threat(norm="l2", epsilon=0.81)  # every one of 64 pixels moves by 0.1: a length of 0.8

    def move(images):
        return torch.where(images > 0.5, images - 0.1, images + 0.1)

    run(trained, Moves(move, inside))
    with pytest.raises(AttackError, match=r"0\.8 in l2"):
        run(trained, Moves(move, Threat(norm="l2", epsilon=0.79)))


def test_rounding_is_forgiven_but_not_used(trained):
    seen = []

    def slightly_out(images):
        return images + 5e-7

    handle = trained.model.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].max())))
    try:
        run(trained, Moves(slightly_out))
    finally:
        handle.remove()
    assert max(seen) <= 1


def test_an_image_falls_only_in_a_pass_of_the_evaluators_own(trained):
    class Boasts(Moves):
        def perturb(self, model, images, labels, seed, image_ids):
            warnings.warn("all of them fooled", stacklevel=1)
            return images

    verdict = run(trained, Boasts(None))
    assert torch.equal(verdict.correct, verdict.clean)


def test_what_an_attack_has_to_say_is_kept_once(trained):
    class Warns(Moves):
        def perturb(self, model, images, labels, seed, image_ids):
            warnings.warn("gradients vanish", stacklevel=1)
            return images

    verdict = run(trained, Warns(None))
    assert verdict.warnings == ("gradients vanish",)


def test_passes_are_counted_by_image(trained):
    verdict = run(trained, Fgsm(AttackConfig(), THREAT), count=16, batch_size=8)
    attacked = int(verdict.clean.sum())
    batches = -(-attacked // 8)
    assert verdict.backward_images == attacked
    assert verdict.forward_images == 16 + attacked + 8 * batches
    assert verdict.seconds > 0


def test_logits_do_not_depend_on_how_many_other_images_there_are(trained):
    test = trained.splits.test
    whole = predict_logits(trained.model, test, torch.arange(30), 16, CPU)
    assert torch.equal(predict_logits(trained.model, test, torch.arange(3), 16, CPU), whole[:3])
    assert torch.equal(
        clean_correct(trained.model, test, torch.arange(30), 16, CPU), whole.argmax(1) == test.labels[:30]
    )


def test_the_model_returns_in_its_mode_with_its_flags_and_hooks(trained):
    model = deepcopy(trained.model).train()
    model.vit.blocks[0].eval()
    model.vit.head.requires_grad_(True)
    run(trained._replace(model=model), Pgd(PgdConfig(steps=2), THREAT))
    assert model.training
    assert not model.vit.blocks[0].training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["vit.head.weight", "vit.head.bias"]
    assert not model._forward_hooks


def test_dropout_is_off_while_judging(trained):
    model = deepcopy(trained.model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    assert torch.equal(
        run(trained._replace(model=model), Moves(lambda x: x)).clean, run(trained, Moves(lambda x: x)).clean
    )


def test_a_model_that_is_always_wrong_is_not_attacked(trained):
    test = trained.splits.test
    wrong = InMemory(test.take(torch.arange(10)), trained.model(test.take(torch.arange(10))).argmin(1))
    attack = Moves(lambda images: images)
    verdict = judge(trained.model, attack, wrong, torch.arange(10), seed=0, batch_size=4, device=CPU)
    assert attack.given == []
    nothing = judge(trained.model, attack, wrong, torch.arange(0), seed=0, batch_size=4, device=CPU)
    assert len(nothing.correct) == len(nothing.clean) == 0
    assert verdict.robust_accuracy == verdict.clean_accuracy == 0
