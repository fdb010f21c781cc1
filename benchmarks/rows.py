"""Rows of benchmarks/results.json: ``{id, value, spread, unit, target, met, peer, command}``.

A target that is missed is a row too, and so is a figure that this machine cannot measure: its value is null.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def measured(
    identity: str,
    values: Sequence[float],
    unit: str,
    command: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    peer: Any = None,
) -> Row:
    """Return the median and the range of some measurements.

    Args: at_most, at_least: the target, one of them or none; peer: what stands beside it.
    """
    value = statistics.median(values)
    met = value <= at_most if at_most is not None else None if at_least is None else value >= at_least
    return {
        "id": identity,
        "value": round(value, 3),
        "spread": [round(min(values), 3), round(max(values), 3)],
        "unit": unit,
        "target": _target(at_most, at_least),
        "met": met,
        "peer": peer,
        "command": command,
    }


def not_measured(
    identity: str,
    reason: str,
    unit: str,
    command: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row:
    """Return the row of a figure that needs what this machine does not have; the reason stands in `peer`."""
    return {
        "id": identity,
        "value": None,
        "spread": None,
        "unit": unit,
        "target": _target(at_most, at_least),
        "met": None,
        "peer": f"not measured: {reason}",
        "command": command,
    }


def _target(at_most: float | None, at_least: float | None) -> str | None:
    if at_most is not None:
        return f"<= {at_most:g}"
    return None if at_least is None else f">= {at_least:g}"
