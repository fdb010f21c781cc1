"""Config: strict where a mistake would hide, lenient where people write numbers in different ways."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from search_spaces.config import Config, Number, canonical_json, digest_of
from search_spaces.domains import Choice, LogUniform


class Small(Config):
    rate: Annotated[Number, Field(gt=0, le=1), LogUniform(1e-4, 1e-1)] = 1e-3
    steps: Annotated[int, Field(ge=1)] = 10
    limit: Annotated[int, Field(ge=1)] | None = None
    kind: Annotated[Literal["max", "mean"], Choice(("max", "mean"))] = "max"
    flag: bool = False


@pytest.mark.parametrize(("written", "value"), [("2/255", 2 / 255), ("1e-3", 1e-3), (0.5, 0.5), (1, 1.0)])
def test_numbers_may_be_written_as_text_or_fractions(written: object, value: float) -> None:
    assert Small.model_validate({"rate": written}).rate == value


@pytest.mark.parametrize("field", ["rate", "steps", "limit"])
def test_true_is_not_the_number_one(field: str) -> None:
    with pytest.raises(ValidationError, match="should be a number"):
        Small.model_validate({field: True})


def test_true_stays_true_where_a_truth_value_is_expected() -> None:
    assert Small.model_validate({"flag": True}).flag is True


@pytest.mark.parametrize("bad", [{"rates": 1}, {"rate": float("nan")}, {"rate": 0}, {"rate": "fast"}, {"steps": 1.5}])
def test_unknown_keys_and_impossible_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Small.model_validate(bad)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Small().rate = 0.5  # type: ignore[misc]


def test_domains_are_found_beside_the_defaults() -> None:
    assert Small.domains() == {"rate": LogUniform(1e-4, 1e-1), "kind": Choice(("max", "mean"))}


def test_the_digest_depends_on_the_values_and_not_on_their_spelling() -> None:
    assert Small.model_validate({"rate": "1/2"}).digest() == Small(rate=0.5).digest()
    assert Small(rate=0.5).digest() != Small(rate=0.25).digest()
    assert len(Small().digest()) == 16


def test_canonical_json_ignores_the_order_of_keys_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": "ε"}) == '{"a":"ε","b":1}'
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
