"""Classes of trainings and attacks that take as much memory of a device as each other. Pure.

What decides it: the model, its image size, the methods with what they choose by name (not their numbers), the images in
one pass, precision, compilation, optimizer and moving average. Numbers of a method, as steps or weights, change no
tensor's size; where one does, the first training that runs out of memory teaches its class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from search_spaces.config import canonical_json
from search_spaces.domains import thin
from search_spaces.space import Space
from sweeps.config import SweepConfig
from sweeps.records import PlannedStage
from trainables.config import MethodConfig, ModelConfig, TrainingConfig, TrialConfig

MOST_CLASSES = 32
"""Measured before a sweep starts; of more they are chosen evenly (our choice: one takes some seconds)."""
NO_MEMORY = ("drop_path", "pretrained", "weights", "resampling")
"""Fields of a model that say nothing about the size of its tensors."""
T = TypeVar("T")


@dataclass(frozen=True)
class MemoryClass:
    """What takes alike much memory."""

    label: str
    """For people: "jasmin, 128 images"."""
    parts: str
    """Canonical JSON of all that decides it, but the images."""
    images: int
    """In one pass through the model."""

    def covers(self, other: MemoryClass) -> bool:
        """Return whether the other one needs no more than this: the same with as many images or fewer."""
        return self.parts == other.parts and self.images >= other.images


def training_class(config: TrialConfig) -> MemoryClass:
    """Return the class of a trial's training. Parents are left out: a training takes the same with any weights."""
    training = config.training
    images = training.batch_size if training.micro_batch is None else min(training.micro_batch, training.batch_size)
    parts = {"model": _model(config.model), "methods": _methods(config), "training": _recipe(training)[1:]}
    names = "+".join(_named(name, method) for name, method in config.methods.items()) or "plain"
    compiled = ", compiled" if training.compile else ""
    label = f"{names}, {config.model.img_size} px, {images} images, {training.precision}{compiled}"
    return MemoryClass(label, canonical_json(parts), images)


def attack_class(config: TrialConfig, stage: PlannedStage) -> MemoryClass:
    """Return the class of an attack on a trial's model."""
    attack = {"attack": stage.attack, "config": dict(stage.config), "surrogate": stage.surrogate}
    parts = {"model": _model(config.model), "methods": list(config.methods), **attack}
    label = f"{stage.label} on {'+'.join(config.methods) or 'plain'}, {stage.batch_size} images"
    return MemoryClass(label, canonical_json(parts), stage.batch_size)


def attack_classes(
    members: Iterable[TrialConfig], stages: Iterable[PlannedStage]
) -> dict[MemoryClass, tuple[TrialConfig, PlannedStage]]:
    """Return classes of attacks, each with one member of it: every attack of a plan on the first model, and the first
    attack on every other one, because what an attack adds to a model's passes hardly depends on the model."""
    models = _different(members, lambda config: [_model(config.model), list(config.methods)])
    attacks = _different(stages, lambda stage: [stage.attack, dict(stage.config), stage.surrogate, stage.batch_size])
    pairs = [(models[0], stage) for stage in attacks] + [
        (model, stage) for model in models[1:] for stage in attacks[:1]
    ]
    return {attack_class(model, stage): (model, stage) for model, stage in pairs}


def classes_of(config: SweepConfig) -> dict[MemoryClass, TrialConfig]:
    """Return the classes of the trainings that a sweep may propose, parents first, each with one member of it."""
    found: dict[MemoryClass, TrialConfig] = {}
    for member in itertools.chain((parent.config for parent in config.trained_parents), _members(config)):
        found.setdefault(training_class(member), member)
    return dict(thin(list(found.items()), MOST_CLASSES))


def _members(config: SweepConfig) -> Iterator[TrialConfig]:
    models = _different(config.model.discrete_corners(), _model)
    recipes = _different(config.training.discrete_corners(), _recipe)
    for entry in config.methods:
        whole = config.at_defaults(entry)
        choices = [_choices(space) for space in entry.spaces.values()]
        for model, recipe, *methods in itertools.product(models, recipes, *choices):
            named = dict(zip(entry.spaces, methods, strict=True))
            yield whole.model_copy(update={"model": model, "training": recipe, "methods": named})


def _choices(space: Space[MethodConfig]) -> list[MethodConfig]:
    """Return one configuration for each choice by name that a method's section leaves."""
    return _different(itertools.chain((space.at_defaults(),), space.discrete_corners()), _chosen)


def _different(values: Iterable[T], key: Any) -> list[T]:
    """Return the first value of each key."""
    found: dict[str, T] = {}
    for value in values:
        found.setdefault(canonical_json(key(value)), value)
    return list(found.values())


def _model(config: ModelConfig) -> dict[str, Any]:
    return {name: value for name, value in config.plain().items() if name not in NO_MEMORY}


def _recipe(config: TrainingConfig) -> list[Any]:
    """Return the images in one pass, then what else decides the memory."""
    images = config.batch_size if config.micro_batch is None else min(config.micro_batch, config.batch_size)
    return [images, config.precision, config.compile, config.optimizer, config.ema_decay > 0]


def _methods(config: TrialConfig) -> dict[str, Any]:
    return {name: _chosen(method) for name, method in config.methods.items()}


def _named(name: str, config: MethodConfig) -> str:
    """Return a method with the choices by name that are not its defaults: "jasmin (sum)"."""
    usual = _chosen(type(config)())
    other = [
        str(value) if isinstance(value, str) else key for key, value in _chosen(config).items() if value != usual[key]
    ]
    return f"{name} ({', '.join(other)})" if other else name


def _chosen(config: MethodConfig) -> dict[str, Any]:
    """Return what a method chooses by name."""
    return {name: value for name, value in config.plain().items() if isinstance(value, str | bool)}
