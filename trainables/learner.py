"""Learner: the model in training with everything that moves its weights, one epoch at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from search_spaces.errors import LossDiverged
from trainables import recipe
from trainables.attention import record_attention
from trainables.config import TrialConfig
from trainables.dataset import Images, Splits
from trainables.method import Batch, build_stack
from trainables.trial import new_model, wrap_model
from trainables.verdicts import predict_logits


class Learner:
    """Model, methods, optimizer and moving average of one trial; draws from the global random numbers."""

    def __init__(self, config: TrialConfig, seed: int, splits: Splits, device: torch.device) -> None:
        """Args: seed: decides the order of the batches; splits: what to learn from; device: where to compute."""
        self.config, self.seed, self.splits, self.device = config.training, seed, splits, device
        self._stack = build_stack(config)
        fresh = new_model(config, splits).to(device)
        self.notes = fresh.notes
        self.model = wrap_model(self._stack, fresh, config, splits)
        self._optimizer = recipe.make_optimizer(self.model, self.config)
        self._mixup = recipe.make_mixup(self.config, splits.num_classes)
        self._average = ModelEmaV3(self.model, decay=self.config.ema_decay) if self.config.ema_decay else None
        self._steps_per_epoch = math.ceil(len(splits.train.labels) / self.config.batch_size)

    @property
    def kept_model(self) -> nn.Module:
        """The model that is validated and kept: the moving average if there is one."""
        if self._average is None:
            return self.model
        averaged: nn.Module = self._average.module
        return averaged

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Pass once over the training images and return the mean of each term of the loss.

        Args:    epoch: 0-based.
        Returns: ``train/loss`` with penalties, ``train/task_loss``, one key per penalty, ``train/learning_rate``.
        Raises:  LossDiverged, naming epoch and step, if a loss is not finite.
        """
        self.model.train()
        self._stack.on_epoch_start(self.model, epoch)
        sums: dict[str, float] = defaultdict(float)
        rate = 0.0
        batches = recipe.epoch_batches(self.splits.train, self.config, self.seed, epoch)
        for number, (images, labels) in enumerate(batches):
            step = epoch * self._steps_per_epoch + number
            rate = recipe.learning_rate(self.config, step, self._steps_per_epoch)
            recipe.set_learning_rate(self._optimizer, rate)
            images, labels = images.to(self.device), labels.to(self.device)
            batch = recipe.make_batch(images, labels, self.config, self._mixup, self.splits.num_classes)
            for name, value in self._learn(batch, f"epoch {epoch + 1}, step {number + 1}").items():
                sums[f"train/{name}"] += value * len(images)
            if self._average is not None:
                self._average.update(self.model, step=step + 1)
        count = len(self.splits.train.labels)
        return {name: total / count for name, total in sums.items()} | {"train/learning_rate": rate}

    def accuracy_and_loss(self, images: Images) -> tuple[float, float]:
        """Return the kept model's accuracy in [0, 1] and mean cross-entropy, in eval mode."""
        everything = torch.arange(len(images.labels))
        logits = predict_logits(self.kept_model, images, everything, self.config.batch_size, self.device)
        accuracy = float((logits.argmax(1) == images.labels).double().mean())
        return accuracy, float(F.cross_entropy(logits, images.labels))

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

    def _learn(self, batch: Batch, where: str) -> dict[str, float]:
        """Move the weights once and return the terms of the loss at the first closure call (SAM calls it twice)."""
        seen = batch
        if self._stack.perturbs:
            self.model.eval()
            seen = self._stack.perturb(self.model, batch)
            self.model.train()
        first: dict[str, float] = {}

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            terms = self._loss_terms(seen, batch)
            total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else terms["task_loss"]
            values = torch.stack([total, *terms.values()]).detach().tolist()
            if not math.isfinite(values[0]):
                raise LossDiverged(f"the training loss is {values[0]} in {where}.")
            total.backward()  # type: ignore[no-untyped-call]
            if self.config.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            if not first:
                first.update(zip(("loss", *terms), values, strict=True))
            return total

        self._stack.update(self._optimizer, closure)
        return first

    def _loss_terms(self, seen: Batch, clean: Batch) -> dict[str, Tensor]:
        """Return the task loss and the penalties; only a forward pass inside this call is recorded."""
        if not self._stack.needs_attention:
            task = self._stack.loss(self.model, seen, clean)
            return {"task_loss": task, **self._stack.penalty(self.model, [])}
        with record_attention(self.model) as attention:
            task = self._stack.loss(self.model, seen, clean)
        return {"task_loss": task, **self._stack.penalty(self.model, attention)}
