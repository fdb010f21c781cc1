"""From a plain document to parsed sections: every section is read whatever is wrong with the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from search_spaces.config import Config
from search_spaces.errors import Problem, SweepError
from search_spaces.problems import Path, unknown_key, validate
from search_spaces.space import Space, read_space
from sweeps.attack_section import AttackPlan, AttackSection, Stage, TestPlan
from sweeps.entries import MethodEntry, ParentEntry
from sweeps.parent_reading import read_parents
from sweeps.sections import GeneralSections
from sweeps.stack_reading import find_type, read_entry, read_stack
from trainables.attack import Surrogate, Threat
from trainables.config import DataConfig, ModelConfig, TrainingConfig, label_of
from trainables.registry import find, load_plugins

ConfigT = TypeVar("ConfigT", bound=Config)
DEFAULT_METHODS = ("plain",)
SECTIONS = ("model", "data", "training", "parents", "methods", "attacks", *GeneralSections.model_fields)
"""The keys of a document."""
COLUMN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
MANY_CLASSES = 10
"""So many give an attack every part that it may have."""


@dataclass
class Sections:
    """What could be read; None (or a key in `broken`) where a section is unusable."""

    model: Space[ModelConfig] | None = None
    data: DataConfig | None = None
    training: Space[TrainingConfig] | None = None
    methods: list[MethodEntry] = field(default_factory=list)
    """In the order of the document; a broken entry is missing and "methods" is in `broken`."""
    parents: dict[str, ParentEntry] = field(default_factory=dict)
    """By name; broken ones are missing and "parents" is in `broken`."""
    positions: dict[str, int] = field(default_factory=dict)
    """Label of a method entry → its place in the list."""
    attacks: AttackPlan | None = None
    general: GeneralSections = field(default_factory=GeneralSections)
    broken: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def read_sections(document: Mapping[str, Any]) -> Sections:
    """Read every section of a document and collect the problems."""
    parsed = Sections()
    parsed.problems += [unknown_key((), key, SECTIONS) for key in document if key not in SECTIONS]
    _read_general(document, parsed)
    parsed.problems += _load_plugins(parsed.general.plugins)  # first: the other sections may name what they define
    section = document.get
    parsed.model, problems = read_space(ModelConfig, section("model"), ("model",), search_by_default=False)
    parsed.problems += problems
    parsed.training, problems = read_space(TrainingConfig, section("training"), ("training",), search_by_default=False)
    parsed.problems += problems
    parsed.data, problems = _read_data(section("data"))
    parsed.problems += problems
    parsed.parents, problems = read_parents(section("parents"), parsed.training)
    parsed.problems += problems
    _read_methods(section("methods"), parsed)
    if section("attacks") is not None:
        parsed.attacks, problems = read_attacks(section("attacks"))
        parsed.problems += problems
    parsed.broken |= {str(problem.path[0]) for problem in parsed.problems if problem.path}
    return parsed


def _read_general(document: Mapping[str, Any], parsed: Sections) -> None:
    """Read each plain section by itself, so that one mistake does not hide the others; null is the default."""
    good = {}
    for name in GeneralSections.model_fields:
        if document.get(name) is None:
            continue
        _, problems = validate(GeneralSections, {name: document[name]}, ())
        if not problems:
            good[name] = document[name]
        parsed.problems += problems
    parsed.general = GeneralSections.model_validate(good)


def _load_plugins(plugins: tuple[str, ...]) -> list[Problem]:
    problems = []
    for position, plugin in enumerate(plugins):
        try:
            load_plugins([plugin])
        except SweepError as error:  # a plugin that raises while it is imported is shown with its own traceback
            problems.append(Problem(("plugins", position), str(error)))
    return problems


def _read_data(section: Any) -> tuple[DataConfig | None, list[Problem]]:
    name = DataConfig().name
    if isinstance(section, Mapping) and "name" in section:
        name = section["name"]
    config_type, problems = find_type("datasets", name, ("data", "name"))
    if config_type is None:
        return None, problems
    return validate(config_type, section, ("data",))


def _read_methods(section: Any, parsed: Sections) -> None:
    entries = DEFAULT_METHODS if section is None else section
    if not isinstance(entries, list | tuple) or not entries:
        found = "none" if entries in ([], ()) else repr(entries)
        message = f"expected a list of at least one method; found {found}."
        hint = (
            "Put a hyphen before each method." if isinstance(entries, Mapping) else "Ordinary fine-tuning is [plain]."
        )
        parsed.problems.append(Problem(("methods",), message, hint))
        return
    for position, value in enumerate(entries):
        path = ("methods", position)
        stack, parent, problems = _split_parent(value, path)
        spaces: dict[str, Space[Any]] = {}
        if not problems:
            spaces, problems = read_stack(stack, path)
        parsed.problems += problems
        label = label_of(spaces, parent)
        if problems:
            continue
        if label in parsed.positions:
            first = f"methods[{parsed.positions[label]}]"
            message = f"{label} is already {first}; a sweep compares different methods or stacks."
            parsed.problems.append(Problem(path, message, "Join their domains in one entry."))
            continue
        parsed.positions[label] = position
        parsed.methods.append(MethodEntry(label, spaces, parent))


def _split_parent(value: Any, path: Path) -> tuple[Any, str | None, list[Problem]]:
    """Return an entry without its `start_from`, and that."""
    if not isinstance(value, Mapping) or "start_from" not in value:
        return value, None, []
    stack = {name: settings for name, settings in value.items() if name != "start_from"}
    parent = value["start_from"]
    if not isinstance(parent, str):
        problem = Problem((*path, "start_from"), f"expected the name of a parent; found {parent!r}.")
        return stack, None, [problem]
    if not stack:
        message = f"expected a method that goes on from {parent}; found none."
        return stack, parent, [Problem(path, message, "Ordinary fine-tuning is plain: {}.")]
    return stack, parent, []


def read_attacks(section: Any, where: Path = ("attacks",)) -> tuple[AttackPlan | None, list[Problem]]:
    """Read a section attacks; None if anything in it is wrong. Args: where: stands before the paths of problems."""
    parsed, problems = validate(AttackSection, section, where)
    given: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    threat = Threat(norm=parsed.norm, epsilon=parsed.epsilon) if parsed is not None else Threat()
    written = given.get("stages") or AttackSection().stages
    stages, found = _read_stages(written, threat, (*where, "stages"))
    problems += found
    columns, found = _read_columns(given.get("columns"), threat, (*where, "columns"))
    problems += found
    test = given.get("test")
    written = test.get("stages") if isinstance(test, Mapping) else None
    tested, found = (stages, []) if written is None else _read_stages(written, threat, (*where, "test", "stages"))
    problems += found
    problems += [
        Problem((*where, "columns", label), f"{reason}; choose another name.")
        for label, reason in _taken(columns, (*stages, *tested))
    ]
    if problems:
        return None, problems
    test_plan = parsed.test and TestPlan(**{**_fields(parsed.test), "stages": tested})
    return AttackPlan(**{**_fields(parsed), "stages": stages, "columns": columns, "test": test_plan}), []


def _fields(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}


def _read_stages(section: Any, threat: Threat, path: Path) -> tuple[list[Stage], list[Problem]]:
    stages: list[Stage] = []
    problems: list[Problem] = []
    for position, value in enumerate(section if isinstance(section, list | tuple) else ()):
        here = (*path, position)
        named, found = read_entry(value, here)
        problems += found
        if not found:
            stage, found = _read_attack(named, threat, here, bare=isinstance(value, str))
            problems += found
            stages += [] if stage is None else [stage.model_copy(update={"label": _unique(stage.attack, stages)})]
    return stages, problems


def _read_columns(section: Any, plan: Threat, path: Path) -> tuple[dict[str, Stage], list[Problem]]:
    columns: dict[str, Stage] = {}
    problems: list[Problem] = []
    for label, value in section.items() if isinstance(section, Mapping) else ():
        here = (*path, label)
        if not COLUMN_NAME.fullmatch(str(label)):
            problems.append(Problem(here, "a column's name is 1 to 40 letters, digits, dots, underscores and hyphens."))
            continue
        named, found = read_entry(value, here)
        problems += found
        if found:
            continue
        surrogate, found = _read_surrogate(named.pop("surrogate", None), (*here, "surrogate"))
        problems += found
        ball = {key: named.pop(key) for key in Threat.model_fields if key in named}
        threat, found = validate(Threat, {**plan.plain(), **ball}, here)
        problems += found
        if not found:
            stage, found = _read_attack(named, threat, here, bare=isinstance(value, str))
            problems += found
            kept = {"label": label, "surrogate": surrogate}
            columns |= {} if stage is None else {label: stage.model_copy(update=kept)}
    return columns, problems


def _read_surrogate(value: Any, path: Path) -> tuple[Any, list[Problem]]:
    if value is None or value in get_args(Surrogate):
        return value, []
    return None, [Problem(path, f"expected {' or '.join(get_args(Surrogate))}; found {value!r}.")]


def _taken(columns: Mapping[str, Stage], cascade: Iterable[Stage]) -> Iterator[tuple[str, str]]:
    """Yield the columns that cannot be called so, and why: a name stands for one figure."""
    stages = {stage.label: stage for stage in cascade}
    for label in columns:
        whole = {**stages, **columns}.get(label.partition(".")[0])
        parts = () if whole is None else find("attacks", whole.attack).parts(whole.config, MANY_CLASSES)
        if label in stages:
            yield label, f"{label} is a stage of the cascade already"
        elif whole is not None and any(label == f"{whole.label}.{part.label}" for part in parts):
            yield label, f"{label} is a part of {whole.label}"


def _read_attack(
    named: Mapping[str, Any], threat: Threat, here: Path, *, bare: bool
) -> tuple[Stage | None, list[Problem]]:
    """Read one attack, its name and settings, for a ball. Args: bare: it was written as a name alone."""
    if "surrogate" in named:
        message = "a surrogate belongs to a column: what the cascade leaves standing is the model's own robustness."
        return None, [Problem((*here, "surrogate"), message, "Move the attack to attacks.columns.")]
    if len(named) != 1:
        found = f"the keys {', '.join(named)}" if named else "none"
        return None, [Problem(here, f"expected one attack, such as pgd or pgd: {{steps: 20}}; found {found}.")]
    name, settings = next(iter(named.items()))
    where = here if bare else (*here, name)
    config_type, problems = find_type("attacks", name, where)
    if config_type is None:
        return None, problems
    config, problems = validate(config_type, settings, where)
    return (None, problems) if problems else (Stage(attack=name, config=config, threat=threat, label=name), [])


def _unique(name: str, stages: list[Stage]) -> str:
    count = sum(stage.attack == name for stage in stages)
    return f"{name}_{count + 1}" if count else name
