"""Space: one configuration section as a sweep's YAML gives it, some fields pinned and some searched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_origin

from pydantic import ValidationError

from search_spaces.config import Config, value_types
from search_spaces.domains import Domain, IntRange, Scalar, Suggests, Uniform, parse_domain, thin
from search_spaces.errors import Problem
from search_spaces.problems import Path, problems_of, unknown_key

ConfigT = TypeVar("ConfigT", bound=Config)

PAIRED_PROBES = 20
"""How many values of each of two domains are tried together; our choice: finds every crossing of two ranges cheaply."""


@dataclass(frozen=True)
class Space(Generic[ConfigT]):
    """A configuration type with some fields pinned to values and some left to the search."""

    config_type: type[ConfigT]
    pins: Mapping[str, object] = field(default_factory=dict)
    domains: Mapping[str, Domain] = field(default_factory=dict)

    def suggest(self, trial: Suggests, prefix: str) -> ConfigT:
        """Return a configuration with every searched field drawn under the name ``prefix.field``."""
        drawn = {name: domain.suggest(trial, f"{prefix}.{name}") for name, domain in self.domains.items()}
        return self.config_type.model_validate({**self.pins, **drawn})

    def at_defaults(self) -> ConfigT:
        """Return the configuration with each searched field at its default, or at its domain's first value."""
        return self.config_type.model_validate(self._base())

    def corners(self) -> Iterator[ConfigT]:
        """Yield configurations that together visit every probe value of every domain, alone and in pairs."""
        return map(self.config_type.model_validate, self._probes())

    def discrete_corners(self) -> Iterator[ConfigT]:
        """Yield the corners of the domains that count or choose; fields with a range of floats keep one value."""
        discrete = {name: d for name, d in self.domains.items() if not isinstance(d, Uniform)}
        return Space(self.config_type, self._base(), discrete).corners()

    def plain(self) -> dict[str, Any]:
        """Return every field as JSON-ready data: its value, or its domain as YAML writes it."""
        return {**self.at_defaults().plain(), **{name: domain.plain() for name, domain in self.domains.items()}}

    def holds(self, name: str, value: object) -> bool:
        """Return whether a field that is not searched has this value, however it is spelled."""
        try:
            other = self.config_type.model_validate({**self._base(), name: value})
        except ValidationError:
            return False
        return bool(getattr(other, name) == getattr(self.at_defaults(), name))

    def _base(self) -> dict[str, object]:
        drawn = {name: _representative(self.config_type, name, domain) for name, domain in self.domains.items()}
        return {**self.pins, **drawn}

    def _probes(self) -> Iterator[dict[str, object]]:
        base = self._base()
        yield base
        for name, domain in self.domains.items():
            for value in domain.probes():
                yield {**base, name: value}
        for (one, first), (other, second) in itertools.combinations(self.domains.items(), 2):
            for a, b in itertools.product(thin(first.probes(), PAIRED_PROBES), thin(second.probes(), PAIRED_PROBES)):
                yield {**base, one: a, other: b}


def read_space(
    config_type: type[ConfigT], section: object, path: Path, *, search_by_default: bool
) -> tuple[Space[ConfigT] | None, list[Problem]]:
    """Read a section in which any field may hold a plain value or a domain.

    Args:
        config_type: what the section configures.
        section: the YAML value: a mapping, or None for "all defaults".
        path: where the section stands, for the problems.
        search_by_default: whether a field that the section leaves out is searched if it has a domain of its own
            (true for methods); otherwise it keeps its default and is searched only where the YAML says so.

    Returns: the space, or None if it is unusable; and every problem found.
    """
    if not isinstance(section, Mapping | None):
        keys = ", ".join(config_type.model_fields)
        return None, [Problem(path, f"expected a mapping with the keys {keys}; found {section!r}.")]
    problems: list[Problem] = []
    pins: dict[str, object] = {}
    domains: dict[str, Domain] = config_type.domains() if search_by_default else {}
    for key, value in (section or {}).items():
        if key not in config_type.model_fields:
            problems.append(unknown_key(path, key, config_type.model_fields))
            continue
        domains.pop(key, None)
        try:
            domain = _read_domain(config_type, key, value)
        except ValueError as error:
            problems.append(Problem((*path, key), f"{error}."))
            continue
        if domain is None:
            pins[key] = value
        else:
            domains[key] = domain
    space = Space(config_type, pins, domains)
    problems += _check_values(space, path)
    return (None, problems) if problems else (space, [])


def _read_domain(config_type: type[Config], name: str, value: object) -> Domain | None:
    """Return the domain that a field's value writes, or None for a plain value; ValueError if it is unusable."""
    own = config_type.domains()
    if value == "search":
        if name not in own:
            raise ValueError("no domain of its own to search; give one, e.g. [a, b] or {uniform: [low, high]}")
        return own[name]
    if _takes_collections(config_type, name):
        return None
    domain = parse_domain(value)
    types = set(value_types(config_type, name))
    if type(domain) in (Uniform, *Uniform.__subclasses__()) and int in types and float not in types:
        raise ValueError(f"it takes whole numbers, so its domain is {{int: [low, high]}}; found {value!r}")
    if isinstance(domain, IntRange) and not types & {int, float}:
        raise ValueError(f"it takes no numbers, so its domain is a list of values; found {value!r}")
    return domain


def _check_values(space: Space[ConfigT], path: Path) -> list[Problem]:
    """Validate the pins, then each domain's decisive values; one problem for each place and reason."""
    found: dict[tuple[Path, str], Problem] = {}
    for values in space._probes():
        try:
            space.config_type.model_validate(values)
        except ValidationError as error:
            for problem in problems_of(error, path, space.config_type):
                # "…, found 0.3 and 2" differs from probe to probe; the reason before it does not
                reason = "" if problem.path != path else problem.message.partition("found")[0]
                found.setdefault((problem.path, reason), problem)
    return list(found.values())


def _representative(config_type: type[Config], name: str, domain: Domain) -> Scalar:
    default = config_type.model_fields[name].get_default(call_default_factory=True)
    return default if domain.contains(default) else domain.probes()[0]


def _takes_collections(config_type: type[Config], name: str) -> bool:
    return any((get_origin(t) or t) in (tuple, list, dict, set, frozenset) for t in value_types(config_type, name))


__all__ = ["Path", "Space", "problems_of", "read_space", "unknown_key"]
