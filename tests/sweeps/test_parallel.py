"""Parallel coordinates: where values and ticks stand, and which line a trial has."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.ledger import Ledger
from sweeps.parallel import Axis, axes_in, figures_by_method, parameter_axis
from sweeps.snapshot import Snapshot


def domain(low: float, high: float, log: bool = False) -> str:
    return json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": low, "high": high, "log": log}})


def choice(*values: str) -> str:
    return f'{{"name":"CategoricalDistribution","attributes":{{"choices":[{",".join(values)}]}}}}'


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.booleans())
def test_ticks_are_few_within_the_axis_and_stand_where_their_value_does(low: float, times: float, log: bool) -> None:
    axis = parameter_axis("x", [domain(low, low * times, log)])
    assert 2 <= len(axis.ticks) <= 14
    heights = [height for height, _ in axis.ticks]
    assert heights == sorted(heights)
    for height, text in axis.ticks:
        assert -1e-6 <= height <= 1 + 1e-6
        value = low * times**height if log else low + (low * times - low) * height
        assert float(text) == pytest.approx(value, rel=6e-3)  # three digits are written


def test_a_logarithmic_axis_has_powers_of_ten_at_even_steps() -> None:
    axis = parameter_axis("lr", [domain(1e-4, 1e-1, log=True)])
    assert axis.ticks == [
        (0.0, "0.0001"),
        (pytest.approx(1 / 3), "0.001"),
        (pytest.approx(2 / 3), "0.01"),
        (pytest.approx(1.0), "0.1"),
    ]
    assert axis.place(math.sqrt(1e-4 * 1e-1)) == pytest.approx(0.5)


def test_choices_stand_at_even_steps_under_their_names() -> None:
    axis = parameter_axis("k", [choice("0", '"max"', "null")])
    assert axis.ticks == [(0.0, "0"), (0.5, "max"), (1.0, "–")]
    assert axis.place("max") == 0.5
    assert Axis("one", choices=("a",)).place("a") == 0.5


def test_an_axis_covers_every_domain_that_a_parameter_had() -> None:
    axis = parameter_axis("x", [domain(0.2, 0.5), domain(0.1, 0.3), domain(0.2, 0.5)])
    assert (axis.low, axis.high) == (0.1, 0.5)
    assert parameter_axis("k", [choice("1", "2"), choice("4", "2")]).choices == ("1", "2", "4")


def lines(figure: dict[str, Any]) -> dict[int, tuple[list[float], dict[str, Any]]]:
    """Trial → heights along its line, and its trace."""
    found = {}
    for trace in figure["data"]:
        for number, height in zip(trace.get("customdata", []), trace["y"], strict=False):
            if number is not None:
                found.setdefault(number, ([], trace))[0].append(height)
    return found


def test_each_finished_trial_is_a_line_through_what_was_drawn_to_its_accuracies(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    figures = figures_by_method(snapshot)
    assert list(figures) == ["jasmin"]  # the others have one finished trial each
    figure = figures["jasmin"]
    assert figure["layout"]["xaxis"]["ticktext"] == ["learning_rate", "weight", "k", "aggregation", "clean", "robust"]
    assert axes_in(figure) == 6
    found = lines(figure)
    assert sorted(found) == [1, 3]  # 4 failed, 6 is not finished
    heights, trace = found[3]
    params = snapshot.trials[3].params
    assert heights[0] == pytest.approx(math.log(params["training.learning_rate"] / 1e-4, 100), abs=1e-4)
    assert heights[2] == pytest.approx([0, 1, 2, 4].index(params["jasmin.k"]) / 3, abs=1e-4)
    assert heights[4:] == [0.0, 1.0]  # clean 0.78 of [0.78, 0.90], robust 150 of [100, 150] images
    assert trace["line"]["dash"] == "dot"  # a bound
    assert "dash" not in found[1][1]["line"]
    assert found[1][1]["line"]["width"] > trace["line"]["width"]


def test_nothing_searched_is_no_figure(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    for trial in snapshot.trials:
        trial.params.clear()  # type: ignore[attr-defined]
    assert figures_by_method(snapshot) == {}
