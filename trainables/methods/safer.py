"""SAFER: fine-tune the few layers most prone to adversarial overfitting with sharpness-aware minimisation, and freeze
the rest (arXiv:2501.01529). It starts from an adversarially trained model.

Its abstract and summaries of it say: about 5 % of the layers, found by a measure of sharpness, trained with SAM, the
others frozen, found anew every 10 epochs. The formula of the measure is not public to us. Ours, in
`trainables/sharpness.py`, is our choice, because it is what sharpness-aware minimisation lowers, asked of one layer at
a time: by how much the adversarial loss rises when the weights of that layer alone move within a small ball. Balls
relative to a layer's length are the default, because with one radius for all the score ranks layers by the size of
their gradient, however large their weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.config import Number
from search_spaces.domains import Choice, LogUniform
from search_spaces.errors import LossDiverged
from search_spaces.seeds import derive_seed
from trainables.method import Batch, Draw, Method
from trainables.methods.adversarial import Adversarial, AdversarialConfig
from trainables.methods.trades import Trades, TradesConfig
from trainables.randomness import Randomness
from trainables.sharpness import (
    Layers,
    block_layers,
    head_layers,
    linear_layers,
    moved,
    sharpest,
    sharpness,
    train_only,
)

SCORE_SEED = derive_seed("safer")
"""Of the random starts of the examples that scores are measured on, the same in every trial and at every selection."""


class SaferConfig(AdversarialConfig):
    """Which layers, how they are found, SAM, and the inner attack; what is given no source is our choice."""

    fraction: Annotated[Number, Field(gt=0, le=1), Choice((0.02, 0.05, 0.1, 0.2))] = 0.05
    """Share of the layers that is trained, rounded up, one at least; about 0.05 is what summaries of the paper say."""
    reselect_epochs: Annotated[Annotated[int, Field(ge=1)] | None, Choice((5, 10, 20, None))] = 10
    """Epochs from one selection to the next, 10 by the same summaries; None keeps the first one."""
    rho: Annotated[Number, Field(ge=0), LogUniform(0.01, 0.5)] = 0.05
    """ρ: length of SAM's step uphill, over all trained weights as one vector; 0 is the optimizer alone, at half the
    cost. 0.05 is SAM's."""
    granularity: Literal["linear", "block"] = "linear"
    """What a layer is: each linear map (qkv, proj, fc1, fc2 of a block, the patch embedding), or a block's four."""
    head: Literal["frozen", "trained", "candidate"] = "frozen"
    """The classifier: never trained, always trained beside the selection, or a layer like the others."""
    score: Literal["exact", "first_order"] = "exact"
    """exact measures the rise of the loss, one forward pass more for each layer; first_order takes it from the
    gradient."""
    relative: bool = True
    """Whether the ball of a score is a share of the layer's own length; else it is the same for all layers."""
    score_radius: Annotated[Number, Field(gt=0)] = 0.01
    """Radius of that ball: a share of ‖W_i‖ if relative, else a length. first_order ranks alike at every radius."""
    score_batches: Annotated[int, Field(ge=1), Choice((4, 8, 16))] = 8
    """Batches of training images whose adversarial examples scores are measured on; fewer where an epoch has fewer."""
    inner: Literal["pgd", "trades"] = "pgd"
    """How adversarial examples are made and learnt from: as adversarial does, or as trades does."""
    beta: Annotated[Number, Field(ge=0)] = 6.0
    """β of trades; pgd does not read it."""


