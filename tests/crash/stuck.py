"""An attack that hangs so many times, and then is FGSM: for the tests of what follows."""

import ctypes
from pathlib import Path

from torch import Tensor

from trainables.attack import Model
from trainables.attacks.fgsm import Fgsm, FgsmConfig
from trainables.worst_case import WorstCase


class StuckConfig(FgsmConfig):
    """How often it hangs."""

    times: int = 0
    """Over all trials."""
    marks: str = "."
    """Folder in which it remembers how often it has."""


class Stuck(Fgsm):
    """FGSM that hangs first, as a deadlock in native code does: not even Python's own signal handlers run."""

    Config = StuckConfig

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        assert isinstance(self.config, StuckConfig)
        for time in range(self.config.times):
            try:
                Path(self.config.marks, f"stuck-{time}").touch(exist_ok=False)
            except FileExistsError:
                continue
            ctypes.PyDLL(None).sleep(10_000)
        super().run(model, worst, seed, image_ids)
