"""The configuration of a sweep: one YAML file, read once, checked as a whole, frozen.

Every mistake is found at once: sections are read one by one (`reading`), then compared with each other (`rules`), and
all problems come in one ConfigError with file, line, path and what is allowed. Nothing behind this module sees YAML.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from search_spaces.config import Config
from search_spaces.domains import Domain, Scalar, Suggests
from search_spaces.errors import ConfigError, Problem
from search_spaces.space import Space
from sweeps.attack_plan import fill_in
from sweeps.attack_section import AttackPlan, Stage, TestPlan
from sweeps.differences import configuration_diff
from sweeps.entries import GivenParent, MethodEntry, ParentEntry, TrainedParent
from sweeps.failures_section import FailuresSection
from sweeps.grid import Grid, build_grid
from sweeps.known import Parameter, fix_params, list_parameters, searched_domains
from sweeps.published import PUBLISHED, SOURCE, without_figures
from sweeps.reading import Sections, read_sections
from sweeps.resources_section import ResourcesSection
from sweeps.rules import cross_problems
from sweeps.scale import Scale, shrink
from sweeps.sections import (
    DEFAULT_TRIALS,
    ConfirmsSection,
    LedgerSection,
    SearchSection,
    StorageSection,
    TrackingSection,
)
from sweeps.trained_parents import Parent, number_parents
from sweeps.yaml_source import Source, apply_overrides, read_document
from trainables.attack import Threat
from trainables.config import DataConfig, ModelConfig, MonitorConfig, StartFrom, TrainingConfig, TrialConfig
from trainables.parent import sha256_of
from trainables.registry import find, names


@dataclass(frozen=True)
class SweepConfig:
    """Everything that a sweep is told, ready to use."""

    document: dict[str, Any]
    """Plain JSON-ready data: what the user gave, overrides applied, no defaults filled in."""
    name: str | None
    model: Space[ModelConfig]
    data: DataConfig
    training: Space[TrainingConfig]
    methods: tuple[MethodEntry, ...]
    parents: tuple[ParentEntry, ...]
    objectives: tuple[str, ...]
    attacks: AttackPlan | None
    """None only if the document has no section attacks, and then robust_acc is no objective."""
    monitor: MonitorConfig
    """With norm and epsilon if it is on, the default if it is off."""
    search: SearchSection
    resources: ResourcesSection
    tracking: TrackingSection
    ledger: LedgerSection
    storage: StorageSection
    failures: FailuresSection
    plugins: tuple[str, ...]
    notify: str | None
    confirms: ConfirmsSection | None = None
    """Whose front it trains again; None is a search of its own."""

    def suggest(self, trial: Suggests) -> TrialConfig:
        """Return a complete configuration, its searched fields drawn from an Optuna trial.

        Names: ``method``, if there are several; ``model.depth``, ``training.epochs``; ``jasmin.k``, or
        ``jasmin+adversarial/jasmin.k`` where methods are stacked, ``safer@robust/safer.rho`` where there is a parent.
        """
        entry = self._choose_method(trial)
        return self._complete(
            entry,
            self.model.suggest(trial, "model"),
            self.training.suggest(trial, "training"),
            {name: space.suggest(trial, entry.prefix(name)) for name, space in entry.spaces.items()},
        )

    def at_defaults(self, entry: MethodEntry) -> TrialConfig:
        """Return the configuration of a method entry with each searched field at its default."""
        methods = {name: space.at_defaults() for name, space in entry.spaces.items()}
        return self._complete(entry, self.model.at_defaults(), self.training.at_defaults(), methods)

    @cached_property
    def trained_parents(self) -> tuple[Parent, ...]:
        """The parents that the sweep trains, each configuration once."""
        trained = [parent for parent in self.parents if isinstance(parent, TrainedParent)]
        configs = [(parent.name, self._parent_config(parent)) for parent in trained]
        return number_parents(configs, self.search.seed)

    def parent(self, name: str) -> Parent | GivenParent:
        """Return the parent of that name, which must be there."""
        given = [parent for parent in self.parents if isinstance(parent, GivenParent) and parent.name == name]
        return given[0] if given else next(parent for parent in self.trained_parents if name in parent.names)

    def _parent_config(self, parent: TrainedParent) -> TrialConfig:
        methods = {name: space.at_defaults() for name, space in parent.entry.spaces.items()}
        return self._complete(parent.entry, self.model.at_defaults(), parent.training, methods)

    def _complete(
        self, entry: MethodEntry, model: ModelConfig, training: TrainingConfig, methods: dict[str, Any]
    ) -> TrialConfig:
        parent = None if entry.start_from is None else self.parent(entry.start_from)
        identity = parent.sha256 if isinstance(parent, GivenParent) else parent and parent.digest
        return TrialConfig(
            model=model,
            data=self.data,
            training=training,
            methods=methods,
            monitor=self.monitor,
            threads=self.resources.threads,
            plugins=self.plugins,
            start_from=StartFrom(name=entry.start_from, identity=identity) if entry.start_from and identity else None,
        )

    @property
    def trials(self) -> int:
        """How many trials are asked for in total."""
        if self.search.trials is not None:
            return self.search.trials
        return DEFAULT_TRIALS if self.grid is None else len(self.grid) * self.search.replicates

    @cached_property
    def grid(self) -> Grid | None:
        """What `sampler: grid` trains; None with any other sampler."""
        return build_grid(self.search, self._parameters, self.methods) if self.search.sampler == "grid" else None

    def known_params(self, number: int) -> dict[str, Scalar] | None:
        """Return the fixed Optuna parameters of trial `number`, or None where the sampler has a free hand.

        A grid fixes every trial; otherwise the known configurations come first.
        """
        if self.grid is not None:
            return self.grid.params(number)
        if number >= len(self.search.known):
            return None
        return fix_params(self.search.known[number], self._parameters, self.methods)[0]

    def domains(self) -> dict[str, Domain]:
        """Return the domain of every parameter that `suggest` may draw, by name."""
        return searched_domains(self._parameters, self.methods)

    def comparable(self) -> dict[str, Any]:
        """Return what decides the results of trials, defaults filled in: two sweeps with equal parts are comparable.

        Left out: the name, and what `adjustable` returns.
        """
        return {
            "model": self.model.plain(),
            "data": self.data.plain(),
            "training": self.training.plain(),
            "parents": {parent.name: parent.plain() for parent in self.parents},
            "methods": [entry.plain() for entry in self.methods],
            "objectives": list(self.objectives),
            "attacks": self.attacks and self.attacks.as_written(),
            "monitor": self.monitor.plain(),
            "search": {k: v for k, v in self.search.plain().items() if k not in ("trials", "replicates", SOURCE)}
            | {"known": [without_figures(entry) for entry in self.search.known]},
            "resources": {"cpus": self.resources.cpus},
            "plugins": list(self.plugins),
            **({} if self.confirms is None else {"confirms": self.confirms.plain()}),
        }

    def adjustable(self) -> dict[str, Any]:
        """Return what may change while a sweep goes on, defaults filled in: it leaves results comparable."""
        kept = ("data", "monitor", "attacks", "search", "resources", "ledger", "storage", "confirms")
        whole = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in kept}
        return {
            "search": {"trials": self.trials, "replicates": self.search.replicates, **self._published()},
            "attacks": self.attacks and self.attacks.adjustable(),
            "resources": {name: value for name, value in self.resources.plain().items() if name != "cpus"},
            "parents": {p.name: {"checkpoint": str(p.checkpoint)} for p in self.parents if isinstance(p, GivenParent)},
            "notify": self.notify,
            **{name: section.plain() for name, section in whole.items() if isinstance(section, Config)},
        }

    def _published(self) -> dict[str, Any]:
        """Return a paper's figures by the positions of their known configurations, and their source, if any."""
        figures = {str(place): entry[PUBLISHED] for place, entry in enumerate(self.search.known) if PUBLISHED in entry}
        return {SOURCE: self.search.published_in, PUBLISHED: figures} if figures else {}

    def _choose_method(self, trial: Suggests) -> MethodEntry:
        if len(self.methods) == 1:
            return self.methods[0]
        label = trial.suggest_categorical("method", [entry.label for entry in self.methods])
        return next(entry for entry in self.methods if entry.label == label)

    @cached_property
    def _parameters(self) -> dict[str, Parameter]:
        return list_parameters(self.model, self.training, self.methods)


