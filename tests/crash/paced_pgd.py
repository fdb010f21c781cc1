"""PGD that takes its time, so that a storm meets attacks on their way, at no cost."""

import os
import time

from torch import Tensor

from trainables.attack import Model
from trainables.attacks.pgd import Pgd
from trainables.worst_case import WorstCase


class PacedPgd(Pgd):
    """PGD in no hurry: a unit waits for the seconds that the environment says."""

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        time.sleep(float(os.environ.get("PARETUNE_TEST_PACE_S", "0")))
        super().run(model, worst, seed, image_ids)
