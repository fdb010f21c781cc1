"""Nullspace augmentation: where the noise goes, how it is learnt and when that stops, and the loss of two terms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trainables.attention import record_attention
from trainables.config import ModelConfig
from trainables.learner import Learner
from trainables.method import Batch, build_stack, check_stack
from trainables.methods.nullspace import (
    Nullspace,
    NullspaceConfig,
    learn_noise,
    measure_noise,
    noise_on_patches,
    softmax_change,
)
from trainables.registry import find
from trainables.training import Training
from trainables.trial import find_splits
from trainables.vit import build_model

CPU = torch.device("cpu")
TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
pytestmark = pytest.mark.usefixtures("_same_numbers")


def build(**changes):
    config = ModelConfig.model_validate({**TINY, **changes})
    return build_model(config, num_classes=5, channels=1, mean=(0.3,), std=(0.4,)).eval()


def start_of(limit, shape=(1, 16, 48)):
    return (2 * torch.rand(shape) - 1) * limit


def halves(batch):
    return [Batch(*part) for part in zip(batch.images.split(5), batch.targets.split(5), strict=True)]


def by_hand(model, images, noise):
    """The forward pass of timm's documentation, with the noise where the paper's code has it."""
    vit = model.vit
    patches = vit.patch_embed((images - model.mean) / model.std)
    patches = patches + noise.reshape(1, *patches.shape[1:])
    sequence = vit.norm_pre(vit.patch_drop(vit._pos_embed(patches)))
    return vit.forward_head(vit.norm(vit.blocks(sequence)))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",  # registers, LayerScale, positions of patches alone
        "deit_tiny_distilled_patch16_224",
        "test_vit",  # rows and columns of patches apart
        "vit_base_patch16_clip_quickgelu_224",  # a norm before the blocks
        "aimv2_large_patch14_224",  # a norm in the patch embedding
    ],
)
def test_the_noise_is_added_to_the_patches_before_prefix_tokens_and_positions(name):
    model, images, noise = build(name=name), torch.rand(3, 1, 8, 8), start_of(1)
    for parameter in model.parameters():  # fresh scales of 1e-5 would hide everything from the class token
        torch.nn.init.normal_(parameter, std=0.3)
    with noise_on_patches(model, noise):
        noisy = model(images)
    assert torch.allclose(noisy, by_hand(model, images, noise), atol=1e-5)
    assert not torch.allclose(noisy, model(images), atol=1e-2)
    assert torch.allclose(model(images), by_hand(model, images, torch.zeros_like(noise)), atol=1e-5)


def test_the_noise_is_gone_even_after_an_error():
    model = build()
    with pytest.raises(RuntimeError, match="stop"), noise_on_patches(model, start_of(1)):
        raise RuntimeError("stop")
    assert not model.vit.patch_embed._forward_hooks


def test_the_change_of_the_probabilities_is_a_squared_length():
    certain = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 100.0, 0.0], [0.0, 0.0, 0.0]])
    assert softmax_change(other, certain).tolist() == pytest.approx([2, 0])


def test_the_first_step_goes_down_the_mean_distance_of_the_logits(batch, trained):
    """AdamW's first step is the learning rate times the gradient's sign, and the decay of the noise."""
    noise = start_of(0.5).requires_grad_(True)
    distances = (by_hand(trained.model, batch.images, noise) - trained.model(batch.images)).square().sum(1).sqrt()
    (gradient,) = torch.autograd.grad(distances.mean(), noise)
    config = NullspaceConfig(tolerance=0, rounds=1, noise_learning_rate=0.1)
    learnt = learn_noise(trained.model, noise, config, lambda number: iter([[batch]]))
    clear = gradient.abs() > 1e-6
    expected = noise.detach() * (1 - 0.1 * 0.01) - 0.1 * gradient.sign()
    assert float(clear.float().mean()) > 0.9
    assert torch.allclose(learnt.noise[clear], expected[clear], atol=2e-3)
    assert not learnt.noise.requires_grad


def test_learning_stops_before_the_step_on_the_first_batch_that_hardly_changes(batch, trained):
    start = start_of(1e-4)
    config = NullspaceConfig(tolerance=0.01)
    learnt = learn_noise(trained.model, start, config, lambda number: iter([[batch]] * 4))
    assert (learnt.rounds, learnt.steps, learnt.is_tolerable) == (1, 0, True)
    assert torch.equal(learnt.noise, start)


def test_learning_ends_with_the_rounds_where_the_rule_is_never_met(batch, trained):
    asked = []

    def images(number):
        asked.append(number)
        return iter([[batch]] * 4)

    config = NullspaceConfig(tolerance=0, rounds=3)
    learnt = learn_noise(trained.model, start_of(0.5), config, images)
    assert (learnt.rounds, learnt.steps, learnt.is_tolerable) == (3, 12, False)
    assert asked == [0, 1, 2]


def test_the_rule_is_the_mean_change_of_the_batch(batch, trained):
    start = start_of(0.5)
    change, _ = measure_noise(trained.model, start, [batch])
    for tolerance, steps in ((change * 1.001, 0), (change * 0.999, 1)):
        config = NullspaceConfig(tolerance=tolerance, rounds=1)
        assert learn_noise(trained.model, start, config, lambda number: iter([[batch]])).steps == steps


def test_parts_of_a_batch_teach_what_the_whole_teaches(batch, trained):
    """Ten steps, because the first is a sign."""
    config = NullspaceConfig(tolerance=0, rounds=1, limit=0.5)
    start = start_of(0.5)
    whole = learn_noise(trained.model, start, config, lambda number: iter([[batch]] * 10))
    parts = learn_noise(trained.model, start, config, lambda number: iter([halves(batch)] * 10))
    assert torch.allclose(parts.noise, whole.noise, atol=1e-3)
    assert measure_noise(trained.model, start, halves(batch)) == pytest.approx(
        measure_noise(trained.model, start, [batch])
    )


def test_learnt_noise_is_noticed_less_than_itself_permuted_on_other_images(trained):
    """The control: it is the arrangement that was learnt, not the length."""
    splits = trained.splits

    def images(number):
        order = torch.randperm(len(splits.train.labels))
        return ([Batch(splits.train.take(i), splits.train.labels[i])] for i in order[:640].split(64))

    config = NullspaceConfig(tolerance=0.02, rounds=5, noise_learning_rate=0.1)
    learnt = learn_noise(trained.model, start_of(2), config, images)
    permuted = learnt.noise.flatten()[torch.randperm(learnt.noise.numel())].view_as(learnt.noise)
    index = torch.arange(len(splits.validation.labels))
    held = [Batch(splits.validation.take(index), splits.validation.labels)]
    change, kept = measure_noise(trained.model, learnt.noise, held)
    permuted_change, permuted_kept = measure_noise(trained.model, permuted, held)
    assert change < permuted_change / 2
    assert kept > permuted_kept + 0.2


def begun(model, batch, **values):
    method = Nullspace(NullspaceConfig(**values), total_epochs=2)
    return method, method.on_epoch_start(model.train(), 0, lambda key, share=1.0: iter([[batch]]))


def test_the_loss_has_two_terms_on_the_same_images(batch, trained):
    method, _ = begun(trained.model, batch, weight=0.25)
    seen = Batch(batch.images.flip(-1), batch.targets)
    clean, noisy = (
        F.cross_entropy(by_hand(trained.model, seen.images, noise), batch.targets)
        for noise in (torch.zeros(1, 16, 48), method._noise)
    )
    assert float(clean) != pytest.approx(float(noisy))
    assert float(method.loss(trained.model, seen, batch)) == pytest.approx(float(clean + 0.25 * noisy), rel=1e-5)


def test_before_an_epoch_the_model_stays_as_it_is_and_only_the_noise_is_learnt(batch):
    model = build().train()
    model.vit.blocks[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method, figures = begun(model, batch)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert figures["nullspace/noise_norm"] == pytest.approx(float(method._noise.norm()))
    assert figures["nullspace/noise_norm"] == pytest.approx(3 * math.sqrt(16 * 48 / 3), rel=0.1)
    assert figures["nullspace/agreement"] <= 1


def test_every_epoch_begins_with_noise_of_its_own(batch, trained):
    method, _ = begun(trained.model, batch)
    first = method._noise
    method.on_epoch_start(trained.model, 1, lambda key, share=1.0: iter([[batch]]))
    assert not torch.allclose(method._noise, first, atol=0.1)


def test_at_weight_zero_no_random_number_is_drawn_and_nothing_measured(batch, trained):
    state = torch.get_rng_state()
    method, figures = begun(trained.model, batch, weight=0)
    method.loss(trained.model, batch, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert figures == {}
    assert method.notes == []


def test_the_size_of_the_exact_nullspace_is_noted_once(batch, trained):
    method, _ = begun(trained.model, batch)
    method.on_epoch_start(trained.model, 1, lambda key, share=1.0: iter([[batch]]))
    (note,) = method.notes
    assert note.startswith("nullspace: the exact nullspace of the patch embedding is empty: 4 numbers")


def test_penalties_read_the_pass_without_noise(batch, trained, tiny_trial):
    both = build_stack(tiny_trial({"jasmin": {"k": 0}, "nullspace": {}}))
    both.on_epoch_start(trained.model.train(), 0, lambda key, share=1.0: iter([[batch]]))
    trained.model.eval()
    with record_attention(trained.model) as attention:
        both.loss(trained.model, batch, batch)
    with record_attention(trained.model) as plain:
        trained.model(batch.images)
    assert len(attention) == len(plain)
    for ours, expected in zip(attention, plain, strict=True):
        assert torch.equal(ours.probabilities, expected.probabilities)


def test_it_stacks_on_penalties_and_on_adversarial_training_but_not_on_another_loss():
    def reasons(*names):
        return check_stack({name: find("methods", name) for name in names})

    assert reasons("nullspace", "jasmin", "msvp", "adversarial") == []
    (reason,) = reasons("nullspace", "trades")
    assert "both replace the loss" in reason


def test_a_continued_trial_learns_the_same_noise(tiny_trial, tmp_path):
    config = tiny_trial({"nullspace": {"limit": 0.3, "tolerance": 0}})
    whole = Training(config, 3, tmp_path / "whole", device=CPU)
    metrics = [whole.run_epoch(), whole.run_epoch()]
    Training(config, 3, tmp_path / "parts", device=CPU).run_epoch()
    torch.rand(7)
    continued = Training(config, 3, tmp_path / "parts", device=CPU)
    again = continued.run_epoch()
    noises = [training._learner._stack.methods["nullspace"]._noise for training in (whole, continued)]
    assert torch.equal(*noises)
    assert {k: v for k, v in again.items() if "cost" not in k} == {
        k: v for k, v in metrics[1].items() if "cost" not in k
    }
    assert metrics[0]["nullspace/noise_norm"] != metrics[1]["nullspace/noise_norm"]


def test_bfloat16_passes_learn_about_the_same(tiny_trial):
    found = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        config = tiny_trial({"nullspace": {"limit": 0.3}}, training={"precision": precision})
        found.append(Learner(config, 0, find_splits(config), CPU).train_epoch(0)["train/loss"])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[1] != found[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_compiled_blocks_learn_the_same_under_noise(tiny_trial):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        recipe = {"optimizer": "sgd", "learning_rate": 0.01, "compile": compiled}
        config = tiny_trial({"nullspace": {"limit": 0.3}}, training=recipe)
        found.append(Learner(config, 0, find_splits(config), CPU).train_epoch(0))
    assert found[1] == pytest.approx(found[0], rel=1e-3)