def read_sweep(file: Path, overrides: Sequence[str] = (), scale: Scale | None = None) -> SweepConfig:
    """Read a sweep's YAML file.

    Args:
        overrides: ``key=value`` with dotted keys and list positions, e.g. ``methods[1].jasmin.k=0``.
        scale: shrinks the file's document before the overrides change it.
    Raises:  ConfigError with every problem of the file and the overrides.

    Relative paths (data.path, data.root, model.weights, the parents' checkpoints, plugins) are relative to the working
    directory, and absolute from here on: a sweep may be resumed from elsewhere.
    """
    document, source = read_document(file)
    chosen = [text for text in overrides if text.startswith("attacks.plan=")]
    document, _ = apply_overrides(document, source, chosen)  # before the plan is written out, or the file's would win
    document = _with_ready_made_plan(document)
    if scale is not None:
        document = shrink(document, scale, file.stem)
    document, source = apply_overrides(document, source, overrides)
    document = _with_ready_made_plan(document)
    return _build(with_digests(with_absolute_paths(document)), source)


def parse_sweep(document: Mapping[str, Any], source: str = "") -> SweepConfig:
    """Read plain data, e.g. the document that a ledger keeps; ConfigError as `read_sweep`.

    ``parse_sweep(config.document).document == config.document``. Args: source: named in problems.
    """
    try:
        plain = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem((), f"not plain data: {error}.", source=source)]) from error
    return _build(with_digests(_with_ready_made_plan(plain)), Source(source))


