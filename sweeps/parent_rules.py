"""Rules about parents: what is named is there, what is there is named, and what is trained can be started from."""

from __future__ import annotations

from collections.abc import Iterator

from search_spaces.errors import Problem
from search_spaces.problems import did_you_mean
from sweeps.entries import TrainedParent
from sweeps.reading import Sections
from trainables.registry import find


def parent_problems(parsed: Sections) -> Iterator[Problem]:
    """Yield what is wrong between the section parents and the others."""
    yield from _names_fit(parsed)
    yield from _one_model(parsed)
    yield from _can_be_started_from(parsed)
    yield from _selection_is_kept_apart(parsed)


def _names_fit(parsed: Sections) -> Iterator[Problem]:
    if "parents" in parsed.broken:
        return
    for entry in parsed.methods:
        if entry.start_from is not None and entry.start_from not in parsed.parents:
            path = ("methods", parsed.positions[entry.label], "start_from")
            there = ", ".join(parsed.parents) or "none"
            message = f"no such parent; the section parents has {there}; found {entry.start_from!r}."
            yield Problem(path, message, did_you_mean(entry.start_from, parsed.parents))
    named = {entry.start_from for entry in parsed.methods}
    for name in parsed.parents:
        if name not in named and "methods" not in parsed.broken:
            message = "no entry of methods starts from this parent, and it would be trained for nothing."
            yield Problem(("parents", name), message, f"Write start_from: {name} beside a method.")


def _one_model(parsed: Sections) -> Iterator[Problem]:
    if parsed.parents and parsed.model is not None and parsed.model.domains:
        fields = ", ".join(parsed.model.domains)
        message = f"parents and their children are one model, so that nothing of it can be searched; found {fields}."
        yield Problem(("model", next(iter(parsed.model.domains))), message, "Give one value.")


def _can_be_started_from(parsed: Sections) -> Iterator[Problem]:
    for parent in parsed.parents.values():
        for method in parent.entry.spaces if isinstance(parent, TrainedParent) else ():
            if find("methods", method).adds_weights:
                message = f"{method} adds weights that its children would not have; nothing can start from it."
                yield Problem(("parents", parent.name, "methods", method), message)


def _selection_is_kept_apart(parsed: Sections) -> Iterator[Problem]:
    """A child that chooses its epoch on some training images must not start from weights that have learnt them."""
    if parsed.training is None or not any(t.select == "best" for t in parsed.training.discrete_corners()):
        return
    for parent in parsed.parents.values():
        if isinstance(parent, TrainedParent) and parent.training.select != "best":
            message = "the children choose their epochs on images that this parent would learn; found select: last."
            yield Problem(("parents", parent.name, "training", "select"), message, "Write select: best here too.")
