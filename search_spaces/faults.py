"""Fault injection: places at which a test can have this process killed, as a power cut would.

``PARETUNE_KILL_AT=propose.commit:3`` kills the process with SIGKILL when it reaches that point for the third time.
Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Literal

Point = Literal[
    "propose.commit",
    "train.start",
    "epochs.commit",
    "trained.commit",
    "stage.start",
    "unit.write",
    "unit.written",
    "stage.adopt",
    "mlflow.note",
]
"""Each names what has been done and not yet been committed when it is reached."""

_reached: Counter[str] = Counter()


def reach(point: Point) -> None:
    """Die here, if the environment says so."""
    wanted = os.environ.get("PARETUNE_KILL_AT")
    if wanted is None:
        return
    _reached[point] += 1
    if wanted == f"{point}:{_reached[point]}":
        os.kill(os.getpid(), signal.SIGKILL)