def _with_ready_made_plan(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the attack plan that it names written out: what a sweep ran must not change later."""
    return {**document, "attacks": fill_in(document["attacks"])} if "attacks" in document else document


def with_absolute_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with its relative paths relative to the working directory no longer."""
    made = dict(document)
    if isinstance(document.get("data"), dict):
        made["data"] = {**_default_root(document["data"].get("name")), **document["data"]}
    for section, key in (("data", "path"), ("data", "root"), ("model", "weights")):
        fields = made.get(section)
        if isinstance(fields, dict) and isinstance(fields.get(key), str):
            made[section] = {**fields, key: os.path.abspath(fields[key])}
    for name, parent in _checkpoints(document):
        made["parents"] = {**made["parents"], name: {**parent, "checkpoint": os.path.abspath(parent["checkpoint"])}}
    if isinstance(document.get("plugins"), list):
        made["plugins"] = [os.path.abspath(p) if isinstance(p, str) else p for p in document["plugins"]]
    return made


def with_digests(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the SHA-256 of every checkpoint that is a parent: its bytes must not change later."""
    made = dict(document)
    for name, parent in _checkpoints(document):
        if parent.get("sha256") is None:
            with contextlib.suppress(OSError):  # which reading the section says with its line
                digest = sha256_of(Path(parent["checkpoint"]))
                made["parents"] = {**made["parents"], name: {**parent, "sha256": digest}}
    return made


def _checkpoints(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, section) of each parent that names a checkpoint, as far as the document is well-formed."""
    section = document.get("parents")
    parents = section.items() if isinstance(section, dict) else ()
    return [(name, p) for name, p in parents if isinstance(p, dict) and isinstance(p.get("checkpoint"), str)]


def _default_root(dataset: Any) -> dict[str, str]:
    """Return the root folder that a data set takes if the file names none: it is relative as well."""
    if dataset not in names("datasets"):
        return {}
    root = find("datasets", dataset).Config.model_fields.get("root")
    return {} if root is None or root.is_required() else {"root": str(root.default)}


def _build(document: dict[str, Any], source: Source) -> SweepConfig:
    parsed = read_sections(document)
    problems = [*parsed.problems, *cross_problems(parsed)]
    if problems:
        raise source.refusal(problems)
    return _assemble(document, parsed)


def _assemble(document: dict[str, Any], parsed: Sections) -> SweepConfig:
    assert parsed.model is not None
    assert parsed.data is not None
    assert parsed.training is not None
    general = parsed.general
    return SweepConfig(
        document=document,
        name=general.name,
        model=parsed.model,
        data=parsed.data,
        training=parsed.training,
        methods=tuple(parsed.methods),
        parents=tuple(parsed.parents.values()),
        objectives=general.objectives,
        attacks=parsed.attacks,
        monitor=_resolve(general.monitor, parsed.attacks),
        search=general.search,
        resources=general.resources,
        tracking=general.tracking,
        ledger=general.ledger,
        storage=general.storage,
        failures=general.failures,
        plugins=general.plugins,
        notify=general.notify,
        confirms=general.confirms,
    )


def _resolve(monitor: MonitorConfig, attacks: AttackPlan | None) -> MonitorConfig:
    """Fill in the ball of a monitor that is on; whatever one that is off says, it is the default."""
    if not monitor.images:
        return MonitorConfig()
    ball = Threat() if attacks is None else attacks
    given = {"norm": monitor.norm or ball.norm, "epsilon": monitor.epsilon or ball.epsilon}
    return monitor.model_copy(update=given)


__all__ = [
    "AttackPlan",
    "MethodEntry",
    "Stage",
    "SweepConfig",
    "TestPlan",
    "configuration_diff",
    "parse_sweep",
    "read_sweep",
]
