"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690): the worst case over attacks that complement each other.

Every version but one is a list of attacks that have files of their own (`Autoattack.parts`), one after the other on the
images that withstood those before it; APGD-T is one part per rank of its target, so that a cascade may stop and go on
between them. Random numbers belong to one image each, so that the parts, run and stored one by one, give the verdicts
of the whole.

The version `rand` is the authors' package throughout and cannot be taken apart: against a model that draws random
numbers itself one misclassified pass proves little, so that nobody may leave at the first, and the gradient is averaged
over 20 passes.

The version `aa10` is what papers call AutoAttack with 10 steps: torchattacks runs APGD and FAB that short, and Square
in full. The schedule of APGD's step sizes is computed for 10 steps.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import torch
from pyautoattack import AutoAttack as Package
from pydantic import Field, model_validator
from torch import Tensor

from search_spaces.errors import AttackError
from trainables.apgd import CLASSES_FOR_RATIO, CLASSES_FOR_TARGETS, MOST_TARGETS
from trainables.ascent import frozen
from trainables.attack import Attack, Model, Part, Threat, find_attack
from trainables.attacks.apgd_ce import ApgdCeConfig
from trainables.attacks.apgd_t import ApgdTConfig
from trainables.attacks.fab import FabConfig
from trainables.attacks.fab_t import FabTConfig
from trainables.attacks.square import SquareConfig
from trainables.config import AttackConfig
from trainables.registry import find
from trainables.worst_case import WorstCase

Stage = Literal["apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square"]

STANDARD: tuple[Stage, ...] = ("apgd_ce", "apgd_t", "fab_t", "square")
STAGES: dict[str, tuple[Stage, ...]] = {"standard": STANDARD, "aa10": STANDARD, "rand": ("apgd_ce", "apgd_dlr")}
STEPS = 100
SHORT_STEPS = 10
CLASSES_NEEDED = {"apgd_dlr": CLASSES_FOR_RATIO, "apgd_t": CLASSES_FOR_TARGETS}
RAND_PASSES = 20
"""Passes over which the version rand averages a gradient."""


class AutoattackConfig(AttackConfig):
    """Which stages run; the defaults are AutoAttack as published."""

    version: Literal["standard", "aa10", "rand", "custom"] = "standard"
    """standard; aa10, the same with 10 steps; rand for models that draw random numbers themselves; custom runs
    `attacks`."""
    attacks: tuple[Stage, ...] = ()
    """Stages of the custom version, in order, each on the images that withstood those before it."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Iterations of APGD and FAB; None is 100 as published, and 10 in version aa10, which takes no other."""
    queries: Annotated[int, Field(ge=1)] = 5000
    """Queries of Square; 5000 as published."""

    @model_validator(mode="after")
    def _versions_are_whole(self) -> AutoattackConfig:
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError("attacks goes with version: custom, and custom needs at least one of them")
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"a stage that runs twice finds the same twice; found attacks {', '.join(self.attacks)}")
        if self.version == "aa10" and self.steps is not None:
            raise ValueError(
                f"version aa10 means {SHORT_STEPS} steps, so leave steps out; for other lengths use "
                f"version: standard; found steps {self.steps}"
            )
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.attacks or STAGES[self.version]

    @property
    def iterations(self) -> int:
        """How many steps APGD and FAB take."""
        return self.steps or (SHORT_STEPS if self.version == "aa10" else STEPS)


