"""The probe: what one training and one attack of a configuration take of a device at most, by doing both for real.

Each measurement belongs into a process of its own, which then ends: nothing is cleaned up here, and what another
measurement left behind would count as this one's. Weights are random, because memory does not depend on their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from search_spaces.config import Config
from search_spaces.errors import DoesNotFit, SweepError, ran_out_of_memory
from trainables.appended_tokens import backbone_of
from trainables.attack import Threat, find_attack
from trainables.config import TrialConfig, attack_config_type
from trainables.dataset import Images, InMemory, Splits, Subset
from trainables.gpu_memory import Meter, find_gpu
from trainables.gpu_peak import Peak, attack_remedy, needed_bytes, training_remedy, whole_device_too_small
from trainables.learner import Learner
from trainables.method import build_stack
from trainables.monitor import Monitor
from trainables.randomness import Randomness
from trainables.training import default_device
from trainables.trial import find_splits, new_model, wrap_model
from trainables.verdicts import PACKED_BATCHES, judge, judge_clean

__all__ = ["DoesNotFit", "Peak", "ProbedStage", "measure_attack", "measure_training", "needed_bytes"]

DRAWN_BATCHES = 16
"""Batches that methods may draw from before an epoch (our choice: the most that SAFER's searched settings hold at
once); an epoch of more would take minutes and hold no more."""
FEWER = {"steps": 2, "queries": 2, "restarts": 1, "targets": 1}
"""Fields that say how often the same is done, with what is enough for the peak: from the second step on both gradients
and what they have led to are there."""
LEAD = 10.0
"""By so much the true class leads while attacks are measured (our choice), so that no image falls and leaves: an attack
takes most while all images stand."""
PROBED_RATE = 1e-6
"""Learning rate of the probe (our choice): random weights stay finite."""
ConfigT = TypeVar("ConfigT", bound=Config)


class _Near(Subset):
    """Some images of a set, which stay where the whole set is: a few of a set too large for the device would not."""

    def to(self, device: torch.device) -> Images:
        return self


class ProbedStage(Protocol):
    """What is read of a planned stage (`sweeps.records.PlannedStage` is one)."""

    @property
    def split(self) -> str: ...
    @property
    def attack(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def threat(self) -> Mapping[str, Any]: ...
    @property
    def images(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def keep_images(self) -> bool: ...
    @property
    def surrogate(self) -> Literal["backbone"] | None: ...


def measure_training(
    config: TrialConfig, seed: int = 0, *, device: torch.device | None = None, meter: Meter | None = None
) -> Peak:
    """Return the peak of a trial's training: two steps, a validation batch, and what the methods and the monitor do.

    The images that training keeps on the device are there. Two steps, because the optimizer's state comes with the
    first and is there at the peak of the second; one as in epoch 1, one as in the last, where every warm-up is over.
    Attacks inside take two steps, and methods draw at most `DRAWN_BATCHES` batches.

    Args:
        device: defaults to the first GPU, or the CPU if there is none.
        meter: watches the device; needed on a CPU, which has none.

    Raises: DoesNotFit, with what helps, if the device is too small; DataError, ModelError.
    """
    place = device or default_device()
    short = _shortened(config)
    recipe = short.training
    splits = find_splits(short)
    watch = meter or _meter(place)
    remedy = training_remedy(recipe.batch_size, recipe.micro_batch)
    what = f"a training of {config.label} with batches of {recipe.batch_size} images"
    with _whole_device(watch, what, remedy), watch.watching(), Randomness(seed).active():
        near = splits.to(place)
        few = _first_images(near, DRAWN_BATCHES * recipe.batch_size)
        learner = Learner(short, seed, few, place)
        for epoch in (0, recipe.epochs - 1):
            learner.train_epoch(epoch, steps=1)
        learner.accuracy_and_loss(_first(few.validation, recipe.batch_size))
        learner.measure()
        if short.monitor.images:
            Monitor(short.monitor, few, recipe.batch_size, place).measure(learner.kept_model)
    return watch.peak()


def measure_attack(
    config: TrialConfig,
    stage: ProbedStage,
    *,
    device: torch.device | None = None,
    meter: Meter | None = None,
) -> Peak:
    """Return the peak of an attack stage on a trial's model: its largest unit of images, clean and attacked.

    The model is wrapped by the trial's methods, as it is when it is judged. An attack takes two steps, from one start,
    at one target. Args: as in `measure_training`.

    Raises: DoesNotFit, with what helps, if the device is too small; AttackError if the attack cannot run on the model.
    """
    place = device or default_device()
    splits = find_splits(config)
    images = splits.validation if stage.split == "validation" else splits.test
    count = min(stage.images, len(images.labels), PACKED_BATCHES * stage.batch_size)
    watch = meter or _meter(place)
    what = f"{stage.attack} with batches of {stage.batch_size} images"
    remedy = attack_remedy(stage.batch_size)
    with _whole_device(watch, what, remedy), watch.watching(), Randomness(stage.seed).active():
        model = _judged_model(config, splits, place)
        ids = torch.arange(count)
        unit = InMemory(images.take(ids).cpu(), torch.zeros(count, dtype=torch.long))
        settings = attack_config_type(stage.attack).model_validate(dict(stage.config))
        attack = find_attack(stage.attack, _fewer(settings), Threat(**stage.threat))
        size = stage.batch_size
        with _leading(model):
            judge_clean(model, unit, ids, batch_size=size, device=place)
            seen = None if stage.surrogate is None else backbone_of(model)
            judge(
                model,
                attack,
                unit,
                ids,
                seed=stage.seed,
                batch_size=size,
                device=place,
                keep=stage.keep_images,
                surrogate=seen,
            )
    return watch.peak()


def _shortened(config: TrialConfig) -> TrialConfig:
    """Return the configuration with what only takes time cut short, without weights to load."""
    return _unloaded(config).model_copy(
        update={
            "methods": {name: _fewer(section) for name, section in config.methods.items()},
            "training": config.training.model_copy(update={"learning_rate": PROBED_RATE, "final_learning_rate": 0.0}),
            "monitor": _fewer(config.monitor).model_copy(
                update={"images": min(config.monitor.images, PACKED_BATCHES * config.training.batch_size)}
            ),
        }
    )


def _unloaded(config: TrialConfig) -> TrialConfig:
    """Return the configuration with random weights instead of loaded ones and of a parent's."""
    model = config.model.model_copy(update={"pretrained": False, "weights": None})
    return config.model_copy(update={"model": model, "start_from": None})


