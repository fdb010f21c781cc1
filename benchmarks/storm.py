"""One storm of twenty kills: how long a sweep takes that meets them, and the checks afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.rows import Row, measured

SEED = 2


def rows() -> Iterator[Row]:
    """Wall time of a storm with TPE; it must be weathered."""
    from tests.crash.storm import OF_TWENTY, weather

    began = time.perf_counter()
    weather(SEED, OF_TWENTY, "tpe", 40, lambda line: None)
    took = time.perf_counter() - began
    yield measured("storm_20_kills", [took], "s", f"python -m tests.crash.storm --seed {SEED}", at_most=360)
