"""Budgets in units of the normalised image: ε·σ_c and step·σ_c in the pixels of channel c.

Some published FGSM and PGD numbers were made so, SpecFormer's FGSM among them: the attack saw the image after its
normalisation and added ε there. With σ ≈ 0.27 such a budget is about a quarter of its name, so that numbers made with
it compare with each other alone.

Differs: SpecFormer's FGSM also clamps the normalised image to [0, 1], which deletes whatever lies below the mean. Here
the pixels stay in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from search_spaces.errors import AttackError
from trainables.attack import Model, Threat
from trainables.config import AttackConfig


class NormalizedBudgetConfig(AttackConfig):
    """What the attacks share whose published numbers may have been made in units of the normalised image."""

    legacy_normalized_budget: bool = False
    """Take ε and step size in units of the normalised image (times σ of each channel, in pixels), to compare with
    numbers that were made so; L∞ only."""


def reasons_against(config: NormalizedBudgetConfig, threat: Threat) -> Iterable[str]:
    """Yield one sentence if the threat model has no such budget."""
    if config.legacy_normalized_budget and threat.norm != "linf":
        yield f"legacy_normalized_budget is a budget per channel, for the norm linf alone; found {threat.norm}"


def budget_scale(config: NormalizedBudgetConfig, model: Model) -> float | Tensor:
    """Return what ε and step size are multiplied with: 1, or the model's σ, (1, C, 1, 1) or (1, 1, 1, 1).

    Raises: AttackError if σ is asked for and the model has none, or one above 1, which would leave the ε-ball.
    """
    if not config.legacy_normalized_budget:
        return 1.0
    modules = model.modules() if isinstance(model, nn.Module) else ()
    found = next((std for module in modules if isinstance(std := getattr(module, "std", None), Tensor)), None)
    if found is None:
        raise AttackError(
            f"legacy_normalized_budget needs the σ of the model's normalisation, and {type(model).__name__} has no "
            "tensor std; use a model with its normalisation inside, or leave the option out."
        )
    if not float(found.max()) <= 1:
        raise AttackError(f"legacy_normalized_budget needs σ on the [0, 1] pixel scale, found {float(found.max()):g}.")
    return found[None]