class Safer(Method[SaferConfig]):
    """PGD-AT or TRADES on the sharpest layers alone, each step taken where SAM has looked uphill.

    A frozen weight is bit-identical from one selection to the next: it has no gradient, so that neither weight decay
    nor momentum touches it, and what the optimizer kept of it is dropped. The learning rate goes on as scheduled.
    Norms, scales, position embeddings and tokens are always frozen. Penalties of other methods act through the trained
    layers.

    SAM is a dozen lines here: pytorch-optimizer's makes its base optimizer itself, from a class, where ours exists
    already with its groups, learning rates and state; and its second pass draws other random numbers than the first.

    Differs: the measure of sharpness, its radius and what counts as a layer are ours; the paper's are not public.
    Differs: ρ, the inner attack and whether the classifier is trained are ours for the same reason.
    Differs: where a moving average is kept, scores are those of the model in training, not of the average.
    """

    Config = SaferConfig
    freezes = True

    def __init__(self, config: SaferConfig, total_epochs: int) -> None:
        super().__init__(config, total_epochs)
        self._inner: Method[Any] = Adversarial(config, total_epochs)
        if config.inner == "trades":
            shared = {name: getattr(config, name) for name in TradesConfig.model_fields}
            self._inner = Trades(TradesConfig(**shared), total_epochs)
        self._chosen: list[str] = []
        self._scores: dict[str, float] = {}

    def perturb(self, model: nn.Module, batch: Batch) -> Batch:
        return self._inner.perturb(model, batch)

    def loss(self, model: nn.Module, seen: Batch, clean: Batch) -> Tensor:
        return self._inner.loss(model, seen, clean)

    def update(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
        renew_state(optimizer)
        climb_and_step(optimizer, closure, self.config.rho)

    def on_epoch_start(self, model: nn.Module, epoch: int, draw: Draw) -> dict[str, float]:
        self._inner.on_epoch_start(model, epoch, draw)
        layers = self._candidates(model)
        before = self._chosen
        if is_due(epoch, self.config.reselect_epochs) or not before:
            self._scores = self._measure(model, layers, draw)
            self._chosen = sharpest(self._scores, self.config.fraction)
            named = ", ".join(f"{name} ({self._scores[name]:.3g})" for name in self._chosen)
            self.notes.append(
                f"safer trains {len(self._chosen)} of {len(layers)} layers from epoch {epoch + 1}: {named}"
            )
        heads = head_layers(model) if self.config.head == "trained" else {}
        train_only(model, _members({**{name: layers[name] for name in self._chosen}, **heads}))
        return {
            "safer/layers": float(len(self._chosen)),
            "safer/new_layers": float(len(set(self._chosen) - set(before))),
            "safer/highest_score": max(self._scores.values()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": list(self._chosen), "scores": dict(self._scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen, self._scores = list(state["chosen"]), dict(state["scores"])

    def _candidates(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        layers = linear_layers(model) if self.config.granularity == "linear" else block_layers(model)
        return {**layers, **head_layers(model)} if self.config.head == "candidate" else layers

    def _measure(self, model: nn.Module, layers: Layers, draw: Draw) -> dict[str, float]:
        """Score all layers on adversarial examples of the model as it is; LossDiverged if one is not finite."""
        config = self.config
        batches = islice(draw("safer"), config.score_batches)
        parts = [part for batch in batches for part in batch]
        model.eval()
        with torch.compiler.set_stance("force_eager"), Randomness(SCORE_SEED).active():
            attacked = [self._inner.perturb(model, part) for part in parts]
            train_only(model, _members(layers))
            exact = config.score == "exact"
            scores = sharpness(
                model, layers, attacked, radius=config.score_radius, relative=config.relative, exact=exact
            )
        model.train()
        for name, score in scores.items():
            if not math.isfinite(score):
                raise LossDiverged(f"the sharpness of {name} is {score}.")
        return scores


def is_due(epoch: int, every: int | None) -> bool:
    """Return whether layers are selected before epoch `epoch` (0-based). Args: every: None is the first one alone."""
    return epoch == 0 if every is None else epoch % every == 0


def renew_state(optimizer: torch.optim.Optimizer) -> None:
    """Drop what an optimizer has kept of frozen parameters, so that one that is thawed later starts without momentum.

    Fused SGD takes the momentum of all parameters or of none: one that joins others gets zeros, from which its first
    step is the same.
    """
    for parameter in [p for p in optimizer.state if not p.requires_grad]:
        del optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.SGD) and optimizer.state:
        joining = [p for group in optimizer.param_groups if group["momentum"] for p in group["params"]]
        for parameter in (p for p in joining if p.requires_grad and p not in optimizer.state):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def climb_and_step(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor], rho: float) -> None:
    """Take a step of the optimizer with the gradient at w + ρ g / ‖g‖ (SAM, Foret et al. 2021, arXiv:2010.01412).

    ‖g‖ is over all parameters that have a gradient. Both passes draw the same random numbers, and w comes back bit by
    bit. At ρ = 0 it is one pass and the optimizer's step.

    Args: closure: clears gradients, recomputes the loss on the same batch, and backpropagates.
    """
    if rho == 0:
        closure()
        optimizer.step()
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        closure()
    uphill = [(p, p.grad) for p in parameters if p.grad is not None]
    with moved([p for p, _ in uphill], [g for _, g in uphill], rho):
        closure()
    optimizer.step()


def _members(layers: Layers) -> list[nn.Parameter]:
    return [parameter for members in layers.values() for parameter in members]
