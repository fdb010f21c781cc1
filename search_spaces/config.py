"""Config: the frozen pydantic model that every configuration in Paretune is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from search_spaces.domains import Choice, Domain, IntRange, Uniform, parse_number


def _read_fraction(value: object) -> object:
    """Turn "2/255" and "1e-3" into floats; leave all else to pydantic."""
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_read_fraction)]
"""A float that may be written as a fraction or as text: 2/255, "1e-3"."""


class Config(BaseModel):
    """Frozen; unknown keys are errors; NaN and infinity are errors; every field has its default in one place.

    A searched field carries its domain in its annotation: ``weight: Annotated[Number, LogUniform(1e-4, 3e-2)] = 1e-3``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        strict=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_not_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1, so that `epochs: true` would train one epoch
        if isinstance(value, bool) and info.field_name is not None:
            types = set(value_types(cls, info.field_name))
            if types & {int, float} and bool not in types:
                raise ValueError("it should be a number")
        return value

    @classmethod
    def domains(cls) -> dict[str, Domain]:
        """Return the domain beside the default of each field that has one."""
        found: dict[str, Domain] = {}
        for name, field in cls.model_fields.items():
            for item in field.metadata:
                if isinstance(item, Uniform | IntRange | Choice):
                    found[name] = item
        return found

    def plain(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data, in the order of its fields."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return a stable 16-digit hexadecimal name for the values of this configuration."""
        return digest_of(self.plain())


def value_types(config_type: type[Config], name: str) -> Iterator[object]:
    """Yield the types that a field may hold: ``int | None`` gives int and None's type, a tuple gives ``tuple[…]``."""
    yield from _flatten(config_type.model_fields[name].annotation)


def _flatten(annotation: Any) -> Iterator[object]:
    if get_origin(annotation) is Annotated:
        yield from _flatten(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _flatten(member)
    else:
        yield annotation


def canonical_json(data: object) -> str:
    """Write data as JSON with one spelling: sorted keys, no spaces; ValueError on NaN or infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest_of(data: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `data`."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:16]
