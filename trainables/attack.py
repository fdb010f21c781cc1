"""Attack: how adversarial images are made within a threat model, and how one attack is judged image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from search_spaces.config import Config, Number
from trainables.config import AttackConfig

ConfigT = TypeVar("ConfigT", bound=AttackConfig)
Model = Callable[[Tensor], Tensor]


class Threat(Config):
    """What the attacker may change: an L∞ or L2 ball of radius ε around each image, inside [0, 1]."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: Annotated[Number, Field(gt=0, le=1)] = 8 / 255
    """Radius on the [0, 1] pixel scale: 8/255, not 8."""


class Attack(ABC, Generic[ConfigT]):
    """Makes adversarial images. What it returns is verified and judged by the evaluator, not by the attack."""

    Config: ClassVar[type[AttackConfig]] = AttackConfig
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """Threat models that it supports."""

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

    @abstractmethod
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


def find_attack(key: str, config: AttackConfig, threat: Threat) -> Attack[Any]:
    """Build the attack of that name."""
    from trainables.registry import find

    attack: Attack[Any] = find("attacks", key)(config, threat)
    return attack
