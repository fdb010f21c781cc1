"""PGD that takes its time and notes every unit that it begins, so that what ran twice can be counted."""

import os
import time

from torch import Tensor

from trainables.attack import Model
from trainables.attacks.pgd import Pgd
from trainables.worst_case import WorstCase


class NotedPgd(Pgd):
    """PGD in no hurry: a unit is noted with its worker's raylet, and waits as the environment says."""

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        if place := os.environ.get("PARETUNE_TEST_NOTES"):
            with open(f"{place}.units", "a") as notes:
                notes.write(f"{os.getppid()}\n")
        time.sleep(float(os.environ.get("PARETUNE_TEST_PACE_S", "0")))
        super().run(model, worst, seed, image_ids)
