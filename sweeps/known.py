"""Known configurations: the parameters that the first trials take as given instead of asking the sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.domains import Choice, Domain, Scalar
from search_spaces.errors import Problem
from search_spaces.problems import did_you_mean
from search_spaces.space import Space
from sweeps.entries import MethodEntry
from sweeps.published import without_figures


@dataclass(frozen=True)
class Parameter:
    """A field that a sweep may search, under the name that Optuna knows it by."""

    name: str
    field: str
    space: Space[Any]
    owner: str | None
    """Label of the method entry that it belongs to; None for model and training."""

    @property
    def domain(self) -> Domain | None:
        """What is searched; None if the field is pinned."""
        return self.space.domains.get(self.field)


def list_parameters(model: Space[Any], training: Space[Any], methods: Sequence[MethodEntry]) -> dict[str, Parameter]:
    """Return every field of every section, searched or not, by name: ``training.epochs``, ``jasmin.k``."""
    return {p.name: p for p in _parameters(model, training, methods)}


def searched_domains(parameters: Mapping[str, Parameter], methods: Sequence[MethodEntry]) -> dict[str, Domain]:
    """Return what Optuna searches: the method, if there are several, then every searched field."""
    choice = {"method": Choice(tuple(entry.label for entry in methods))} if len(methods) > 1 else {}
    return choice | {name: p.domain for name, p in parameters.items() if p.domain is not None}


def fix_params(
    entry: Mapping[str, Any], parameters: Mapping[str, Parameter], methods: Sequence[MethodEntry]
) -> tuple[dict[str, Scalar], list[Problem]]:
    """Translate one known configuration.

    Returns: Optuna's parameters as the domains spell them, without pinned fields; and every problem, its path relative
        to the entry.
    """
    fixed: dict[str, Scalar] = {}
    problems: list[Problem] = []
    for name, value in without_figures(entry).items():
        try:
            fixed |= _fix_method(value, methods) if name == "method" else _fix_field(name, entry, parameters, methods)
        except ValueError as error:
            hint = "" if name in parameters or name == "method" else did_you_mean(name, ["method", *parameters])
            problems.append(Problem((name,), f"{error}.", hint))
    return fixed, problems


def _parameters(model: Space[Any], training: Space[Any], methods: Sequence[MethodEntry]) -> Iterator[Parameter]:
    for prefix, space in (("model", model), ("training", training)):
        yield from (Parameter(f"{prefix}.{name}", name, space, None) for name in space.config_type.model_fields)
    for entry in methods:
        for method, space in entry.spaces.items():
            prefix = entry.prefix(method)
            yield from (Parameter(f"{prefix}.{f}", f, space, entry.label) for f in space.config_type.model_fields)


def _fix_method(value: Any, methods: Sequence[MethodEntry]) -> dict[str, Scalar]:
    labels = [entry.label for entry in methods]
    if value not in labels:
        raise ValueError(f"it should be one of {', '.join(labels)}; found {value!r}")
    return {"method": value} if len(labels) > 1 else {}


def _fix_field(
    name: str, entry: Mapping[str, Any], parameters: Mapping[str, Parameter], methods: Sequence[MethodEntry]
) -> dict[str, Scalar]:
    value = entry[name]
    if name not in parameters:
        searched = ", ".join(searched_domains(parameters, methods))
        raise ValueError(f"no such parameter; searched: {searched or 'nothing'}")
    parameter = parameters[name]
    if parameter.owner is not None and len(methods) > 1 and entry.get("method") != parameter.owner:
        raise ValueError(f"it belongs to {parameter.owner}; the same entry must say method: {parameter.owner}")
    if parameter.domain is not None:
        return {name: parameter.domain.locate(value)}
    if not parameter.space.holds(parameter.field, value):
        pinned = parameter.space.plain()[parameter.field]
        raise ValueError(f"it is not searched and is always {pinned!r}; found {value!r}")
    return {}
