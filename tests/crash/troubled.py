"""A method that gets into trouble once, in its second epoch: for the tests of what follows."""

import time
from pathlib import Path
from typing import Literal

from torch import nn

from trainables.config import MethodConfig
from trainables.method import Draw, Method


class TroubledConfig(MethodConfig):
    """Which trouble."""

    trouble: Literal["none", "hang", "memory", "slow"] = "none"
    """slow takes its time in every epoch."""
    marks: str = "."
    """Folder in which it remembers what has happened."""


class Troubled(Method[TroubledConfig]):
    """Plain fine-tuning until the trouble comes."""

    Config = TroubledConfig

    def on_epoch_start(self, model: nn.Module, epoch: int, draw: Draw) -> dict[str, float]:
        if self.config.trouble == "slow":
            time.sleep(0.3)
        mark = Path(self.config.marks) / f"{self.config.trouble}.mark"
        if epoch != 1 or mark.exists():
            return {}
        mark.touch()
        if self.config.trouble == "hang":
            time.sleep(10_000)
        if self.config.trouble == "memory":
            raise MemoryError("no room")
        return {}
