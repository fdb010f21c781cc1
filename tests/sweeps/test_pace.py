"""Pace and time left, against what a person would count by hand."""

from __future__ import annotations

import pytest

from sweeps.pace import FEWEST, WINDOW_S, Left, Pace, Tick, Work, in_clock, in_words, measure_pace, time_left

MEANS = {("validation", 0): 2.0, ("validation", 1): 30.0}


def test_there_is_no_pace_before_anything_has_ended() -> None:
    assert measure_pace([], 0, 100) is None


def test_the_pace_counts_from_the_first_training_until_now() -> None:
    ticks = [Tick(20, 1, 100), Tick(40, 2, 200)]
    assert measure_pace(ticks, began=10, now=40) == Pace(3 / 30, 300 / 30)
    assert measure_pace(ticks, began=10, now=70) == Pace(3 / 60, 300 / 60)


def test_the_pace_is_that_of_the_window_when_much_has_happened() -> None:
    slow = [Tick(10.0 * i, 1) for i in range(1, 101)]  # until 1000 s
    fast = [Tick(1000 + i, 1) for i in range(1, 301)]  # then one a second for five minutes
    found = measure_pace([*slow, *fast], began=0, now=1300)
    assert found is not None
    assert found.epochs_per_s == pytest.approx(300 / WINDOW_S)


def test_epochs_longer_than_the_window_still_have_a_pace() -> None:
    ticks = [Tick(1000.0 * i, 1) for i in range(1, 31)]
    found = measure_pace(ticks, began=0, now=30_000)
    assert found is not None
    assert found.epochs_per_s == pytest.approx(FEWEST / (1000 * FEWEST))


def test_time_left_waits_for_a_first_measurement() -> None:
    assert time_left(Work(epochs=10), None, MEANS, 1) is None
    assert time_left(Work(first=3), None, {}, 1) is None
    assert time_left(Work(), None, {}, 1) == Left(0.0)


def test_first_attacks_run_beside_the_trainings_and_later_ones_after_them() -> None:
    pace = Pace(0.5, 0)
    assert time_left(Work(epochs=100, first=10), pace, MEANS, 1) == Left(200.0)
    assert time_left(Work(epochs=100, first=300), pace, MEANS, 1) == Left(600.0)
    later = [("validation", 1)] * 4
    assert time_left(Work(epochs=100, first=10, later=later), pace, MEANS, 2) == Left(200.0 + 60.0)


def test_what_was_never_measured_makes_it_a_lower_bound() -> None:
    found = time_left(Work(epochs=100, later=[("test", 0), ("validation", 1)]), Pace(1, 0), MEANS, 1)
    assert found == Left(130.0, at_least=True)
    assert in_words(found) == "more than 2 min left"


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (None, "time left: –"),
        (Left(3), "nearly done"),
        (Left(3, at_least=True), "time left: –"),
        (Left(44), "about 40 s left"),
        (Left(250), "about 4 min left"),
        (Left(8000), "about 2.2 h left"),
        (Left(400_000), "about 4.6 days left"),
    ],
)
def test_time_left_is_said_as_a_person_would(left: Left | None, words: str) -> None:
    assert in_words(left) == words


def test_a_clock_has_hours_only_when_it_needs_them() -> None:
    assert (in_clock(309.7), in_clock(7509)) == ("05:09", "2:05:09")
