"""Attack: how adversarial images are made within a threat model, and how one attack is judged image by image."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import Field
from torch import Tensor

from search_spaces.config import Config, Number
from trainables.config import AttackConfig
from trainables.worst_case import WorstCase

ConfigT = TypeVar("ConfigT", bound=AttackConfig)
Model = Callable[[Tensor], Tensor]
Surrogate = Literal["backbone"]
"""Whose gradients an attack follows instead of the judged model's: the backbone is the model without learnt tokens."""


class Threat(Config):
    """What the attacker may change: an L∞ or L2 ball of radius ε around each image, inside [0, 1]."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: Annotated[Number, Field(gt=0, le=1)] = 8 / 255
    """Radius on the [0, 1] pixel scale: 8/255, not 8."""


class Part(NamedTuple):
    """One of the attacks that an attack is made of."""

    label: str
    """Unique among the parts: apgd_t_3."""
    attack: str
    """Key of the attack that does it."""
    config: AttackConfig


class Attack(ABC, Generic[ConfigT]):
    """Makes adversarial images. What it returns is verified and judged by the evaluator, not by the attack.

    Subclasses override `perturb`, or `run` if they look at many candidates and stop at the first that succeeds.
    """

    Config: ClassVar[type[AttackConfig]] = AttackConfig
    revision: ClassVar[int] = 1
    """Part of the name under which verdicts are stored; raise it with a change of the code that may change them."""
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """Threat models that it supports."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # each of the two is defined through the other, so that a class without either would call itself for ever
        if cls.run is Attack.run and cls.perturb is Attack.perturb and not inspect.isabstract(cls):
            raise TypeError(f"attack {cls.__name__} must override run or perturb; found neither.")

    def __init__(self, config: ConfigT, threat: Threat) -> None:
        self.config = config
        self.threat = threat

    @classmethod
    def check(cls, config: ConfigT, threat: Threat, num_classes: int) -> Iterable[str]:
        """Yield one sentence for every reason why this attack cannot run so."""
        if threat.norm not in cls.norms:
            yield f"it supports the norms {', '.join(cls.norms)}; found {threat.norm}"

    @classmethod
    def passes(cls, config: ConfigT, num_classes: int) -> tuple[int, int] | None:
        """Return (fewest, most) forward passes for one image, a backward pass counted as two; None if unknown."""
        return None

    @classmethod
    def parts(cls, config: ConfigT, num_classes: int) -> tuple[Part, ...]:
        """Return the attacks whose worst case this one is, in order; empty if it cannot be taken apart.

        The cascade runs, stores and prunes each on its own, on the images that those before it left standing.
        """
        return ()

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        """Attack the images of `worst` that stand and offer it what is found; model, seed and ids as in `perturb`."""
        rows = worst.standing
        if len(rows):
            found = self.perturb(model, worst.origin[rows], worst.labels[rows], seed, image_ids[rows.cpu()])
            worst.take(rows, found)

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        """Return adversarial images.

        Args:
            model: pixels in [0, 1] → logits (B, K); in eval mode, parameters frozen.
            images: (B, C, H, W) in [0, 1], all of them classified correctly.
            labels: (B,) true classes.
            seed: of the evaluation.
            image_ids: (B,) positions of the images in their split; random numbers derive from (seed, id), so that
                order and batching do not matter where the attack is our own.

        Returns: (B, C, H, W), in the ε-ball around `images` and in [0, 1]; the model's parameters get no gradient.
        """
        worst = WorstCase(images, labels)
        self.run(model, worst, seed, image_ids)
        return worst.images


def find_attack(key: str, config: AttackConfig, threat: Threat) -> Attack[Any]:
    """Build the attack of that name."""
    from trainables.registry import find

    attack: Attack[Any] = find("attacks", key)(config, threat)
    return attack
