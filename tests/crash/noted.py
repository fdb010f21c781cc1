"""A method that takes its time and notes every epoch that it begins, so that what ran twice can be counted."""

import os
import time
from typing import Any

from trainables.config import MethodConfig
from trainables.method import Method


class Noted(Method[MethodConfig]):
    """Plain fine-tuning in no hurry: an epoch is noted with its worker's raylet, and waits as the environment says."""

    def on_epoch_start(self, *_: Any) -> dict[str, float]:
        if place := os.environ.get("PARETUNE_TEST_NOTES"):
            with open(f"{place}.epochs", "a") as notes:
                notes.write(f"{os.getppid()}\n")
        time.sleep(float(os.environ.get("PARETUNE_TEST_PACE_S", "0")))
        return {}
