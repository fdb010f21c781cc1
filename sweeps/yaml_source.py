"""Reading YAML: plain data, the line of every key, and ``--set key=value`` overrides.

YAML 1.2 as ruamel.yaml reads it: ``yes`` and ``on`` are text, ``1e-3`` is a number. Dates stay text, merge keys
(``<<``) and aliases work, tags do not. A key given twice is a mistake, not a last word.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from search_spaces.errors import ConfigError, Problem
from search_spaces.problems import Path

MAX_VALUES = 10_000
"""Aliases of aliases can turn a few lines into billions of values; no sweep needs more than this."""

MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Source:
    """Where the values of a document were written."""

    name: str = ""
    """File name as the user gave it; empty for data that was never a file."""
    lines: Mapping[Path, int] = field(default_factory=dict)
    """1-based line of every key and list entry."""
    overrides: tuple[tuple[Path, str], ...] = ()
    """What each override sets, and the option as it was typed, in order."""

    def refusal(self, problems: Iterable[Problem]) -> ConfigError:
        """Return the error that tells all problems, by line."""
        located = [self.locate(problem) for problem in problems]
        return ConfigError(sorted(located, key=lambda problem: (problem.line is None, problem.line or 0)))

    def locate(self, problem: Problem) -> Problem:
        """Return the problem with the line, or the option, that holds the value or its nearest surroundings."""
        if problem.source:
            return problem
        place = problem.path
        typed = [text for path, text in self.overrides if place[: len(path)] == path]
        if not typed and place not in self.lines:  # a key that the file lacks and an override went through
            typed = [text for path, text in self.overrides if place and path[: len(place)] == place]
        if typed:
            return replace(problem, source=typed[-1])
        prefixes = (place[:length] for length in range(len(place), 0, -1))
        return replace(problem, source=self.name, line=next((self.lines[p] for p in prefixes if p in self.lines), None))


def read_document(file: FilePath, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """Read a YAML file and apply overrides.

    Args:    overrides: ``training.epochs=2``, ``methods[1].jasmin.k=0``; values are YAML.
    Returns: the document as plain JSON-ready data, and where its values were written.
    Raises:  ConfigError with the line if the file or an override cannot be read, or a key is there twice.
    """
    document, source = read_value(file)
    if not isinstance(document, dict):
        found = "an empty file" if document is None else repr(document)
        hint = "The presets in sweeps/presets show what a sweep looks like."
        raise ConfigError([Problem((), f"expected a mapping of sections; found {found}.", hint, str(file), 1)])
    return apply_overrides(document, source, overrides)


def read_value(file: FilePath) -> tuple[Any, Source]:
    """Return a YAML file's plain data, whatever it is, and where it was written; ConfigError if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise ConfigError([Problem((), f"cannot be read: {reason}.", source=str(file))]) from error
    value, lines = read_yaml(text, str(file))
    return value, Source(str(file), lines)


