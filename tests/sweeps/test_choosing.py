"""Choosing: conditions, ranking, bounds that are never chosen, and the knee of a front."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import ConfigError
from sweeps.choosing import choose, facts_of, knee_of, parse_conditions
from sweeps.ledger import Ledger
from sweeps.pareto import Point, front, knee
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers


@pytest.fixture
def snapshot(open_ledger: Callable[..., Ledger]) -> Snapshot:
    """Three exact trials on the front, one bound behind it, one that failed."""
    ledger = open_ledger()
    with ledgers.Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.95, 60, 20)
        ledgers.finish(ledger, 1, "jasmin", 0.90, 120, 100)
        ledgers.finish(ledger, 2, "adversarial", 0.80, 200, 180)
        ledgers.finish(ledger, 3, "jasmin", 0.78, 150, None)
        ledgers.propose(ledger, 4, "plain")
        ledgers.start(ledger, 4)
        ledger.fail(4, "nan", "the loss is nan")
    return Snapshot.read(ledger)


def test_the_best_is_the_first_by_a_figure_among_those_that_meet_every_condition(snapshot: Snapshot) -> None:
    cases = {"clean_acc>=0.9": [1, 0], "clean_acc > 0.9": [0], "clean_acc>=0.8, method==jasmin": [1]}
    for text, expected in cases.items():
        found = choose(snapshot, parse_conditions([text], snapshot), "robust_acc")
        assert [trial.number for trial in found.ranked] == expected
    assert [t.number for t in choose(snapshot, [], "clean_acc").ranked] == [0, 1, 2]
    assert [t.number for t in choose(snapshot, [], "robust_acc", "adversarial").ranked] == [2]


def test_a_bound_is_never_chosen_and_named_if_it_might_be_better(snapshot: Snapshot) -> None:
    found = choose(snapshot, [], "robust_acc", "jasmin")
    assert [trial.number for trial in found.ranked] == [1]
    assert [trial.number for trial in found.open] == [3]
    assert choose(snapshot, [], "robust_acc").open == ()
    assert choose(snapshot, parse_conditions(["clean_acc<0.79"], snapshot), "robust_acc").ranked == ()


def test_a_bound_is_not_chosen_where_robust_accuracy_is_no_objective_either(snapshot: Snapshot) -> None:
    clean = replace(snapshot, sweep=replace(snapshot.sweep, objectives=("clean_acc",)))
    assert [t.number for t in choose(clean, [], "clean_acc").ranked] == [0, 1, 2, 3]
    found = choose(clean, [], "robust_acc", "jasmin")
    assert ([t.number for t in found.ranked], [t.number for t in found.open]) == ([1], [3])


@pytest.mark.parametrize("operator", [">=", "<=", "==", "!=", ">", "<"])
def test_each_operator_means_what_it_does_in_python(snapshot: Snapshot, operator: str) -> None:
    (condition,) = parse_conditions([f"clean_acc{operator}0.9"], snapshot)
    for trial in snapshot.trials[:4]:
        assert condition.holds(facts_of(trial)) == eval(f"{trial.clean_acc} {operator} 0.9")
    assert not condition.holds(facts_of(snapshot.trials[4]))  # it was never measured


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clean_acc~0.9", "expected a condition such as clean_acc>=0.9"),
        ("claen_acc>0.9", "Did you mean 'clean_acc'"),
        ("", "expected a condition"),
    ],
)
def test_what_is_no_condition_is_refused(snapshot: Snapshot, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_conditions([text], snapshot)


def test_unknown_methods_and_figures_are_refused(snapshot: Snapshot) -> None:
    with pytest.raises(ConfigError, match="found adversarial, jasmin, plain"):
        choose(snapshot, [], "robust_acc", "jasmine")
    with pytest.raises(ConfigError, match="expected one of clean_acc"):
        choose(snapshot, [], "loss")


def test_the_knee_of_a_sweep_is_on_its_front(snapshot: Snapshot) -> None:
    found = knee_of(snapshot)
    assert found is not None
    assert found.number == 1


def slow_knee(points: list[Point]) -> float:
    """The largest distance above the line between the ends, by the formula for a point and a line, after scaling."""
    xs, ys = zip(*points, strict=True)
    scaled = [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]
    (x1, y1), (x2, y2) = min(scaled), max(scaled)
    return max(((y1 - y2) * x + (x2 - x1) * y + x1 * y2 - x2 * y1) / 2**0.5 for x, y in scaled)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=12))
def test_the_knee_is_the_point_farthest_above_the_line_between_the_ends(drawn: list[tuple[int, int]]) -> None:
    found = [drawn[place] for place in front([(x / 20, y / 20) for x, y in drawn])]
    points: list[Point] = sorted({(x / 20, y / 20) for x, y in found})
    if len(points) < 3:
        assert knee(points) is None
        return
    place, far = knee(points), slow_knee(points)
    if place is None:
        assert far <= 1e-12
    else:
        assert slow_knee(list(dict.fromkeys((points[0], points[place], points[-1])))) == pytest.approx(far)


def test_a_front_without_a_bulge_has_no_knee() -> None:
    assert knee([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]) is None
    assert all(knee(list(pair)) is None for pair in itertools.combinations([(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)], 2))
