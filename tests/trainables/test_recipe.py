"""The shared recipe: order, augmentation, targets, decay and learning rate."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from search_spaces.errors import DataError, ModelError
from trainables import recipe
from trainables.config import ModelConfig, TrainingConfig
from trainables.dataset import InMemory
from trainables.vit import build_model


def images_of(count):
    return InMemory(torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).float() / count, torch.arange(count) % 3)


def config(**values):
    return TrainingConfig(**{"epochs": 4, "batch_size": 8, "learning_rate": 1.0, **values})


def test_an_epoch_shows_every_image_once_with_its_label():
    data = images_of(21)
    batches = list(recipe.epoch_batches(data, config(), seed=1, epoch=0))
    assert [len(images) for images, _ in batches] == [8, 8, 5]
    shown = torch.cat([images[:, 0, 0, 0] for images, _ in batches]) * 21
    assert sorted(shown.round().int().tolist()) == list(range(21))
    assert torch.equal(torch.cat([labels for _, labels in batches]), shown.round().long() % 3)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [images[:, 0, 0, 0].tolist() for images, _ in recipe.epoch_batches(images_of(40), config(), seed, epoch)]

    first = order(1, 2)
    torch.manual_seed(99)
    assert order(1, 2) == first
    assert order(1, 3) != first
    assert order(2, 2) != first


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    rates = [recipe.learning_rate(config(warmup_epochs=1), step, 10) for step in range(40)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[10] == 1
    assert rates[25] == pytest.approx(0.5)
    assert 0 < rates[39] < 0.01
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert recipe.learning_rate(config(schedule="constant"), 39, 10) == 1
    assert recipe.learning_rate(config(warmup_epochs=4), 39, 10) == 1


def test_the_cosine_may_end_above_zero():
    """SpecFormer's: 1e-4 + (peak − 1e-4)(1 + cos πt)/2."""
    rates = [recipe.learning_rate(config(final_learning_rate=0.2), step, 10) for step in range(40)]
    assert rates == pytest.approx([0.2 + 0.8 * (1 + np.cos(np.pi * step / 40)) / 2 for step in range(40)])
    with pytest.raises(ValueError, match="must not exceed learning_rate"):
        config(final_learning_rate=2.0)


def test_a_smaller_last_batch_may_be_left_out():
    data = images_of(21)
    batches = list(recipe.epoch_batches(data, config(drop_last=True), seed=1, epoch=0))
    assert [len(images) for images, _ in batches] == [8, 8]
    assert recipe.steps_per_epoch(21, config(drop_last=True)) == 2
    assert recipe.steps_per_epoch(21, config()) == 3
    with pytest.raises(DataError, match="drop_last leaves nothing of 7"):
        recipe.steps_per_epoch(7, config(drop_last=True))


@dataclass(frozen=True)
class Slow:
    """Images that are read on demand, each batch by the thread that asked."""

    images: InMemory
    readers: set
    from_files = True

    @property
    def labels(self):
        return self.images.labels

    def take(self, index):
        self.readers.add(threading.current_thread().name)
        if bool((index == 13).any()) and "broken" in self.readers:
            raise DataError("image 13 is broken.")
        return self.images.take(index)


