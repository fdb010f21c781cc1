"""A method that takes its time, so that a storm meets trainings on their way, at no cost."""

import os
import time
from typing import Any

from trainables.config import MethodConfig
from trainables.method import Method


class Paced(Method[MethodConfig]):
    """Plain fine-tuning in no hurry: an epoch waits for the seconds that the environment says."""

    def on_epoch_start(self, *_: Any) -> dict[str, float]:
        time.sleep(float(os.environ.get("PARETUNE_TEST_PACE_S", "0")))
        return {}
