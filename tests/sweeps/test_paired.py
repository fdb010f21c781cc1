"""Paired comparison: counts, the exact test and the interval, each against its slow definition."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import SweepError
from sweeps.columns import cell_of, columns_of
from sweeps.ledger import Ledger
from sweeps.paired import Counts, compare_cells, compare_rows, count_pairs, render_comparison
from sweeps.snapshot import Snapshot
from tests.sweeps.ledgers import judged, parted
from tests.sweeps.test_terminal import printed

verdicts = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for _ in range(2)))
)
tables = st.tuples(*(st.integers(0, 40) for _ in range(4))).filter(any).map(lambda four: Counts(*four))


@given(verdicts)
def test_every_image_is_counted_once(drawn: tuple[list[bool], list[bool]]) -> None:
    a, b = drawn
    found = count_pairs(np.array(a), np.array(b))
    pairs = list(zip(a, b, strict=True))
    kinds = ((True, True), (True, False), (False, True), (False, False))
    assert (found.both, found.only_a, found.only_b, found.neither) == tuple(map(pairs.count, kinds))
    assert found.difference == pytest.approx(sum(a) / len(a) - sum(b) / len(b))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (0, 6), (2, 9), (8, 3)])
def test_the_p_value_counts_the_coin_tosses_that_are_as_uneven(only_a: int, only_b: int) -> None:
    count = only_a + only_b
    as_uneven = sum(
        abs(2 * sum(toss) - count) >= abs(only_a - only_b) for toss in itertools.product((0, 1), repeat=count)
    )
    assert Counts(5, only_a, only_b, 5).p_value == pytest.approx(as_uneven / 2**count)


def test_the_p_value_of_thousands_of_images_is_a_number() -> None:
    from scipy.stats import binomtest

    for only_a, only_b in ((2000, 2100), (0, 5000), (30, 60)):
        assert Counts(0, only_a, only_b, 0).p_value == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, method 10
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness
    ],
)
def test_the_interval_matches_published_values(table: tuple[int, int, int, int], low: float, high: float) -> None:
    assert Counts(*table).interval == pytest.approx((low, high), abs=5e-4)


@given(tables)
def test_the_interval_is_joined_from_the_solutions_of_wilsons_equation(table: Counts) -> None:
    n = table.images
    a = [True] * (table.both + table.only_a) + [False] * (table.only_b + table.neither)
    b = [True] * table.both + [False] * table.only_a + [True] * table.only_b + [False] * table.neither
    (low_a, high_a), (low_b, high_b) = solve_wilson(sum(a), n), solve_wilson(sum(b), n)
    p, q = sum(a) / n, sum(b) / n
    deviations = math.sqrt(p * (1 - p) * q * (1 - q))
    covariance = sum(x and y for x, y in zip(a, b, strict=True)) / n - p * q
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * n))
    phi = covariance / deviations if deviations else 0.0
    down = (p - low_a) ** 2 - 2 * phi * (p - low_a) * (high_b - q) + (high_b - q) ** 2
    up = (high_a - p) ** 2 - 2 * phi * (high_a - p) * (q - low_b) + (q - low_b) ** 2
    low, high = table.interval
    assert (low, high) == pytest.approx((p - q - math.sqrt(max(down, 0)), p - q + math.sqrt(max(up, 0))), abs=1e-6)
    assert -1 <= low <= table.difference + 1e-12
    assert table.difference - 1e-12 <= high <= 1


def solve_wilson(successes: int, count: int) -> tuple[float, float]:
    """Bisect |p̂ − p| = z √(p (1 − p) / n) on both sides of p̂."""

    def inside(p: float) -> bool:
        return abs(share - p) <= 1.96 * math.sqrt(p * (1 - p) / count)

    share = successes / count
    limits = []
    for end in (0.0, 1.0):
        good, bad = share, end
        for _ in range(60):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if inside(middle) else (good, middle)
        limits.append(end if share == end else good)
    return limits[0], limits[1]


@given(tables)
def test_exchanging_the_trials_mirrors_everything(table: Counts) -> None:
    mirrored = Counts(table.both, table.only_b, table.only_a, table.neither)
    low, high = mirrored.interval
    assert mirrored.difference == -table.difference
    assert mirrored.p_value == table.p_value
    assert (-high, -low) == pytest.approx(table.interval, abs=1e-12)


def test_the_interval_holds_the_true_difference_nineteen_times_in_twenty() -> None:
    n, shares = 25, (0.25, 0.15, 0.05, 0.55)  # every table that 25 images can give, each with its probability
    truth, held = shares[1] - shares[2], 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if (d := n - a - b - c) >= 0:
            low, high = Counts(a, b, c, d).interval
            ways = math.factorial(n) / math.prod(map(math.factorial, (a, b, c, d)))
            weight = ways * math.prod(p**k for p, k in zip(shares, (a, b, c, d), strict=True))
            held += weight * (low <= truth <= high)
    assert 0.94 < held < 0.99


def test_verdicts_on_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same images.*\(3,\) and \(4,\)"):
        count_pairs(np.ones(3, bool), np.ones(4, bool))
    plan = parted()
    pgd, auto = columns_of(plan)
    whole, half = cell_of(pgd, [judged(plan[0], 50)]), cell_of(pgd, [judged(plan[0], [True] * 128)])
    with pytest.raises(
        SweepError, match=r"validation\.pgd judged 256 images of trial 3 and 128 of trial 4.*same images"
    ):
        compare_cells(pgd, 3, whole, 4, half)
    with pytest.raises(SweepError, match=r"validation\.autoattack has not run on trial 4"):
        compare_cells(auto, 3, cell_of(auto, [judged(plan[1], 9)]), 4, cell_of(auto, []))


def test_two_trials_are_compared_in_every_column_that_both_have(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    rows = compare_rows(snapshot, 1, 2)
    assert [row.column.key for row in rows] == ["validation.pgd", "validation.autoattack"]
    assert [row.counts for row in rows] == [Counts(120, 0, 80, 56), Counts(100, 0, 80, 76)]
    assert [row.column.key for row in compare_rows(snapshot, 2, 3)] == ["validation.pgd"]
    shown = " ".join(printed(render_comparison(snapshot, 1, 2), width=80).split())
    assert "Trial 1 (jasmin, clean 0.900) against trial 2 (adversarial, clean 0.800), image by image" in shown
    assert "autoattack 256 0.391 0.703 100 0 80 76 -0.312 1.7e-24 [-0.367, -0.253]" in shown
    assert "≤" not in shown


def test_a_bound_is_marked_on_its_side(unfinished: Ledger) -> None:
    plan = parted()
    few = Snapshot.read(unfinished)
    stages = {0: tuple(judged(s, 90) for s in plan), 1: tuple(judged(s, 80, 1) for s in plan[:3])}
    snapshot = replace(few, sweep=replace(few.sweep, planned_stages=plan), stages=stages)
    shown = " ".join(printed(render_comparison(snapshot, 0, 1), width=80).split())
    assert "0.352 ≤ 0.312" in shown
    assert "that side can only fall" in shown


def test_trials_that_cannot_be_compared_are_refused(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    with pytest.raises(SweepError, match="no trial 99; found trials: 0 to 7"):
        compare_rows(snapshot, 0, 99)
    with pytest.raises(SweepError, match="with itself"):
        compare_rows(snapshot, 2, 2)
    with pytest.raises(SweepError, match=r"no attack ran on both trials \(trial 0 is finished, trial 4 is failed"):
        compare_rows(snapshot, 0, 4)