def test_files_are_read_ahead_by_a_thread_and_give_the_same_batches():
    slow = Slow(images_of(21), set())
    ahead = list(recipe.epoch_batches(slow, config(), seed=1, epoch=0))
    direct = list(recipe.epoch_batches(images_of(21), config(), seed=1, epoch=0))
    for (images, labels), (same_images, same_labels) in zip(ahead, direct, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert threading.current_thread().name not in slow.readers


def test_an_error_of_the_reading_thread_arrives():
    with pytest.raises(DataError, match="13 is broken"):
        list(recipe.epoch_batches(Slow(images_of(21), {"broken"}), config(), seed=1, epoch=0))


def test_layer_decay_scales_the_rate_block_by_block():
    tiny = ModelConfig(img_size=8, patch_size=2, embed_dim=48, depth=3, num_heads=3)
    model = build_model(tiny, num_classes=10, channels=1, mean=(0.0,), std=(1.0,))
    optimizer = recipe.make_optimizer(model, config(layer_decay=0.5))
    recipe.set_learning_rate(optimizer, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    expected = {
        "vit.patch_embed.proj.weight": 4,
        "vit.pos_embed": 4,
        "vit.cls_token": 4,
        "vit.blocks.0.mlp.fc1.bias": 3,
        "vit.blocks.1.attn.qkv.weight": 2,
        "vit.blocks.2.norm1.weight": 1,
        "vit.norm.weight": 1,
        "vit.head.bias": 0,
    }
    for name, above in expected.items():
        assert rates[name] == pytest.approx(0.1 * 0.5**above), name


def test_without_layer_decay_all_layers_learn_at_the_same_rate():
    optimizer = recipe.make_optimizer(torch.nn.Linear(2, 2), config())
    recipe.set_learning_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    with pytest.raises(ModelError, match="layer_decay needs"):
        recipe.make_optimizer(torch.nn.Linear(2, 2), config(layer_decay=0.5))


def test_everything_may_be_decayed():
    groups = recipe.make_optimizer(torch.nn.Linear(2, 2), config(decay_everything=True, weight_decay=0.3)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.3)]


def test_weight_decay_spares_biases_norms_positions_and_tokens():
    tiny = ModelConfig(img_size=8, patch_size=2, embed_dim=48, depth=3, num_heads=3)
    model = build_model(tiny, num_classes=10, channels=1, mean=(0.0,), std=(1.0,))
    optimizer = recipe.make_optimizer(model, config(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["vit.blocks.0.attn.qkv.weight"] == found["vit.patch_embed.proj.weight"] == 0.3
    spared = ("vit.pos_embed", "vit.cls_token", "vit.norm.weight", "vit.head.bias", "vit.blocks.1.attn.qkv.bias")
    assert [found[name] for name in spared] == [0.0] * 5


@pytest.mark.parametrize("count", [8, 7, 1])
def test_mixing_keeps_targets_probabilities_even_when_the_batch_is_odd(count):
    np.random.seed(0)
    settings = config(mixup=1.0, cutmix=1.0, label_smoothing=0.1)
    images = torch.rand(count, 1, 4, 4)
    mixup = recipe.make_mixup(settings, 3)
    batch = recipe.make_batch(images.clone(), torch.arange(count) % 3, settings, mixup, 3)
    assert batch.images.shape == images.shape
    assert torch.allclose(batch.targets.sum(1), torch.ones(count))
    if count % 2:
        assert torch.equal(batch.images[-1], images[-1])
        assert float(batch.targets[-1].max()) == pytest.approx(0.9 + 0.1 / 3)
    if count > 1:
        assert not torch.equal(batch.images, images)


def test_without_mixing_or_smoothing_targets_stay_class_indices():
    labels = torch.arange(4)
    batch = recipe.make_batch(torch.rand(4, 1, 4, 4), labels, config(), None, 4)
    assert batch.targets is labels
    smooth = recipe.make_batch(torch.rand(4, 1, 4, 4), labels, config(label_smoothing=0.2), None, 4)
    assert torch.allclose(smooth.targets.diag(), torch.full((4,), 0.85))


def test_a_random_crop_is_a_window_of_the_padded_image():
    images = torch.rand(200, 2, 5, 5)
    cropped = recipe.augment(images, config(crop_padding=1))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    shifts = set()
    for original, result in zip(padded, cropped, strict=True):
        windows = {(top, left): original[:, top : top + 5, left : left + 5] for top in range(3) for left in range(3)}
        found = [place for place, window in windows.items() if torch.equal(window, result)]
        assert found
        shifts.update(found)
    assert len(shifts) == 9


def test_a_flip_mirrors_about_half_of_the_images():
    images = torch.rand(400, 1, 2, 3)
    flipped = recipe.augment(images, config(flip=True))
    mirrored = [torch.equal(b, a.flip(-1)) for a, b in zip(images, flipped, strict=True)]
    same = [torch.equal(b, a) for a, b in zip(images, flipped, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250
