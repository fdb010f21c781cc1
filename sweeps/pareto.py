"""Pareto fronts of maximised objectives, and which trial's attacks to continue next. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Return whether `a` is at least as good in every objective and better in one: dominates((.9, .4), (.9, .3))."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def front(points: Sequence[Point]) -> list[int]:
    """Return the positions of the points that no other dominates, in their given order; equal points all stay.

    Raises: ValueError on a value that is not finite: a missing or NaN objective has no place on a front.
    """
    if not points:
        return []
    values = np.asarray(points, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError("a front is made of finite values only")
    import moocore

    return [int(i) for i in np.flatnonzero(moocore.is_nondominated(values, maximise=True, keep_weakly=True))]


def hypervolume(points: Sequence[Point]) -> float:
    """Return what the points dominate of the box from the origin, values in [0, 1]: a share of all there could be.

    The reference point is the origin and nothing is scaled (our choice: accuracies are fractions already).

    hypervolume([(0.9, 0.2), (0.5, 0.4)])  # 0.28
    """
    if not points:
        return 0.0
    import moocore

    values = np.asarray(points, dtype=float)
    return float(moocore.hypervolume(values, ref=np.zeros(values.shape[1]), maximise=True))


def spread(points: Sequence[Point], limit: int) -> list[int]:
    """Choose at most `limit` points, evenly along the first objective and both ends included; positions, ascending."""
    order = sorted(range(len(points)), key=lambda i: (points[i], i))
    if limit >= len(order):
        return sorted(order)
    if limit <= 0:
        return []
    steps = [0] if limit == 1 else [round(i * (len(order) - 1) / (limit - 1)) for i in range(limit)]
    return sorted(order[step] for step in steps)


def knee(points: Sequence[Point]) -> int | None:
    """Return the position of the knee of a front of two objectives, past which a little of one costs much of the other.

    It is the point farthest above the line between the two ends, both objectives scaled to the front's range (Das
    1999's definition, scaled: our choice, because clean accuracies usually span less). None for fewer than three
    different points, or where none lies above the line.
    """
    values = np.asarray(points, dtype=float)
    if len(set(points)) < 3 or values.shape[1] != 2:
        return None
    low, high = values.min(axis=0), values.max(axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    above = scaled.sum(axis=1) - 1  # the ends of a front are (0, 1) and (1, 0)
    best = int(np.argmax(above))
    return best if above[best] > 0 else None


def next_unsettled(points: Sequence[Point], exact: Sequence[bool]) -> int | None:
    """Return which trial's next attack stage has to run before the front is known; None when it is known.

    Robust accuracy can only fall as attacks are added, so a point that is not exact is an upper bound. A bound that
    an exact point strictly dominates can never reach the front. Of the rest, a bound that lies on the front of all
    points (exact ones and bounds) must be settled whatever else happens; the one with the highest value in the last
    objective goes first (our choice: its fall may free the most others).
    """
    open_points = [i for i in front(points) if not exact[i]]
    return max(open_points, key=lambda i: (points[i][-1], -i), default=None)
