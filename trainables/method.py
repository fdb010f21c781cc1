"""Method: what a robustness method changes about ordinary fine-tuning, and how several of them stack."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import SweepError
from trainables.attention import READS, Attended, Reads
from trainables.config import MethodConfig, TrialConfig
from trainables.dataset import Images

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Batch(NamedTuple):
    """Images and targets of one step."""

    images: Tensor
    """(B, C, H, W), pixels in [0, 1]; the model normalises."""
    targets: Tensor
    """(B,) class indices, or (B, K) probabilities after Mixup, CutMix or label smoothing."""


class Draw(Protocol):
    """Training images for a method that must look at some before an epoch; it draws no global random numbers."""

    def __call__(self, key: str, share: float = 1.0) -> Iterator[list[Batch]]:
        """Yield batches as large as the training's, each image at most once, on the model's device.

        Images are as they are, without augmentation, targets are class indices.

        Args:
            key: decides the order, together with the trial's seed.
            share: how much of an epoch, one batch at least.

        Yields: the parts of a batch, each of at most ``training.micro_batch`` images, which fit in one forward pass.
        """
        ...


@dataclass(frozen=True)
class ModelFacts:
    """What a method may ask about a model before any trial starts."""

    name: str
    tokens: int
    """Length of the sequence that attention sees: patches, and the prefix tokens before them."""
    depth: int
    num_heads: int
    embed_dim: int
    exposes_attention: bool
    """Whether every block computes its attention with an ordinary softmax that can be read."""
    normalises_queries: bool = False
    """Whether queries and keys pass a norm of their own (qk_norm), so that W_Q and W_K alone do not give the scores."""
    prefix_tokens: int = 1
    """Tokens before the patches: class, distillation and register tokens."""
    register_tokens: int = 0
    has_class_token: bool = True
    pooling: str = "token"
    """How the tokens become the features of the head, by timm's name: token, avg, map, …"""


