"""Reading the section `parents`: models that trials start from, trained once or given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from search_spaces.errors import Problem
from search_spaces.problems import Path, problems_of, validate
from search_spaces.space import Space, read_space
from sweeps.entries import GivenParent, MethodEntry, ParentEntry, ParentSection, TrainedParent
from sweeps.stack_reading import read_stack
from trainables.config import TrainingConfig, label_of
from trainables.parent import sha256_of

PARENT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
"""A number would be a trial's; the other characters have a meaning in labels."""


def read_parents(section: Any, training: Space[TrainingConfig] | None) -> tuple[dict[str, ParentEntry], list[Problem]]:
    """Return the parents that could be read, and every problem. Args: training: the sweep's; None if it is broken."""
    if not isinstance(section, Mapping | None):
        return {}, [Problem(("parents",), f"expected a mapping from names to parents; found {section!r}.")]
    parents: dict[str, ParentEntry] = {}
    problems: list[Problem] = []
    for name, value in (section or {}).items():
        path: Path = ("parents", name)
        if not PARENT_NAME.fullmatch(str(name)):
            message = "a parent's name is 1 to 40 letters, digits, underscores and hyphens, and starts with a letter."
            problems.append(Problem(path, message))
            continue
        parsed, found = validate(ParentSection, value, path)
        problems += found
        if parsed is None:
            continue
        given = parsed.checkpoint is not None
        parent, found = _read_given(name, parsed, path) if given else _read_trained(name, parsed, training, path)
        problems += found
        parents |= {} if parent is None else {name: parent}
    return parents, problems


def _read_given(name: str, section: ParentSection, path: Path) -> tuple[GivenParent | None, list[Problem]]:
    assert section.checkpoint is not None
    try:  # a digest that is given is compared before anything is trained, which a status need not wait for
        digest = section.sha256 or sha256_of(section.checkpoint)
    except OSError:
        return None, [Problem((*path, "checkpoint"), f"no such file: {section.checkpoint}.")]
    return GivenParent(name, section.checkpoint, digest), []


def _read_trained(
    name: str, section: ParentSection, training: Space[TrainingConfig] | None, path: Path
) -> tuple[TrainedParent | None, list[Problem]]:
    spaces, problems = read_stack(section.methods, (*path, "methods"), search_by_default=False)
    problems += [p for method, space in spaces.items() for p in _searched(space, (*path, "methods", method))]
    own, found = read_space(TrainingConfig, section.training, (*path, "training"), search_by_default=False)
    problems += found
    if own is None or training is None:
        return None, problems
    problems += _searched(own, (*path, "training"))
    if problems:
        return None, problems
    left = {field: domain for field, domain in training.domains.items() if field not in own.pins}
    try:
        recipe = Space(TrainingConfig, {**training.pins, **own.pins}, left).at_defaults()
    except ValidationError as error:
        return None, problems_of(error, (*path, "training"), TrainingConfig)
    return TrainedParent(name, MethodEntry(label_of(spaces), spaces), recipe), []


def _searched(space: Space[Any], path: Path) -> Iterator[Problem]:
    for field, domain in space.domains.items():
        message = f"nothing in a parent is searched, for all its children share it; found {domain}."
        yield Problem((*path, field), message, "Give one value, or name a second parent.")
