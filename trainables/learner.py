"""Learner: the model in training with everything that moves its weights, one epoch at a time."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from search_spaces.errors import LossDiverged
from search_spaces.seeds import derive_seed
from trainables import recipe
from trainables.attention import attention_layers, record_attention
from trainables.config import TrialConfig
from trainables.dataset import Images, Splits
from trainables.method import Batch, build_stack
from trainables.trial import new_model, wrap_model
from trainables.verdicts import predict_logits

CHECK_STEPS = 50
"""So many steps may pass before a loss that is not finite is noticed (our choice); an epoch's end reads all."""


class Learner:
    """Model, methods, optimizer and moving average of one trial; draws from the global random numbers."""

    def __init__(
        self,
        config: TrialConfig,
        seed: int,
        splits: Splits,
        device: torch.device,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Say what to learn from what.

        Args:
            seed: decides the order of the batches.
            splits: what to learn from.
            device: where to compute.
            start: weights of the parent that the trial starts from; None if it has none.
        """
        self.config, self.seed, self.splits, self.device = config.training, seed, splits.to(device), device
        self._stack = build_stack(config)
        fresh = new_model(config, splits, start).to(device)
        self._notes = list(fresh.notes)
        self.model = wrap_model(self._stack, fresh, config, splits)
        self._optimizer = recipe.make_optimizer(self.model, self.config)
        self._mixup = recipe.make_mixup(self.config, splits.num_classes)
        self._average = ModelEmaV3(self.model, decay=self.config.ema_decay) if self.config.ema_decay else None
        self._steps_per_epoch = recipe.steps_per_epoch(len(splits.train.labels), self.config)
        self.first_step_at: float | None = None
        """When the first optimizer step of this process was over, in seconds since the epoch."""
        if self.config.compile:  # after the average has copied the model: it stays as it is
            compile_blocks(self.model)

    @property
    def kept_model(self) -> nn.Module:
        """The model that is validated and kept: the moving average if there is one."""
        if self._average is None:
            return self.model
        averaged: nn.Module = self._average.module
        return averaged

    def train_epoch(self, epoch: int, *, steps: int | None = None) -> dict[str, float]:
        """Pass once over the training images and return the mean of each term of the loss.

        Args:    epoch: 0-based; steps: so many batches alone; None is all.
        Returns: ``train/loss`` with penalties, ``train/task_loss``, one key per penalty, ``train/learning_rate``, and
            what the methods measured before the epoch.
        Raises:  LossDiverged, naming epoch and step, if a loss is not finite.
        """
        self.model.train()
        figures = self._stack.on_epoch_start(self.model, epoch, self._draw)
        terms = _Terms(epoch)
        rate = 0.0
        batches = recipe.epoch_batches(self.splits.train, self.config, self.seed, epoch)
        for number, (images, labels) in enumerate(islice(batches, steps)):
            step = epoch * self._steps_per_epoch + number
            rate = recipe.learning_rate(self.config, step, self._steps_per_epoch)
            recipe.set_learning_rate(self._optimizer, rate)
            images, labels = images.to(self.device), labels.to(self.device)
            batch = recipe.make_batch(images, labels, self.config, self._mixup, self.splits.num_classes)
            terms.add(self._learn(batch), len(images))
            if self.first_step_at is None:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self.first_step_at = time.time()
            if self._average is not None:
                self._average.update(self.model, step=step + 1)
        return terms.means() | {"train/learning_rate": rate} | figures

    def take_notes(self) -> list[str]:
        """Return what the user should know since the last call: weights left out, what the methods noted."""
        notes = self._notes + self._stack.take_notes()
        self._notes = []
        return notes

    def accuracy_and_loss(self, images: Images) -> tuple[float, float]:
        """Return the kept model's accuracy in [0, 1] and mean cross-entropy, in eval mode."""
        everything = torch.arange(len(images.labels))
        with torch.compiler.set_stance("force_eager"):  # as the finished model will be judged
            logits = predict_logits(self.kept_model, images, everything, self.config.batch_size, self.device)
        labels = images.labels.cpu()
        return float((logits.argmax(1) == labels).double().mean()), float(F.cross_entropy(logits, labels))

    def measure(self) -> dict[str, float]:
        """Return what the methods measure of the kept model on validation images."""
        with torch.compiler.set_stance("force_eager"):
            return self._stack.measure(self.kept_model, self.splits.validation, self.config.batch_size, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next epoch depends on beside the weights and the random numbers."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "methods": self._stack.state_dict(),
            "average": self._average.module.state_dict() if self._average else {},
        }

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back the weights and what `state_dict` gave."""
        self.model.load_state_dict(weights)
        self._optimizer.load_state_dict(dict(state["optimizer"]))
        self._stack.load_state_dict(state["methods"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])

    def _draw(self, key: str, share: float = 1.0) -> Iterator[list[Batch]]:
        """Yield training images to the methods, as `Draw` promises."""
        seed = derive_seed(self.seed, "draw", key)
        for images, labels in recipe.shuffled_batches(self.splits.train, self.config, seed, share):
            yield _split(Batch(images.to(self.device), labels.to(self.device)), self.config.micro_batch)

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Move the weights once and return the terms of the loss at the first closure call (SAM calls it twice)."""
        parts = _split(batch, self.config.micro_batch)
        seen = [self._perturb(part) for part in parts]
        first: dict[str, Tensor] = {}

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            sums: dict[str, Tensor] = {}
            for part, changed in zip(parts, seen, strict=True):
                share = len(part.images) / len(batch.images)
                terms = {name: share * value for name, value in self._loss_terms(changed, part).items()}
                terms["loss"].backward()  # type: ignore[no-untyped-call]
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.detach()
            if self.config.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            if not first:
                first.update(sums)
            return sums["loss"]

        self._stack.update(self._optimizer, closure)
        return first

    def _perturb(self, batch: Batch) -> Batch:
        if not self._stack.perturbs:
            return batch
        self.model.eval()
        with self._autocast():
            seen = self._stack.perturb(self.model, batch)
        self.model.train()
        return seen

    def _loss_terms(self, seen: Batch, clean: Batch) -> dict[str, Tensor]:
        """Return the loss, the task loss and penalties that it is the sum of, and what the task loss is made of.

        Only a forward pass inside this call is recorded.
        """
        with record_attention(self.model, self._stack.reads(self.device)) as attention, self._autocast():
            task = self._stack.loss(self.model, seen, clean)
        terms = {"task_loss": task, **self._stack.penalty(self.model, attention)}
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else task
        return {"loss": total, **terms, **self._stack.observed()}

    def _autocast(self) -> torch.autocast:
        wanted = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)


