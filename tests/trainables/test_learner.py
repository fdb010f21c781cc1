"""The learner: precision, compilation, and where the images live."""

from __future__ import annotations

import pytest
import torch

from search_spaces.errors import LossDiverged
from trainables.dataset import InMemory, Subset
from trainables.learner import CHECK_STEPS, Learner
from trainables.methods.jasmin import Jasmin
from trainables.trial import find_splits

CPU = torch.device("cpu")


def learner(config, seed=1):
    torch.manual_seed(seed)
    return Learner(config, seed, find_splits(config), CPU)


def test_bfloat16_passes_leave_weights_losses_and_statistics_in_float32(tiny_trial, monkeypatch):
    seen = []
    original = Jasmin.penalty

    def watched(self, model, attention):
        terms = original(self, model, attention)
        seen.append((attention[0].queries.dtype, terms["jasmin"].dtype))
        return terms

    monkeypatch.setattr(Jasmin, "penalty", watched)
    stack = {"jasmin": {"k": 3, "path": "recompute"}, "adversarial": {"steps": 1}}
    exact = learner(tiny_trial(stack)).train_epoch(0)
    low = learner(tiny_trial(stack, training={"precision": "bfloat16"}))
    metrics = low.train_epoch(0)
    assert seen[0] == (torch.float32, torch.float32)
    assert seen[-1] == (torch.bfloat16, torch.float32)
    assert {parameter.dtype for parameter in low.model.parameters()} == {torch.float32}
    assert metrics["train/loss"] == pytest.approx(exact["train/loss"], rel=0.02)
    assert metrics["train/loss"] != exact["train/loss"]


def test_evaluation_is_in_float32_whatever_training_is(tiny_trial):
    low = learner(tiny_trial(training={"precision": "bfloat16"}))
    exact = learner(tiny_trial())
    assert low.accuracy_and_loss(low.splits.validation) == exact.accuracy_and_loss(exact.splits.validation)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
@pytest.mark.parametrize(
    "methods",
    [{}, {"jasmin": {"k": 3}, "adversarial": {"steps": 1}}, {"safer": {"steps": 1, "score_batches": 1}}],
    ids=["plain", "stack", "safer"],
)
def test_compiled_blocks_learn_the_same(tiny_trial, methods):
    """The attention of compiled blocks is still recorded: the penalty is there, and close."""
    recipe = {"optimizer": "sgd", "learning_rate": 0.01, "ema_decay": 0.9}
    plain = learner(tiny_trial(methods, training=recipe))
    compiled = learner(tiny_trial(methods, training={**recipe, "compile": True}))
    expected, found = plain.train_epoch(0), compiled.train_epoch(0)
    assert found == pytest.approx(expected, rel=1e-3)
    assert compiled.kept_model.state_dict().keys() == plain.kept_model.state_dict().keys()
    for name, weights in plain.model.state_dict().items():
        assert torch.allclose(compiled.model.state_dict()[name], weights, rtol=1e-3, atol=1e-4), name


def test_a_loss_that_is_not_finite_is_found_between_two_readings_too(tiny_trial):
    one = learner(tiny_trial(training={"batch_size": 1, "learning_rate": 1e30, "clip_norm": None}))
    assert len(one.splits.train.labels) > CHECK_STEPS
    with pytest.raises(LossDiverged, match=r"is (nan|inf) in epoch 1, step \d+\."):
        one.train_epoch(0)


def test_small_sets_move_to_the_device_as_the_images_that_are_read():
    whole = InMemory(torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2), torch.arange(4))
    part = Subset(whole, torch.tensor([3, 1]))
    moved = part.to(torch.device("meta"))
    assert isinstance(moved, InMemory)
    assert (moved.pixels.device.type, moved.labels.device.type) == ("meta", "meta")
    assert moved.pixels.shape == (2, 3, 2, 2)  # not the other half
    assert part.to(CPU) is part


def test_large_sets_stay_in_the_memory_of_the_host(monkeypatch):
    monkeypatch.setattr("trainables.dataset.DEVICE_BYTES", 10)
    whole = InMemory(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4))
    assert whole.to(torch.device("meta")) is whole