class Autoattack(Attack[AutoattackConfig]):
    """Each image as it was misclassified most, in whatever part."""

    Config = AutoattackConfig

    @classmethod
    def check(cls, config: AutoattackConfig, threat: Threat, num_classes: int) -> Iterable[str]:
        yield from super().check(config, threat, num_classes)
        for stage in config.stages:
            if num_classes < CLASSES_NEEDED.get(stage, 2):
                yield (
                    f"{stage} needs at least {CLASSES_NEEDED[stage]} classes, the data set has {num_classes}; "
                    "use version: custom with attacks: [apgd_ce, fab_t, square]"
                )

    @classmethod
    def passes(cls, config: AutoattackConfig, num_classes: int) -> tuple[int, int]:
        if config.version == "rand":
            each = 3 * RAND_PASSES * (config.iterations + 1) + 2
            return each, len(config.stages) * each
        parts = [
            find("attacks", part.attack).passes(part.config, num_classes) for part in cls.parts(config, num_classes)
        ]
        return parts[0][0], sum(most for _, most in parts)

    @classmethod
    def parts(cls, config: AutoattackConfig, num_classes: int) -> tuple[Part, ...]:
        if config.version == "rand":
            return ()
        return tuple(part for stage in config.stages for part in _parts(stage, config, num_classes))

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        origin, rows = worst.origin, worst.standing
        if not len(rows):
            return
        if not (origin.min() >= 0 and origin.max() <= 1):  # the package takes them and attacks something else
            raise AttackError(f"autoattack needs pixels in [0, 1], found {origin.min():g} … {origin.max():g}.")
        with torch.no_grad():
            num_classes = model(origin[rows[:1]]).shape[1]
        for sentence in self.check(self.config, self.threat, num_classes):
            raise AttackError(f"autoattack: {sentence}.")
        for part in self.parts(self.config, num_classes):
            find_attack(part.attack, part.config, self.threat).run(model, worst, seed, image_ids)
        if self.config.version == "rand":
            for some in rows.split(getattr(model, "batch_size", len(rows))):
                worst.take(some, self._randomized(model, origin[some], worst.labels[some], seed))

    def _randomized(self, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Return the images after the package's version rand, (B, C, H, W)."""
        with frozen(model), _quiet() as said, _own_random_numbers(images.device):
            package = self._configured(model, images.device, seed)
            attacked, _ = package.run_standard_evaluation(images, labels, batch_size=len(images))
        for text in said:
            warnings.warn(text, stacklevel=2)
        result: Tensor = attacked.detach()
        return result

    def _configured(self, model: Model, device: torch.device, seed: int) -> Any:
        steps = self.config.iterations
        norm = {"linf": "Linf", "l2": "L2"}[self.threat.norm]
        package = Package(model, device=device, eps=self.threat.epsilon, norm=norm, seed=seed, version="rand")
        package.apgd.n_iter = steps
        # its constructor derives these from 100 steps, so that a shorter run would never halve its step
        package.apgd.n_iter_2 = max(int(0.22 * steps), 1)
        package.apgd.n_iter_min = max(int(0.06 * steps), 1)
        package.apgd.size_decr = max(int(0.03 * steps), 1)
        return package


def _parts(stage: Stage, config: AutoattackConfig, num_classes: int) -> Iterator[Part]:
    """Yield what a stage is made of: one part, but one for each target of apgd_t."""
    steps = config.iterations
    if stage == "apgd_t":
        for rank in range(min(MOST_TARGETS, num_classes - 1)):
            yield Part(f"apgd_t_{rank + 1}", "apgd_t", ApgdTConfig(steps=steps, first=rank, targets=1))
    elif stage == "square":
        yield Part(stage, stage, SquareConfig(queries=config.queries))
    elif stage == "fab_t":
        yield Part(stage, stage, FabTConfig(steps=steps))
    elif stage == "fab":
        yield Part(stage, stage, FabConfig(steps=steps))
    else:
        yield Part(stage, stage, ApgdCeConfig(steps=steps))


@contextlib.contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Give torch's global random numbers back as they were: the package seeds all generators."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect the package's logged warnings, drop its chatter, and keep the tracer that its checks remove."""
    said: list[str] = []
    logger = logging.getLogger("auto-attack")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, propagates, tracer = logger.level, logger.propagate, sys.gettrace()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        sys.settrace(tracer)