class _Terms:
    """The terms of the loss of one epoch; read only every CHECK_STEPS steps, because reading waits for a GPU."""

    def __init__(self, epoch: int) -> None:
        self._epoch, self._step = epoch, 0
        self._sums: dict[str, float] = defaultdict(float)
        self._images: dict[str, int] = defaultdict(int)
        """On which a term was computed; a method may have terms that end within an epoch."""
        self._unread: list[tuple[dict[str, Tensor], int]] = []

    def add(self, terms: dict[str, Tensor], count: int) -> None:
        """Take the terms of a step on `count` images; LossDiverged, with epoch and step, if one is not finite."""
        self._unread.append((terms, count))
        if len(self._unread) == CHECK_STEPS:
            self._read()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the images; LossDiverged as `add`."""
        self._read()
        return {f"train/{name}": total / self._images[name] for name, total in self._sums.items()}

    def _read(self) -> None:
        if not self._unread:
            return
        values = iter(torch.stack([value for terms, _ in self._unread for value in terms.values()]).tolist())
        for terms, count in self._unread:
            self._step += 1
            for name in terms:
                value = next(values)
                if name == "loss" and not math.isfinite(value):
                    raise LossDiverged(f"the training loss is {value} in epoch {self._epoch + 1}, step {self._step}.")
                self._sums[name] += value * count
                self._images[name] += count
        self._unread.clear()


def _split(batch: Batch, size: int | None) -> list[Batch]:
    if size is None or size >= len(batch.images):
        return [batch]
    return [Batch(*part) for part in zip(batch.images.split(size), batch.targets.split(size), strict=True)]


def compile_blocks(model: nn.Module) -> None:
    """Compile the transformer blocks of a model in place; their attention runs as it is, because hooks read it.

    Names of parameters stay. Do it after every copy of the model has been made.
    """
    for block in model.modules():
        if isinstance(block, Block):
            for layer in attention_layers(block):
                layer.forward = torch.compiler.disable(layer.forward)
            block.compile()
