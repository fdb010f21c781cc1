"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690): its APGD stages are ours, FAB and Square the authors' package.

The stages on APGD give the package's verdicts at a fraction of its passes, because they leave an image alone once it
has fallen; their random numbers belong to one image each. FAB and Square come from pyautoattack, whose random numbers
belong to a whole batch, so that what they find depends on how the images were batched. The version `rand` is the
package's throughout: against a model that draws random numbers itself one misclassified pass proves little, so that
nobody may leave at the first, and the gradient is averaged over 20 passes.

What this file adds to the package: the target counts that fewer than ten classes need, a shorter schedule that is
consistent in itself, the same single-restart stages in a custom list as in the standard version, and quiet; the global
random numbers, which the package seeds anew, are given back.

What torchattacks calls AutoAttack, and papers "AutoAttack with 10 steps": `autoattack: {steps: 10, queries: 5000}`.
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
from pyautoattack import checks
from pydantic import Field, model_validator
from torch import Tensor

from search_spaces.errors import AttackError
from trainables.apgd import CLASSES_FOR_TARGETS, MOST_TARGETS, climb_to_targets, climb_with_restarts
from trainables.ascent import frozen
from trainables.attack import Attack, Model, Threat
from trainables.attack_losses import cross_entropy, dlr
from trainables.config import AttackConfig
from trainables.worst_case import WorstCase

Stage = Literal["apgd_ce", "apgd_dlr", "apgd_t", "fab", "fab_t", "square"]

STAGES: dict[str, tuple[Stage, ...]] = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "rand": ("apgd_ce", "apgd_dlr"),
}
CLASSES_NEEDED = {"apgd_dlr": 3, "apgd_t": CLASSES_FOR_TARGETS}
"""The DLR loss divides by a difference to the third largest logit, its targeted form to the fourth."""
UNTARGETED = {"apgd_ce": cross_entropy, "apgd_dlr": dlr}
RAND_PASSES = 20
"""Passes over which the version rand averages a gradient."""
EXAMINED = 16
"""Images of a batch on which the package's checks look for a model that its attacks misjudge."""


class AutoattackConfig(AttackConfig):
    """Which stages run; the defaults are AutoAttack as published."""

    version: Literal["standard", "rand", "custom"] = "standard"
    """standard; rand for models that draw random numbers themselves; custom runs `attacks`."""
    attacks: tuple[Stage, ...] = ()
    """Stages of the custom version, in order, each on the images that withstood those before it."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Iterations of APGD and FAB; 100 as published, 10 is what torchattacks calls AutoAttack."""
    queries: Annotated[int, Field(ge=1)] = 5000
    """Queries of Square; 5000 as published."""

    @model_validator(mode="after")
    def _custom_names_its_attacks(self) -> AutoattackConfig:
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError("attacks goes with version: custom, and custom needs at least one of them")
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.attacks or STAGES[self.version]


