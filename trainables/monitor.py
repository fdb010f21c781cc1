"""The monitor: robust accuracy on training and validation images while a trial trains.

Their gap is robust overfitting: accuracy under attack goes on rising on the training images and falls on others.
"""

from __future__ import annotations

import torch
from torch import nn

from search_spaces.seeds import derive_seed
from trainables.attack import Threat
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import MonitorConfig
from trainables.dataset import Images, Splits, balanced_subset
from trainables.verdicts import clean_correct, judge, units

SEED = derive_seed("monitor")
"""Of the choice of images and of the random starts: the same in every epoch and trial, so that curves compare."""


class Monitor:
    """PGD on fixed class-balanced images of two splits, training images as they are, without augmentation.

    It draws from generators of its own, and leaves modes, flags and weights as they are.
    """

    def __init__(self, config: MonitorConfig, splits: Splits, batch_size: int, device: torch.device) -> None:
        """Args: batch_size: images attacked at once; device: where the model is."""
        self.config = config
        self._attack = Pgd(pgd_of(config), threat_of(config))
        self._splits, self._batch_size, self._device = splits, batch_size, device
        self._train, self._validation = (_choose(part, config.images) for part in (splits.train, splits.validation))

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return ``train/robust_acc`` and ``val/robust_acc`` in [0, 1], and their difference ``val/robust_gap``."""
        train = self._robust_accuracy(model, self._splits.train, self._train)
        validation = self._robust_accuracy(model, self._splits.validation, self._validation)
        return {"train/robust_acc": train, "val/robust_acc": validation, "val/robust_gap": train - validation}

    def _robust_accuracy(self, model: nn.Module, images: Images, ids: torch.Tensor) -> float:
        size, device = self._batch_size, self._device
        standing = ids[clean_correct(model, images, ids, size, device)]
        verdicts = [
            judge(model, self._attack, images, unit, seed=SEED, batch_size=size, device=device)
            for unit in units(standing, size)
        ]
        return sum(int(verdict.correct.sum()) for verdict in verdicts) / len(ids)


def pgd_of(config: MonitorConfig) -> PgdConfig:
    """Return the attack of a monitor."""
    return PgdConfig(steps=config.steps, step_size=config.step_size)


def threat_of(config: MonitorConfig) -> Threat:
    """Return the ball of a monitor that is on."""
    assert config.norm is not None
    assert config.epsilon is not None
    return Threat(norm=config.norm, epsilon=config.epsilon)


def is_due(config: MonitorConfig, epoch: int, total_epochs: int) -> bool:
    """Return whether a monitor looks after epoch `epoch` (1-based): every so many epochs, and after the last."""
    return config.images > 0 and (epoch % config.every == 0 or epoch == total_epochs)


def _choose(images: Images, count: int) -> torch.Tensor:
    everything = torch.arange(len(images.labels))
    return balanced_subset(images.labels, everything, count, torch.Generator().manual_seed(SEED))