class Method(ABC, Generic[ConfigT]):
    """A robustness method. Every hook defaults to plain fine-tuning; override only what differs."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    strengths: ClassVar[tuple[str, ...]] = ()
    """Fields that say how strongly the method acts: all at 0 it is plain fine-tuning, bit by bit."""
    freezes: ClassVar[bool] = False
    """Whether it decides which weights are trained (`requires_grad`) and leaves the others bit-identical; then no
    setting of it need be plain fine-tuning."""
    adds_weights: ClassVar[bool] = False
    """Whether the finished model has weights that the model before it has not, so that no other may start from it."""
    alone: ClassVar[str] = ""
    """Why no other method may be stacked with it, in words that follow its name; empty if others may."""

    def __init__(self, config: ConfigT, total_epochs: int) -> None:
        """Args: config: the method's own; total_epochs: length of the training, for warm-ups."""
        self.config = config
        self.total_epochs = total_epochs
        self.notes: list[str] = []
        """Sentences for the trial's log that nobody has taken yet."""

    @classmethod
    def check(cls, config: ConfigT, facts: ModelFacts) -> Iterable[tuple[str, str]]:
        """Yield (field, sentence) for every reason why this configuration cannot run on this model."""
        return ()

    def reads(self, device: torch.device) -> Reads:
        """What `penalty` reads of the attention when the model is on `device`."""
        return "nothing"

    def wrap(self, model: nn.Module, probe: Batch) -> nn.Module:
        """Once, before the optimizer exists: freeze, choose layers, add parameters."""
        return model

    def perturb(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch to learn from. Changes no weight and leaves no gradient behind; the model is in eval mode."""
        return batch

    def loss(self, model: nn.Module, seen: Batch, clean: Batch) -> Tensor:
        """Scalar task loss; owns the forward pass(es). `seen` is perturb(clean)."""
        return cross_entropy(model(seen.images), seen.targets)

    def observed(self) -> dict[str, Tensor]:
        """Named scalars that the last `loss` computed and that are not added to it; keys become metrics."""
        return {}

    def penalty(self, model: nn.Module, attention: Sequence[Attended]) -> dict[str, Tensor]:
        """Named scalars added to the loss, weights included; keys become metrics.

        Args: attention: one entry per block, of the first forward pass in `loss`; empty if `reads` says nothing.
        """
        return {}

    def update(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
        """Move the weights once. closure() clears gradients, recomputes the loss, backpropagates and clips."""
        closure()
        optimizer.step()

    def on_epoch_start(self, model: nn.Module, epoch: int, draw: Draw) -> dict[str, float]:
        """Before epoch `epoch` (0-based); the model is in training mode, and again afterwards.

        Returns: metrics of the epoch, finite, named ``method/what``; the same names in every epoch.
        """
        return {}

    def measure(self, model: nn.Module, images: Images, batch_size: int, device: torch.device) -> dict[str, float]:
        """Metrics of the kept model after an epoch, named ``val/what``, on validation images.

        Weights, modes, flags and the global random numbers stay as they are. Args: device: where the model is.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, loadable with ``torch.load(weights_only=True)``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in float32 for class indices (B,) or probabilities (B, K)."""
    return F.cross_entropy(logits.float(), targets)


def overrides(method_type: type[Method[Any]], hook: str) -> bool:
    """Return whether a method type replaces a hook of `Method`."""
    return getattr(method_type, hook) is not getattr(Method, hook)


def check_stack(types: Mapping[str, type[Method[Any]]]) -> list[str]:
    """Return one sentence for every reason why these methods cannot be stacked; empty if they can.

    Penalties add up and wrap chains. perturb, loss and update have one owner at most (our choice: a sum of two task
    losses would be a third method, which should have a name of its own, and adversarial examples of adversarial
    examples may lie 2 ε away), and so has the choice of the weights that are trained.
    """
    reasons = []
    for hook in ("perturb", "loss", "update"):
        owners = [name for name, method_type in types.items() if overrides(method_type, hook)]
        if len(owners) > 1:
            reasons.append(f"{' and '.join(owners)} both replace the {hook} of a step; only one of a stack may")
    for name, method_type in types.items():
        if method_type.alone and (others := [other for other in types if other != name]):
            reasons.append(f"{name} {method_type.alone}; found it with {' and '.join(others)}")
    freezing = [name for name, method_type in types.items() if method_type.freezes]
    if len(freezing) > 1:
        reasons.append(f"{' and '.join(freezing)} both decide which weights are trained; only one of a stack may")
    return reasons


class MethodStack:
    """Several methods as one: wrap chains in order, penalties add up. An empty stack is plain fine-tuning."""

    def __init__(self, methods: Mapping[str, Method[Any]]) -> None:
        self.methods = dict(methods)
        self._plain = _Plain(MethodConfig(), 1)

    def reads(self, device: torch.device) -> Reads:
        """The most that any method reads."""
        return max((method.reads(device) for method in self.methods.values()), key=READS.index, default="nothing")

    @property
    def perturbs(self) -> bool:
        """Whether any method changes the batch."""
        return any(overrides(type(method), "perturb") for method in self.methods.values())

    def wrap(self, model: nn.Module, probe: Batch) -> nn.Module:
        for method in self.methods.values():
            model = method.wrap(model, probe)
        return model

    def perturb(self, model: nn.Module, batch: Batch) -> Batch:
        return self._owner("perturb").perturb(model, batch)

    def loss(self, model: nn.Module, seen: Batch, clean: Batch) -> Tensor:
        return self._owner("loss").loss(model, seen, clean)

    def penalty(self, model: nn.Module, attention: Sequence[Attended]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for method in self.methods.values():
            terms |= method.penalty(model, attention)
        return terms

    def observed(self) -> dict[str, Tensor]:
        return self._owner("loss").observed()

    def update(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
        self._owner("update").update(optimizer, closure)

    def on_epoch_start(self, model: nn.Module, epoch: int, draw: Draw) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for method in self.methods.values():
            metrics |= method.on_epoch_start(model, epoch, draw)
        return metrics

    def measure(self, model: nn.Module, images: Images, batch_size: int, device: torch.device) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for method in self.methods.values():
            metrics |= method.measure(model, images, batch_size, device)
        return metrics

    def take_notes(self) -> list[str]:
        """Return what the methods have noted since the last call."""
        notes = [note for method in self.methods.values() for note in method.notes]
        for method in self.methods.values():
            method.notes.clear()
        return notes

    def state_dict(self) -> dict[str, Any]:
        return {name: method.state_dict() for name, method in self.methods.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, method in self.methods.items():
            method.load_state_dict(state[name])

    def _owner(self, hook: str) -> Method[Any]:
        owners = [m for m in self.methods.values() if overrides(type(m), hook)]
        return owners[0] if owners else self._plain


def build_stack(config: TrialConfig) -> MethodStack:
    """Build a trial's methods in the order of its configuration; SweepError if they do not go together."""
    from trainables.registry import find

    types = {key: find("methods", key) for key in config.methods}
    reasons = check_stack(types)
    if reasons:
        raise SweepError(f"methods {config.label}: {'; '.join(reasons)}.")
    return MethodStack({key: types[key](section, config.training.epochs) for key, section in config.methods.items()})


class _Plain(Method[MethodConfig]):
    """The defaults of every hook."""
