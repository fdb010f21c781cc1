"""What all tests share: one torch thread, a tiny trial on digits, and a small model trained once per session."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ["COLUMNS"] = "120"  # of the command line's output, wherever the tests run

TINY_MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3}
TINY_DATA = {"train_images": 100, "validation_images": 40, "test_images": 40}
TINY_TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 3e-3}


@pytest.fixture(scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_trial(_one_thread: None) -> Callable[..., Any]:
    """Build a TrialConfig of 3 blocks of width 48 and 100 digits; sections given by keyword are merged in."""
    from trainables.config import TrialConfig

    def build(methods: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]) -> TrialConfig:
        return TrialConfig.model_validate(
            {
                "model": {**TINY_MODEL, **sections.get("model", {})},
                "data": {**TINY_DATA, **sections.get("data", {})},
                "training": {**TINY_TRAINING, **sections.get("training", {})},
                "methods": methods or {},
            }
        )

    return build


class Trained(NamedTuple):
    """A finished plain training on digits."""

    model: Any
    splits: Any
    folder: Path


@pytest.fixture(scope="session")
def trained(tiny_trial: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that is clearly better than chance and far from robust; ten epochs, about three seconds."""
    import torch

    from trainables.training import Training, load_final

    whole = {"train_images": None, "validation_images": None, "test_images": None}
    folder = tmp_path_factory.mktemp("trained")
    training = Training(tiny_trial(data=whole, training={"epochs": 10, "batch_size": 64}), 0, folder)
    while not training.is_done:
        training.run_epoch()
    training.finish()
    model, splits, _ = load_final(folder, device=torch.device("cpu"))
    return Trained(model, splits, folder)
