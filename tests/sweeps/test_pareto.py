from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.pareto import Point, dominates, front, hypervolume, next_unsettled, spread

grid = st.integers(0, 6).map(lambda n: n / 6)  # few values, so that ties are common
plane = st.lists(st.tuples(grid, grid), max_size=30)
fine = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30)


def slow_front(points: list[Point]) -> list[int]:
    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def test_equal_points_do_not_dominate_each_other() -> None:
    assert dominates((0.9, 0.4), (0.9, 0.3))
    assert not dominates((0.9, 0.4), (0.9, 0.4))
    assert not dominates((0.9, 0.3), (0.8, 0.4))


@given(plane | fine | st.lists(st.tuples(grid), max_size=20) | st.lists(st.tuples(grid, grid, grid), max_size=20))
def test_the_front_is_what_its_definition_says(points: list[Point]) -> None:
    assert front(points) == slow_front(points)


def test_ties_all_stay_on_the_front() -> None:
    assert front([(0.9, 0.1), (0.8, 0.2), (0.9, 0.1), (0.8, 0.1)]) == [0, 1, 2]
    assert front([(0.5,), (0.7,), (0.7,)]) == [1, 2]
    assert front([]) == []


@given(plane)
def test_the_hypervolume_is_the_share_of_cells_that_a_point_dominates(points: list[Point]) -> None:
    cells = [((x + 0.5) / 6, (y + 0.5) / 6) for x in range(6) for y in range(6)]  # the grid has points in sixths
    covered = sum(any(dominates(point, cell) for point in points) for cell in cells)
    assert hypervolume(points) == pytest.approx(covered / 36)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_has_no_place_on_a_front(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        front([(0.9, 0.1), (value, 0.2)])


@given(plane, st.integers(0, 12))
def test_a_spread_is_as_large_as_allowed_and_holds_both_ends(points: list[Point], limit: int) -> None:
    chosen = spread(points, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(points))
    if limit >= 2 and points:
        values = [points[i] for i in chosen]
        assert min(values) == min(points)
        assert max(values) == max(points)


def settle(bounds: list[Point], truths: list[Point], steps: int = 1) -> tuple[list[Point], list[bool]]:
    """Follow next_unsettled to its end; each attack stage takes a trial's bound a part of the way to its truth."""
    points, done = list(bounds), [0] * len(bounds)
    while (place := next_unsettled(points, [d == steps for d in done])) is not None:
        done[place] += 1
        way = done[place] / steps
        bound, truth = bounds[place][-1], truths[place][-1]
        points[place] = (*truths[place][:-1], truth if way == 1 else bound + (truth - bound) * way)
    return points, [d == steps for d in done]


def exact_front(points: list[Point], exact: list[bool]) -> list[int]:
    """What is reported: the front of the exact trials."""
    settled = [i for i, e in enumerate(exact) if e]
    return [settled[i] for i in front([points[i] for i in settled])]


@given(st.lists(st.tuples(grid, grid, grid), max_size=20), st.integers(1, 3))
def test_settling_ends_with_the_front_of_full_evaluation(drawn: list[tuple[float, float, float]], steps: int) -> None:
    bounds: list[Point] = [(clean, max(a, b)) for clean, a, b in drawn]
    truths: list[Point] = [(clean, min(a, b)) for clean, a, b in drawn]
    points, exact = settle(bounds, truths, steps)
    assert exact_front(points, exact) == front(truths)
    assert all(p == t for p, t, e in zip(points, truths, exact, strict=True) if e)


def test_settling_is_right_on_thousands_of_random_sweeps_and_spares_attacks() -> None:
    rng = random.Random(0)
    ran = trials = 0
    for _ in range(3000):
        size, levels = rng.randint(1, 15), rng.choice([5, 50, 10**6])
        values = [(rng.randrange(levels), *sorted((rng.randrange(levels), rng.randrange(levels)))) for _ in range(size)]
        truths: list[Point] = [(clean, low) for clean, low, _ in values]
        points, exact = settle([(clean, high) for clean, _, high in values], truths)
        assert exact_front(points, exact) == front(truths)
        ran, trials = ran + sum(exact), trials + size
    assert ran < 0.8 * trials


@given(plane, st.data())
def test_only_a_bound_on_the_front_has_to_be_settled(points: list[Point], data: st.DataObject) -> None:
    exact = data.draw(st.lists(st.booleans(), min_size=len(points), max_size=len(points)))
    chosen = next_unsettled(points, exact)
    waiting = [i for i in slow_front(points) if not exact[i]]
    assert (chosen is None) == (not waiting)
    if chosen is not None:
        assert chosen in waiting
        assert points[chosen][-1] == max(points[i][-1] for i in waiting)
