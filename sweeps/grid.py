"""The grid: what a sweep with `sampler: grid` trains, as a function of the trial's number alone.

With known configurations it is exactly these. Without any it is every combination of the listed values, the method
entries taking turns, so that its first trials have tried every method. It comes once as a whole before it comes again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.domains import Choice, Domain, IntRange, Scalar
from sweeps.entries import MethodEntry
from sweeps.known import Parameter, fix_params
from sweeps.sections import SearchSection

_END = object()


@dataclass(frozen=True)
class Grid:
    """Blocks of configurations, which take turns."""

    blocks: tuple[Mapping[str, Sequence[Scalar]], ...]
    """Each names all its parameters, as Optuna knows them, and their values; a block is every combination of these."""

    def __len__(self) -> int:
        return sum(math.prod(map(len, block.values())) for block in self.blocks)

    def __iter__(self) -> Iterator[dict[str, Scalar]]:
        for turn in itertools.zip_longest(*map(_combinations, self.blocks), fillvalue=_END):
            yield from (params for params in turn if isinstance(params, dict))

    def params(self, number: int) -> dict[str, Scalar]:
        """Return the parameters of trial `number`; past its end the grid begins anew."""
        return next(itertools.islice(self, number % len(self), None))


def build_grid(search: SearchSection, parameters: Mapping[str, Parameter], methods: Sequence[MethodEntry]) -> Grid:
    """Return the known configurations as a grid, or all combinations if there are none.

    Every known configuration must be complete (`open_parameters`) and, without any, every domain discrete.
    """
    if search.known:
        fixed = [fix_params(entry, parameters, methods)[0] for entry in search.known]
        return Grid(tuple({name: (value,) for name, value in params.items()} for params in fixed))
    blocks = []
    for entry in methods:
        choice: dict[str, Sequence[Scalar]] = {"method": (entry.label,)} if len(methods) > 1 else {}
        blocks.append(choice | {name: discrete_values(d) for name, d in _searched_by(entry.label, parameters).items()})
    return Grid(tuple(blocks))


def open_parameters(
    fixed: Mapping[str, Scalar], parameters: Mapping[str, Parameter], methods: Sequence[MethodEntry]
) -> list[str]:
    """Return what a known configuration leaves to the sampler. Args: fixed: what `fix_params` made of it."""
    if len(methods) > 1 and "method" not in fixed:
        return ["method"]
    label = str(fixed.get("method", methods[0].label))
    return [name for name in _searched_by(label, parameters) if name not in fixed]


def discrete_values(domain: Domain) -> Sequence[Scalar]:
    """Return all values of a domain in order; ValueError if there is no end of them."""
    if isinstance(domain, Choice):
        return domain.options
    if isinstance(domain, IntRange):
        return range(domain.low, domain.high + 1, domain.step)
    raise ValueError(f"{domain} has no end of values, and a grid tries every one")


def _searched_by(label: str, parameters: Mapping[str, Parameter]) -> dict[str, Domain]:
    """Return the domains that a trial of this method entry draws from."""
    return {
        name: parameter.domain
        for name, parameter in parameters.items()
        if parameter.domain is not None and parameter.owner in (None, label)
    }


def _combinations(block: Mapping[str, Sequence[Scalar]]) -> Iterator[dict[str, Scalar]]:
    """Yield every combination, the last parameter changing fastest."""
    return (dict(zip(block, values, strict=True)) for values in itertools.product(*block.values()))
