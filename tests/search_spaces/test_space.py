"""Space: pins, domains, and the promise that whatever is drawn is a valid configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from search_spaces.config import Config, Number
from search_spaces.domains import Choice, IntRange, LogUniform, Uniform
from search_spaces.errors import Problem
from search_spaces.space import Space, read_space


class Recipe(Config):
    epochs: Annotated[int, Field(ge=1)] = 40
    warmup: Annotated[Number, Field(ge=0)] = 0.0
    rate: Annotated[Number, Field(gt=0), LogUniform(1e-4, 1e-2)] = 1e-3
    kind: Annotated[Literal["max", "mean"], Choice(("max", "mean"))] = "max"
    scale: tuple[float, ...] = (1.0,)
    depth: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.warmup > self.epochs:
            raise ValueError(f"warmup must not exceed epochs, found {self.warmup:g} and {self.epochs}")
        return self


def read(section: Any, *, search_by_default: bool = False) -> Space[Recipe]:
    space, problems = read_space(Recipe, section, ("recipe",), search_by_default=search_by_default)
    assert problems == []
    assert space is not None
    return space


def problems_in(section: Any) -> list[Problem]:
    space, problems = read_space(Recipe, section, ("recipe",), search_by_default=False)
    assert space is None
    return problems


def test_nothing_is_searched_unless_the_section_says_so() -> None:
    assert read(None).domains == {}
    assert read({"rate": "search"}).domains == {"rate": LogUniform(1e-4, 1e-2)}
    assert read({"epochs": [10, 20]}).domains == {"epochs": Choice((10, 20))}


def test_a_method_searches_its_own_domains_unless_a_value_pins_them() -> None:
    assert set(read(None, search_by_default=True).domains) == {"rate", "kind"}
    pinned = read({"rate": "1/100", "kind": ["mean"]}, search_by_default=True)
    assert pinned.domains == {"kind": Choice(("mean",))}
    assert pinned.at_defaults().rate == 0.01


def test_a_list_is_a_plain_value_where_the_field_is_a_list() -> None:
    assert read({"scale": [1, 2]}).at_defaults().scale == (1.0, 2.0)


def test_a_searched_field_stands_at_its_default_or_at_the_domains_first_value() -> None:
    assert read({"rate": {"uniform": [1e-4, 1e-2]}}).at_defaults().rate == 1e-3
    assert read({"rate": {"uniform": [0.5, 1]}}).at_defaults().rate == 0.5


@pytest.mark.parametrize(
    ("section", "path", "words"),
    [
        ({"epoch": 3}, "recipe.epoch", "Did you mean 'epochs'?"),
        ({"epochs": 0}, "recipe.epochs", "found 0"),
        ({"epochs": [5, 0]}, "recipe.epochs", "found 0"),
        ({"epochs": {"uniform": [1, 5]}}, "recipe.epochs", "{int: [low, high]}"),
        ({"depth": {"uniform": [1, 5]}}, "recipe.depth", "{int: [low, high]}"),
        ({"kind": {"int": [1, 5]}}, "recipe.kind", "a list of values"),
        ({"kind": "men"}, "recipe.kind", "Did you mean 'mean'?"),
        ({"rate": {"uniform": [0, 1]}}, "recipe.rate", "found 0"),
        ({"rate": {"normal": [0, 1]}}, "recipe.rate", "log_uniform"),
        ({"epochs": "search"}, "recipe.epochs", "no domain of its own"),
        ({"warmup": {"uniform": [0, 50]}}, "recipe", "warmup must not exceed epochs"),
        (7, "recipe", "expected a mapping"),
        ([{"epochs": 3}], "recipe", "expected a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(section: Any, path: str, words: str) -> None:
    (problem,) = problems_in(section)
    assert problem.where() == path
    assert words in str(problem)


def test_every_mistake_is_found_at_once() -> None:
    found = problems_in({"epoch": 3, "warmup": -1, "kind": "x", "rate": {"uniform": [2, 1]}})
    assert {problem.where() for problem in found} == {"recipe.epoch", "recipe.warmup", "recipe.kind", "recipe.rate"}


def test_two_domains_that_clash_only_together_are_refused() -> None:
    # each is fine while the other stands at its default of 40 epochs or 0 of warm-up
    (problem,) = problems_in({"epochs": [10, 40], "warmup": {"uniform": [0, 20]}})
    assert "found 20 and 10" in problem.message


def test_discrete_corners_leave_ranges_of_floats_alone() -> None:
    space = read({"epochs": [10, 20], "rate": {"uniform": [1e-3, 1e-2]}})
    corners = list(space.discrete_corners())
    assert {c.epochs for c in corners} == {10, 20}
    assert {c.rate for c in corners} == {1e-3}
    assert {c.rate for c in space.corners()} == {1e-3, 1e-2}


def test_holds_compares_values_and_not_spellings() -> None:
    space = read({"rate": "1/100"})
    assert space.holds("rate", 0.01)
    assert space.holds("epochs", 40)
    assert not space.holds("epochs", 41)
    assert not space.holds("epochs", "many")


def test_plain_can_be_read_again() -> None:
    space = read({"epochs": {"int": [2, 8, 2]}, "rate": "search", "kind": "mean"})
    again = read(space.plain())
    assert again.domains == space.domains
    assert again.at_defaults() == space.at_defaults()


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(1, 20))
    high = draw(st.integers(low + 3, 60))
    written = {
        "epochs": st.sampled_from([low, [low, high], {"int": [low, high]}, {"int": [low, high, 3]}]),
        "warmup": st.sampled_from([0, {"uniform": [0, low]}]),
        "rate": st.sampled_from(["2/255", "search", {"log_uniform": ["1e-5", 0.5]}]),
        "kind": st.sampled_from(["max", ["max", "mean"]]),
    }
    return {name: draw(choices) for name, choices in written.items() if draw(st.booleans())}


@settings(deadline=None, max_examples=40)
@given(sections(), st.booleans(), st.integers(0, 100))
def test_whatever_is_drawn_is_valid_and_within_its_domain(section: dict[str, Any], by_default: bool, seed: int) -> None:
    space = read(section, search_by_default=by_default)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    config = space.suggest(trial, "recipe")
    assert set(trial.params) == {f"recipe.{name}" for name in space.domains}
    for name, domain in space.domains.items():
        assert domain.contains(trial.params[f"recipe.{name}"])
        assert getattr(config, name) == trial.params[f"recipe.{name}"]
    untouched = set(Recipe.model_fields) - set(section) - set(space.domains)
    assert all(getattr(config, name) == getattr(Recipe(), name) for name in untouched)


def test_domains_keep_their_kind() -> None:
    space = read({"epochs": {"int": [1, 9, 2]}, "rate": {"uniform": [0.1, 0.2]}})
    assert space.domains == {"epochs": IntRange(1, 9, 2), "rate": Uniform(0.1, 0.2)}