def _fewer(config: ConfigT) -> ConfigT:
    """Return a configuration that does the same less often; numbers that are left to a default are given."""
    there = {name: getattr(config, name) for name in FEWER if name in type(config).model_fields}
    return config.model_copy(
        update={name: FEWER[name] if value is None else min(value, FEWER[name]) for name, value in there.items()}
    )


def _first(images: Images, count: int) -> Images:
    return _Near(images, torch.arange(min(count, len(images.labels)), device=images.labels.device))


def _first_images(splits: Splits, count: int) -> Splits:
    """Return the splits with so many images to learn from and to validate on, where they are now."""
    chosen = None if splits.selection is None else _first(splits.selection, count)
    return replace(
        splits, train=_first(splits.train, count), validation=_first(splits.validation, count), selection=chosen
    )


def _judged_model(config: TrialConfig, splits: Splits, device: torch.device) -> nn.Module:
    """Return a model as `load_final` returns it, with random weights."""
    fresh = new_model(_unloaded(config), splits).to(device)
    model = wrap_model(build_stack(config), fresh, config, splits)
    return model.eval().requires_grad_(False)


@contextmanager
def _leading(model: nn.Module) -> Iterator[None]:
    """Let class 0 lead in everything that the model says."""

    def lift(_model: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        first = torch.zeros_like(logits)
        first[:, 0] = logits.detach().amax(1) - logits.detach()[:, 0] + LEAD
        return logits + first

    handle = model.register_forward_hook(lift)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _whole_device(meter: Meter, what: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory into DoesNotFit: the probe has the whole device."""
    try:
        yield
    except (RuntimeError, SweepError) as error:  # as in `Guard.explaining`
        if not ran_out_of_memory(f"{type(error).__name__}: {error}"):
            raise
        text = whole_device_too_small(what, meter.gpu.kind, meter.gpu.total, remedy)
        raise DoesNotFit(text) from error


def _meter(device: torch.device) -> Meter:
    gpu = find_gpu(device)
    if gpu is None:
        raise ValueError(f"the memory of a {device.type} is not measured; give a meter.")
    return Meter(gpu)