class Autoattack(Attack[AutoattackConfig]):
    """The worst case over the stages: each image as it was misclassified most, in whatever stage."""

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
        each = [stage_passes(stage, config, num_classes) for stage in config.stages]
        return each[0][0], sum(most for _, most in each)

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        if not (images.min() >= 0 and images.max() <= 1):  # the package takes them and attacks something else
            raise AttackError(f"autoattack needs pixels in [0, 1], found {images.min():g} … {images.max():g}.")
        with torch.no_grad():
            num_classes = model(images[:1]).shape[1]
        for sentence in self.check(self.config, self.threat, num_classes):
            raise AttackError(f"autoattack: {sentence}.")
        with frozen(model), _quiet() as said, _own_random_numbers(images.device):
            package = self._configured(model, num_classes, images.device, seed)
            if self.config.version == "rand":
                attacked, _ = package.run_standard_evaluation(images, labels, batch_size=len(images))
            else:
                attacked = self._cascade(package, model, images, labels, seed, image_ids)
        for text in said:
            warnings.warn(text, stacklevel=2)
        result: Tensor = attacked.detach()
        return result

    def _cascade(
        self, package: Any, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor
    ) -> Tensor:
        """Return the most misclassified version of each image after all stages, each on those that still stand."""
        _examine(model, images[:EXAMINED], labels[:EXAMINED], package.logger)
        worst = WorstCase(images, labels)
        robust = {"clean": 1.0}
        for stage in self.config.stages:
            if not len(worst.standing):
                break
            self._run(stage, package, model, worst, seed, image_ids)
            robust[stage] = len(worst.standing) / len(images)
        checks.check_square_sr(robust, logger=package.logger)
        return worst.images

    def _run(self, stage: Stage, package: Any, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        steps = self.config.steps
        if stage == "apgd_t":
            climb_to_targets(model, worst, image_ids, seed=seed, threat=self.threat, steps=steps, targets=MOST_TARGETS)
        elif stage in UNTARGETED:
            climb_with_restarts(
                model,
                worst,
                image_ids,
                seed=seed,
                name=stage,
                loss=UNTARGETED[stage],
                threat=self.threat,
                steps=steps,
            )
        else:
            package.fab.targeted = stage == "fab_t"
            attack = package.square if stage == "square" else package.fab
            rows = worst.standing
            with torch.no_grad():
                found = attack.perturb(worst.origin[rows], worst.labels[rows])
                worst.offer(rows, found, model(found))

    def _configured(self, model: Model, num_classes: int, device: torch.device, seed: int) -> Any:
        config = self.config
        package = Package(
            model,
            attacks=[stage.replace("_", "-") for stage in config.stages] if config.version == "custom" else None,
            device=device,
            eps=self.threat.epsilon,
            norm={"linf": "Linf", "l2": "L2"}[self.threat.norm],
            seed=seed,
            version=config.version,
        )
        targets = min(MOST_TARGETS, num_classes - 1)
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
        for apgd in (package.apgd, package.apgd_targeted):
            apgd.n_restarts = 1  # the custom version would use 5, unlike the same stage of the standard one
            apgd.n_iter = config.steps
            # its constructor derives these from 100 steps, so that a shorter run would never halve its step
            apgd.n_iter_2 = max(int(0.22 * config.steps), 1)
            apgd.n_iter_min = max(int(0.06 * config.steps), 1)
            apgd.size_decr = max(int(0.03 * config.steps), 1)
        package.fab.n_restarts, package.fab.n_iter = 1, config.steps
        package.square.n_queries = config.queries
        return package


def stage_passes(stage: Stage, config: AutoattackConfig, num_classes: int) -> tuple[int, int]:
    """Return (fewest, most) forward passes of one stage for one image, a backward pass counted as two.

    Counted with hooks. At 10 classes and full length at most 301 for apgd_ce, 2710 for apgd_t, 3629 for fab_t, 5004 for
    square.
    """
    targets = min(MOST_TARGETS, num_classes - 1)
    ascent = 3 * config.steps + 1
    if stage == "square":
        return 4, config.queries + 4
    if stage == "apgd_t":
        return 4, targets * ascent + 1
    if stage == "fab_t":
        return 4 * config.steps + 5, targets * (4 * config.steps + 3) + 2
    if stage == "fab":
        return ((2 + 2 * num_classes) * config.steps + 4,) * 2
    if config.version == "rand":
        return (3 * RAND_PASSES * (config.steps + 1) + 2,) * 2
    return 3, ascent


def _examine(model: Model, images: Tensor, labels: Tensor, logger: logging.Logger) -> None:
    """Let the package log its doubts: a model that draws random numbers, returns probabilities or uses gradients."""
    checks.check_randomized(model, images, labels, bs=len(images), logger=logger)
    checks.check_range_output(model, images, logger=logger)
    checks.check_dynamic(model, images, logger=logger)


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
