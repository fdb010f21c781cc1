"""When a node ends: a batch system gives it until a moment, and nothing is started on it that cannot end before.

Who starts a node writes that moment into a file on it and names the file in the environment of Ray's processes there,
which hand it to their workers. A file, because the moment may come nearer: the system asks for the node earlier.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "PARETUNE_NODE_ENDS"
"""Names the file, on a node that ends; without it a node stays as long as it lives."""
MARGIN = 1.2
"""How many times what took longest so far the next may take: other trials come and go beside it (our choice)."""
SPARE_S = 2.0
"""Seconds beside that, for a checkpoint and for clocks that differ a little (our choice)."""


def ends_at() -> float | None:
    """Return when this node ends, in seconds since the epoch; None if it does not, or nobody can tell."""
    file = os.environ.get(VARIABLE)
    if file:
        with contextlib.suppress(OSError, ValueError):
            return float(Path(file).read_text())
    return None


def fits(expected_s: float | None, now: float, end: float | None) -> bool:
    """Return whether what takes so long, a margin added, is over before the end. Pure.

    Args: expected_s: None where nothing is known, which fits until the node ends. end: None is never.

    fits(100, now=0, end=121), fits(100, now=0, end=122)  # (False, True)
    """
    if end is None:
        return True
    return now < end if expected_s is None else now + MARGIN * expected_s + SPARE_S <= end
