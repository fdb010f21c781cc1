"""Verdicts: the evaluator trusts no attack."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from search_spaces.errors import AttackError
from trainables.ascent import Batched, loss_gradient
from trainables.attack import Attack, Threat
from trainables.attacks.apgd_ce import ApgdCe, ApgdCeConfig
from trainables.attacks.apgd_t import ApgdT, ApgdTConfig
from trainables.attacks.fgsm import Fgsm
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.canonical_passes import CANONICAL_BATCH
from trainables.config import AttackConfig
from trainables.dataset import InMemory
from trainables.verdicts import FLAT, PACKED_BATCHES, clean_correct, judge, judge_clean, predict_logits, units
from trainables.verified import inside

CPU = torch.device("cpu")
THREAT = Threat(norm="linf", epsilon=0.1)
FEW = torch.arange(30)


class Moves(Attack[AttackConfig]):
    """Does to the images what a test asks for, and remembers what it was given."""

    def __init__(self, change, threat=THREAT):
        super().__init__(AttackConfig(), threat)
        self.change = change
        self.given = []

    def perturb(self, model, images, labels, seed, image_ids):
        self.given.append((image_ids.clone(), labels.clone(), seed))
        return self.change(images)


class Offers(Attack[AttackConfig]):
    """Has a `run` of its own, which does what a test asks for."""

    def __init__(self, act):
        super().__init__(AttackConfig(), THREAT)
        self.act = act
        self.given = []

    def run(self, model, worst, seed, image_ids):
        self.given.append((model, image_ids))
        self.act(model, worst)


def run(trained, attack, ids=FEW, batch_size=8, **options):
    return judge(trained.model, attack, trained.splits.test, ids, seed=3, batch_size=batch_size, device=CPU, **options)


@pytest.fixture(scope="module")
def good(trained):
    """The correctly classified ones among the first test images."""
    return FEW[clean_correct(trained.model, trained.splits.test, FEW, 8, CPU)]


def test_an_attack_that_does_nothing_leaves_each_image_as_the_model_sees_it(trained):
    verdict = run(trained, Moves(lambda images: images))
    assert torch.equal(verdict.correct, clean_correct(trained.model, trained.splits.test, FEW, 8, CPU))
    assert 0 < int(verdict.correct.sum()) < 30
    assert verdict.mismatches == verdict.flat == 0


def test_every_image_is_attacked_once_with_its_label_and_position(trained):
    attack = Moves(lambda images: images)
    run(trained, attack)
    given = torch.cat([ids for ids, _, _ in attack.given])
    assert given.tolist() == FEW.tolist()
    assert torch.equal(torch.cat([labels for _, labels, _ in attack.given]), trained.splits.test.labels[given])
    assert {seed for _, _, seed in attack.given} == {3}


def test_an_attack_that_packs_its_survivors_gets_all_images_at_once_and_any_other_a_batch(trained):
    packs = Offers(lambda model, worst: None)
    run(trained, packs)
    ((model, ids),) = packs.given
    assert ids.tolist() == FEW.tolist()
    assert isinstance(model, Batched)
    assert model.batch_size == 8
    plain = Moves(lambda images: images)
    run(trained, plain)
    assert [len(ids) for ids, _, _ in plain.given] == [8, 8, 8, 6]


def test_survivors_are_packed_into_full_batches(trained):
    sizes = []

    def climb_with_twelve(model, worst):
        rows = worst.standing[1::2][:12]  # some of each batch in which they came
        loss_gradient(model, worst.origin[rows], worst.labels[rows])

    handle = trained.model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    try:
        run(trained, Offers(climb_with_twelve))
    finally:
        handle.remove()
    assert sizes == [1, 6, 6, CANONICAL_BATCH]  # a look at one image, the ascent, the evaluator's own pass


def test_units_are_as_few_and_as_equal_as_can_be():
    ids = torch.arange(1000, 1133)
    parts = units(ids, 8)
    assert torch.equal(torch.cat(parts), ids)
    assert [len(part) for part in parts] == [27, 27, 27, 26, 26]
    assert max(map(len, parts)) <= PACKED_BATCHES * 8
    assert [len(part) for part in units(ids, 8, batches=100)] == [133]
    assert units(ids[:0], 8) == []


def test_positions_may_be_any_part_of_the_split_in_any_order(trained):
    ids = torch.tensor([25, 3, 17])
    everything = run(trained, Fgsm(Fgsm.Config(), THREAT))
    some = run(trained, Fgsm(Fgsm.Config(), THREAT), ids)
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


def test_images_inside_are_told_apart_from_those_outside_one_by_one():
    origin = torch.full((5, 1, 4, 4), 0.5)
    moved = origin.clone()
    moved[1] += 0.1 + 5e-7
    moved[2] += 0.11
    moved[3, 0, 0, 0] = torch.nan
    moved[4] = 1 + 5e-7
    assert inside(moved, origin, THREAT).tolist() == [True, True, False, False, False]
    assert inside(moved, moved.clone(), THREAT).tolist() == [True, True, True, False, True]
    assert inside(moved, origin, Threat(norm="l2", epsilon=0.43)).tolist() == [True, True, False, False, False]


def test_an_attack_that_alters_what_it_is_judged_by_gains_nothing(trained):
    def cheat(model, worst):
        worst.origin.fill_(0)
        worst.labels.fill_(0)
        worst.images.fill_(0)

    with pytest.raises(AttackError, match="further than ε"):
        run(trained, Offers(cheat))


def test_an_image_falls_only_in_a_pass_of_the_evaluators_own(trained):
    def boast(model, worst):
        worst.lead.fill_(5)

    verdict = run(trained, Offers(boast))
    assert torch.equal(verdict.correct, clean_correct(trained.model, trained.splits.test, FEW, 8, CPU))
    assert torch.equal(verdict.mismatched, verdict.correct)
    assert verdict.mismatches == int(verdict.correct.sum())


def test_what_an_attack_says_nothing_of_is_no_mismatch(trained, good):
    def modest(model, worst):
        worst.lead[:10] = -0.5
        worst.lead[10:] = -torch.inf

    verdict = run(trained, Offers(modest), ids=torch.cat([good[:15], FEW[~torch.isin(FEW, good)]]))
    assert verdict.mismatches == 0


def test_a_claim_to_have_failed_on_a_fallen_image_is_a_mismatch(trained):
    wrong = FEW[~clean_correct(trained.model, trained.splits.test, FEW, 8, CPU)]

    def modest(model, worst):
        worst.lead.fill_(-0.5)

    assert run(trained, Offers(modest), ids=wrong).mismatches == len(wrong) > 0


def test_attacks_of_our_own_claim_what_the_evaluator_finds(trained, good):
    for build in ATTACKS.values():
        verdict = run(trained, build(4), ids=good)
        assert verdict.mismatches == 0
        assert 0 < int(verdict.correct.sum()) < len(good)


def test_images_without_a_gradient_are_counted_and_said(trained, good):
    class Saturated(nn.Module):
        """Clips its logits, so that the cross-entropy of most images is exactly zero in float32."""

        def forward(self, images):
            return trained.model(images) * 1e6

    def look(model, worst):
        rows = worst.standing
        worst.note_gradient(rows, loss_gradient(model, worst.origin[rows], worst.labels[rows])[1])

    test = trained.splits.test
    verdict = judge(Saturated(), Offers(look), test, good, seed=0, batch_size=8, device=CPU)
    assert verdict.flat == int(verdict.flat_start.sum()) > 0
    assert verdict.warnings == (FLAT,)
    assert run(trained, Offers(look), ids=good).warnings == ()


def test_what_an_attack_has_to_say_is_kept_once(trained):
    class Warns(Moves):
        def perturb(self, model, images, labels, seed, image_ids):
            warnings.warn("gradients vanish", stacklevel=1)
            return images

    verdict = run(trained, Warns(None))
    assert verdict.warnings == ("gradients vanish",)


def test_passes_are_counted_by_image(trained):
    def three_passes(model, worst):
        loss_gradient(model, worst.origin, worst.labels)
        with torch.no_grad():
            model(worst.origin[:9])

    verdict = run(trained, Offers(three_passes), ids=torch.arange(20))
    looks, own = 1, CANONICAL_BATCH
    assert verdict.backward_images == 20
    assert verdict.forward_images == looks + 20 + 9 + own
    assert verdict.seconds > 0
    assert verdict.costs == {"forwards": verdict.forward_images, "backwards": 20, "seconds": verdict.seconds}


def test_what_became_of_the_fallen_is_kept_as_it_was_confirmed(trained, good):
    attack = Pgd(PgdConfig(steps=6), THREAT)
    kept = run(trained, attack, ids=good, keep=True)
    fallen = good[~kept.correct]
    assert kept.attacked.dtype == torch.float32
    assert len(kept.attacked) == len(fallen) > 0
    assert bool(inside(kept.attacked, trained.splits.test.take(fallen), THREAT).all())
    for image, label in zip(kept.attacked, trained.splits.test.labels[fallen], strict=True):
        assert int(trained.model(image[None]).argmax()) != label
    assert run(trained, attack, ids=good).attacked is None


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
    still = Moves(lambda x: x)
    assert torch.equal(run(trained._replace(model=model), still).correct, run(trained, still).correct)


def test_where_there_is_nothing_to_judge_nothing_happens(trained):
    attack = Moves(lambda images: images)
    verdict = run(trained, attack, ids=FEW[:0], keep=True)
    assert attack.given == []
    assert len(verdict.correct) == verdict.forward_images == verdict.mismatches == 0
    clean = judge_clean(trained.model, trained.splits.test, FEW[:0], batch_size=8, device=CPU)
    assert len(clean.correct) == clean.forward_images == 0


def judged_both_ways(model, images, ids=FEW):
    yield lambda: judge(model, Moves(lambda x: x), images, ids, seed=0, batch_size=8, device=CPU)
    yield lambda: judge_clean(model, images, ids, batch_size=8, device=CPU)


def test_pixels_off_the_scale_are_refused_before_anything_is_attacked(trained):
    test = trained.splits.test
    for value in (1.5, -0.1, torch.nan):
        pixels = test.take(FEW)
        pixels[11, 0, 2, 2] = value
        for call in judged_both_ways(trained.model, InMemory(pixels, test.labels[FEW])):
            with pytest.raises(AttackError, match=r"image 11 of the split.*allowed: \[0, 1\]"):
                call()


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_that_the_model_has_no_logit_for_is_refused(label, trained):
    test = trained.splits.test
    labels = test.labels[FEW].clone()
    labels[7] = label
    for call in judged_both_ways(trained.model, InMemory(test.take(FEW), labels)):
        with pytest.raises(AttackError, match=rf"image 7 of the split has the label {label}; the model has 10 logits"):
            call()


def test_a_model_that_returns_nan_is_said_to(trained):
    model = deepcopy(trained.model)
    model.vit.head.bias.data[0] = torch.nan
    for call in judged_both_ways(model, trained.splits.test):
        with pytest.raises(AttackError, match="NaN among the logits of image 0"):
            call()


def test_a_model_that_returns_something_else_than_logits_is_said_to(trained):
    class Maps(nn.Module):
        def forward(self, images):
            return images

    for call in judged_both_ways(Maps(), trained.splits.test):
        with pytest.raises(AttackError, match=r"expected logits \(images, classes\)"):
            call()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
)
def test_too_little_memory_says_which_knobs_there_are(error, trained):
    def overflow(*_):
        raise error

    with pytest.raises(
        AttackError, match=r"batch_size 8 on cpu; lower attacks\.batch_size.*evaluation\.gpus"
    ) as caught:
        run(trained, Offers(overflow))
    assert caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match="shapes differ"):  # any other error stays what it is
        run(trained, Offers(lambda *_: exec("raise RuntimeError('shapes differ')")))


def test_the_clean_verdict_is_the_models_own_answer(trained):
    verdict = judge_clean(trained.model, trained.splits.test, FEW, batch_size=8, device=CPU)
    logits = trained.model(trained.splits.test.take(FEW))
    assert torch.equal(verdict.correct, logits.argmax(1) == trained.splits.test.labels[:30])
    spread = [float(row.max() - row.min()) for row in logits]
    assert verdict.logit_scales.tolist() == pytest.approx(spread, rel=1e-4)
    assert verdict.warnings == ()
    assert verdict.forward_images == 4 * 8 + 6 * 8  # four batches, and six looks at the first eight images
    assert verdict.seconds > 0


def test_doubts_about_the_model_come_with_the_clean_verdict(trained):
    class Probabilities(nn.Module):
        def forward(self, images):
            return trained.model(images).softmax(1)

    verdict = judge_clean(Probabilities(), trained.splits.test, FEW, batch_size=8, device=CPU)
    assert len(verdict.warnings) == 1
    assert "probabilities" in verdict.warnings[0]


ATTACKS = {
    "pgd": lambda steps: Pgd(PgdConfig(steps=steps, restarts=2), Threat(epsilon=0.04)),
    "apgd_ce": lambda steps: ApgdCe(ApgdCeConfig(steps=steps), Threat(epsilon=0.04)),
    "apgd_t": lambda steps: ApgdT(ApgdTConfig(steps=steps), Threat(epsilon=0.04)),
}


def survivors(model, images, attack, ids, batch_size):
    """Who withstands, image by image, judged in units of that batch size."""
    verdicts = [
        judge(model, attack, images, unit, seed=0, batch_size=batch_size, device=CPU) for unit in units(ids, batch_size)
    ]
    return dict(
        zip(
            torch.cat([verdict.ids for verdict in verdicts]).tolist(),
            torch.cat([verdict.correct for verdict in verdicts]).tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("key", ATTACKS)
def test_in_float64_no_verdict_depends_on_units_order_and_batch_size(key, trained, good):
    model = deepcopy(trained.model).double()
    images = InMemory(trained.splits.test.take(FEW).double(), trained.splits.test.labels[FEW])
    attack = ATTACKS[key](4)
    expected = survivors(model, images, attack, good, 32)
    shuffled = good[torch.randperm(len(good), generator=torch.Generator().manual_seed(0))]
    assert 0 < sum(expected.values()) < len(good)
    assert survivors(model, images, attack, shuffled, 7) == expected
    assert survivors(model, images, attack, good.flip(0)[:5], 1).items() <= expected.items()


@pytest.mark.slow
def test_in_float32_hardly_a_verdict_depends_on_units_order_and_batch_size(trained):
    pairs = differing = 0
    for images in (trained.splits.validation, trained.splits.test):
        ids = torch.arange(len(images.labels))
        ids = ids[clean_correct(trained.model, images, ids, 64, CPU)]
        for build in ATTACKS.values():
            expected = survivors(trained.model, images, build(10), ids, 256)
            others = []
            for batch_size in (1, 7, 32):
                order = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(batch_size))]
                others.append(survivors(trained.model, images, build(10), order, batch_size))
            pairs += len(expected)
            differing += sum(any(other[image] != stands for other in others) for image, stands in expected.items())
    print(f"{differing} of {pairs} pairs of image and attack have verdicts that depend on the batch size")
    assert pairs >= 1000
    assert differing <= pairs / 1000


def other_model(trained):
    """The model with noise on its weights: it judges otherwise, but not at random."""
    other = deepcopy(trained.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return other


def test_an_attack_on_a_surrogate_takes_all_its_steps_there_and_the_model_judges(trained, good):
    other, config, threat = other_model(trained), PgdConfig(steps=4), Threat(epsilon=0.03)
    verdict = run(trained, Pgd(config, threat), good, surrogate=other, keep=True)
    origin, labels = trained.splits.test.take(good), trained.splits.test.labels[good]
    images, best, furthest = Pgd(config, threat)._start(origin, good.tolist(), 3, 0, 0.03), origin.clone(), {}
    for _ in range(5):
        logits, gradient = loss_gradient(other, images, labels)
        for row, (own, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
            lead = max(value for k, value in enumerate(own) if k != label) - own[label]
            if lead > furthest.get(row, float("-inf")):
                furthest[row], best[row] = lead, images[row]
        images = (images + 2.5 * 0.03 / 4 * gradient.sign()).clamp(origin - 0.03, origin + 0.03).clamp(0, 1)
    with torch.no_grad():
        expected = trained.model(best).argmax(1) == labels
    assert torch.equal(verdict.correct, expected)
    torch.testing.assert_close(verdict.attacked, best[~expected])
    assert 0 < int(verdict.correct.sum()) < len(good)
    assert bool(inside(verdict.attacked, origin[~expected], threat).all())
    assert verdict.backward_images == 4 * len(good)
    assert verdict.mismatches == 0


def test_a_surrogate_that_is_the_model_itself_changes_nothing(trained, good):
    plain, same = (
        run(trained, Pgd(PgdConfig(steps=4), THREAT), good, keep=True, **more)
        for more in ({}, {"surrogate": trained.model})
    )
    assert torch.equal(same.correct, plain.correct)
    assert torch.equal(same.attacked, plain.attacked)
    assert (same.forward_images, same.backward_images) == (plain.forward_images, plain.backward_images)


def test_both_models_come_back_in_their_modes_and_flags(trained, good):
    other = other_model(trained).train().requires_grad_(True)
    run(trained, Fgsm(Fgsm.Config(), THREAT), good, surrogate=other)
    assert all(module.training for module in other.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in other.parameters())