def read_yaml(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """Return the plain data of one YAML document and the line of every key and entry; ConfigError if it is broken."""
    try:
        reader = _Reader(name)
        node = YAML(typ="rt", pure=True).compose(text)
        data = reader.read(node, ()) if node is not None else None
    except MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        message = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise ConfigError([Problem((), f"not valid YAML: {message}.", source=name, line=line)]) from error
    except (YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).replace("\n", " ")
        raise ConfigError([Problem((), f"not valid YAML: {reason}.", source=name)]) from error
    if reader.problems:
        raise ConfigError(reader.problems)
    return data, reader.lines


class _Reader:
    """Turns YAML nodes into plain data and notes lines and problems on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._values = 0
        self._constructor = YAML(typ="safe", pure=True).constructor

    def read(self, node: Node, path: Path) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise YAMLError(f"more than {MAX_VALUES} values")
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if str(node.tag) not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self._complain(node, path, f"the tag {node.tag} is not allowed")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        return [self._entry(item, (*path, position)) for position, item in enumerate(node.value)]

    def _entry(self, node: Node, path: Path) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.read(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key, value in node.value:  # first, so that the lines of explicit keys overwrite those of merged ones
            if key.tag == MERGE:
                merged |= self._merge(value, path)
        data: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else None
            if key.tag == MERGE:
                continue
            if name is None:
                self._complain(key, path, "a key must be text")
            elif name in data:
                self._complain(key, (*path, name), f"the key is there twice; first in line {self.lines[(*path, name)]}")
            else:
                self.lines[(*path, name)] = key.start_mark.line + 1
                data[name] = self.read(value, (*path, name))
        return {**merged, **data}

    def _merge(self, node: Node, path: Path) -> dict[str, Any]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):  # the first of several wins
            if isinstance(source, MappingNode):
                merged |= self._mapping(source, path)
            else:
                self._complain(source, path, "<< takes a mapping, or a list of mappings")
        return merged

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind == "null":
            return None
        if kind == "bool":
            return node.value.lower() == "true"
        if kind in ("int", "float"):
            value = getattr(self._constructor, f"construct_yaml_{kind}")(node)
            if math.isfinite(value):
                return value
            self._complain(node, path, f"expected a finite number; found {node.value}")
        elif kind not in ("str", "timestamp"):
            self._complain(node, path, f"the tag {node.tag} is not allowed")
        return node.value

    def _complain(self, node: Node, path: Path, message: str) -> None:
        self.problems.append(Problem(path, f"{message}.", source=self.name, line=node.start_mark.line + 1))


def apply_overrides(
    document: dict[str, Any], source: Source, overrides: Sequence[str]
) -> tuple[dict[str, Any], Source]:
    """Apply ``key=value`` overrides in order; the document is changed in place.

    Raises: ConfigError naming every override that has no value, no such list entry, or invalid YAML.
    """
    problems: list[Problem] = []
    applied: list[tuple[Path, str]] = []
    for text in overrides:
        option = f"--set {text}"
        try:
            path, value = _read_override(text, option)
            _assign(document, path, value)
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(Problem((), f"{error}.", source=option))
        else:
            applied.append((path, option))
    if problems:
        raise ConfigError(problems)
    return document, replace(source, overrides=(*source.overrides, *applied))


def _read_override(text: str, option: str) -> tuple[Path, Any]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^.\[\]\s]+(\.[^.\[\]\s]+|\[\d+\])*", key):
        raise ValueError("expected key=value with a key such as training.epochs or methods[1].jasmin.k")
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", key)
    data, _ = read_yaml(value, option)
    return tuple(int(index) if index else name for index, name in parts), data


def _assign(document: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value into nested mappings and lists; missing mappings are made, a bare name opens up (pgd → pgd: {})."""
    here: Any = document
    part: Any
    for part, following in itertools.pairwise(path):
        _check_step(here, part)
        below = here.setdefault(part, None) if isinstance(here, dict) else here[part]
        if here is document:
            below = here[part] = long_form(str(part), below)
        if below is None and isinstance(following, str):
            here[part] = {}
        elif isinstance(below, str) and below == following:
            here[part] = {below: {}}
        here = here[part]
    _check_step(here, path[-1])
    here[path[-1]] = value


def long_form(section: str, value: Any) -> Any:
    """Return the mapping that a section stands for which is written as one word: ``search: grid``, ``resources: auto``;
    anything else as it is."""
    if section == "search" and isinstance(value, str):
        return {"sampler": value}
    return {} if section == "resources" and value == "auto" else value


def _check_step(here: Any, part: str | int) -> None:
    if isinstance(part, int):
        if not isinstance(here, list):
            raise ValueError(f"[{part}] needs a list; found {here!r}")
        if part >= len(here):
            raise ValueError(f"the list has {len(here)} entries, counted from 0; found [{part}]")
    elif not isinstance(here, dict):
        raise ValueError(f"{part!r} needs a mapping; found {here!r}")
