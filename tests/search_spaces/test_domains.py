"""Domains: what YAML may write, what is drawn, what is refused."""

from __future__ import annotations

import math
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.domains import Choice, Domain, IntRange, LogUniform, Uniform, parse_domain, parse_number, thin

finite = st.floats(1e-6, 1e6)
bounds = st.tuples(finite, finite).filter(lambda pair: pair[0] < pair[1])
scalars = st.none() | st.booleans() | st.integers(-50, 50) | st.text(max_size=5)
domains = st.one_of(
    bounds.map(lambda pair: Uniform(*pair)),
    bounds.map(lambda pair: LogUniform(*pair)),
    st.tuples(st.integers(-40, 40), st.integers(1, 60), st.integers(1, 9)).map(
        lambda t: IntRange(t[0], t[0] + max(t[1], t[2]), t[2])
    ),
    st.lists(scalars, min_size=1, max_size=6, unique_by=lambda v: hash(v)).map(lambda options: Choice(tuple(options))),
)


def draw(domain: Domain, seed: int) -> object:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return domain.suggest(study.ask(), "x")


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@settings(deadline=None, max_examples=60)
@given(domains, st.integers(0, 1000))
def test_what_optuna_draws_lies_in_the_domain(domain: Domain, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns when it has to change a domain
        value = draw(domain, seed)
    assert domain.contains(value)
    assert domain.locate(value) == value


@settings(deadline=None)
@given(domains)
def test_a_domain_survives_being_written_as_yaml(domain: Domain) -> None:
    again = parse_domain(domain.plain())
    assert again == domain
    assert type(again) is type(domain)


@settings(deadline=None)
@given(domains)
def test_every_probe_lies_in_the_domain(domain: Domain) -> None:
    assert domain.probes()
    assert all(domain.contains(value) for value in domain.probes())


def test_a_list_is_a_choice_and_a_scalar_is_no_domain() -> None:
    assert parse_domain([0, 4, 8]) == Choice((0, 4, 8))
    assert parse_domain({"choice": ["max", None]}) == Choice(("max", None))
    assert parse_domain(3) is None
    assert parse_domain("max") is None
    assert parse_domain(None) is None


def test_bounds_may_be_text_and_fractions() -> None:
    assert parse_domain({"log_uniform": ["1e-4", "2/255"]}) == LogUniform(1e-4, 2 / 255)
    assert parse_domain({"int": [2, 12, 2]}) == IntRange(2, 12, 2)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"unifrom": [0, 1]}, "one of the keys choice, uniform, log_uniform, int"),
        ({"uniform": [0, 1], "int": [0, 1]}, "one of the keys"),
        ({}, "one of the keys"),
        ({"uniform": 3}, "takes a list"),
        ({"uniform": [0]}, r"takes \[low, high\]"),
        ({"uniform": [1, 1]}, "low < high"),
        ({"uniform": [2, 1]}, "low < high"),
        ({"uniform": [0, True]}, "expected a number"),
        ({"uniform": ["a", 1]}, "expected a number, found 'a'"),
        ({"uniform": [0, "inf"]}, "expected a number"),
        ({"log_uniform": [0, 1]}, "starts above 0"),
        ({"int": [0, 1.5]}, "whole numbers"),
        ({"int": [0, 5, 0]}, "at least 1"),
        ({"int": [0, 5, 6]}, "at most high - low = 5"),
        ([], "at least one value"),
        ([1, 1], "each value once"),
        ([1, True], "each value once"),
        ([[1]], "plain values"),
    ],
)
def test_an_impossible_domain_says_why(written: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_domain(written)


@pytest.mark.parametrize("text", ["nan", "inf", "1/0", "a/2", "1/2/3", "", "1e999"])
def test_text_that_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_number(text)


def test_fractions_and_exponents_are_numbers() -> None:
    assert parse_number("2/255") == 2 / 255
    assert parse_number("1e-3") == 1e-3
    assert parse_number(" 3 / 4 ") == 0.75


def test_the_upper_end_of_an_int_domain_is_the_last_step_that_fits() -> None:
    assert IntRange(1, 10, 4).high == 9
    assert IntRange(1, 10, 4).probes() == (1, 5, 9)


def test_a_wide_int_domain_has_few_probes_with_both_ends() -> None:
    probes = IntRange(0, 10**12).probes()
    assert len(probes) == 1000
    assert (probes[0], probes[-1]) == (0, 10**12)


def test_truth_values_are_no_numbers() -> None:
    assert not Uniform(0, 2).contains(True)
    assert not IntRange(0, 2).contains(True)
    assert not Choice((1, 2)).contains(True)
    with pytest.raises(ValueError, match="number"):
        Uniform(0, 2).locate(True)
    with pytest.raises(ValueError, match="outside"):
        Choice((1, 2)).locate(True)


def test_locate_returns_the_domains_own_spelling() -> None:
    assert Choice(("2/255", "4/255")).locate(2 / 255) == "2/255"
    assert Choice((0.5, 1)).locate("1/2") == 0.5
    assert Choice(("max", None)).locate(None) is None
    assert type(Uniform(0, 4).locate(3)) is float
    assert type(IntRange(0, 4).locate(3.0)) is int
    assert LogUniform(1e-4, 1).locate("1e-3") == 1e-3


@pytest.mark.parametrize(
    ("domain", "value"),
    [(Uniform(0, 1), 1.5), (IntRange(0, 8, 2), 3), (IntRange(0, 8), 2.5), (Choice((0, 4)), 5), (Choice(("a",)), [1])],
)
def test_locate_refuses_what_is_outside_and_names_the_domain(domain: Domain, value: object) -> None:
    with pytest.raises(ValueError, match="outside what is searched") as caught:
        domain.locate(value)
    assert str(domain) in str(caught.value)


@pytest.mark.parametrize("low", [math.nan, math.inf, -math.inf])
def test_bounds_are_finite(low: float) -> None:
    with pytest.raises(ValueError, match="low < high"):
        Uniform(low, 1.0)


@settings(deadline=None)
@given(st.lists(st.integers(), min_size=1, max_size=60), st.integers(2, 30))
def test_thinning_keeps_the_ends_and_the_order(values: list[int], count: int) -> None:
    kept = list(thin(values, count))
    assert len(kept) == min(len(values), count)
    assert (kept[0], kept[-1]) == (values[0], values[-1])
    positions = iter(values)
    assert all(value in positions for value in kept)  # a subsequence
