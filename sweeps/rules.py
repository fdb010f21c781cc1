"""Rules that look at several sections at once, or ask a method, attack, data set or model whether it can run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import timm

from search_spaces.domains import thin
from search_spaces.errors import DataError, ModelError, Problem
from search_spaces.problems import Path
from search_spaces.space import Space
from sweeps.attack_section import AttackPlan, Stage
from sweeps.entries import MethodEntry, ParentEntry, TrainedParent
from sweeps.grid import build_grid, discrete_values, open_parameters
from sweeps.known import Parameter, fix_params, list_parameters
from sweeps.parent_rules import parent_problems
from sweeps.published import PUBLISHED, published_problems
from sweeps.reading import Sections
from trainables.config import ModelConfig, TrainingConfig
from trainables.dataset import Splits
from trainables.hub import has_pretrained
from trainables.method import ModelFacts, check_stack
from trainables.recipe import steps_per_epoch
from trainables.registry import find
from trainables.vit import model_facts

CHANNELS, NUM_CLASSES = 3, 10
"""What is assumed before the data is read; neither tokens nor widths depend on it."""
MAX_MODELS = 50
"""Different models that are built, without weights, to check a searched model section."""


def cross_problems(parsed: Sections) -> list[Problem]:
    """Return what is wrong between the sections that could be read."""
    rules: tuple[Callable[[Sections], Iterable[Problem]], ...] = (
        _objectives_need_attacks,
        _feature_cosines_are_measured,
        _monitor_needs_a_ball,
        _weights_exist,
        parent_problems,
        _stacks_fit_together,
        _models_can_run_the_methods,
        _attacks_can_run,
        _data_is_there,
        _best_epoch_has_images,
        _known_is_searched,
        _published_can_be_measured,
        _grid_is_complete,
    )
    return [problem for rule in rules for problem in rule(parsed)]


def data_problems(
    plan: AttackPlan | None,
    training: Space[TrainingConfig],
    splits: Splits,
    parents: Iterable[ParentEntry] = (),
) -> Iterator[Problem]:
    """Yield what can be said only when the data are known: an attack or a batch size that does not go with them."""
    yield from attack_problems(plan, splits.num_classes)
    own: list[tuple[Path, TrainingConfig]] = [(("training",), recipe) for recipe in training.discrete_corners()]
    for path, recipe in [*own, *parent_recipes(parents)]:
        try:
            steps_per_epoch(len(splits.train.labels), recipe)
        except DataError as error:
            yield Problem((*path, "drop_last"), str(error))
            return


def parent_recipes(parents: Iterable[ParentEntry]) -> list[tuple[Path, TrainingConfig]]:
    """Return how each parent that is trained is trained, and where that stands."""
    return [(("parents", p.name, "training"), p.training) for p in parents if isinstance(p, TrainedParent)]


def attack_problems(plan: AttackPlan | None, num_classes: int) -> Iterator[Problem]:
    """Yield the reasons why a plan's attacks cannot run on so many classes."""
    if plan is None:
        return
    yield from _stage_problems(enumerate(plan.stages), ("attacks", "stages"), num_classes)
    yield from _stage_problems(plan.columns.items(), ("attacks", "columns"), num_classes)
    if plan.test is not None and plan.test.stages != plan.stages:
        yield from _stage_problems(enumerate(plan.test.stages), ("attacks", "test", "stages"), num_classes)


def _stage_problems(stages: Iterable[tuple[int | str, Stage]], path: Path, num_classes: int) -> Iterator[Problem]:
    for place, stage in stages:
        for reason in find("attacks", stage.attack).check(stage.config, stage.threat, num_classes):
            yield Problem((*path, place, stage.attack), _sentence(reason))


def _objectives_need_attacks(parsed: Sections) -> Iterator[Problem]:
    wanted = "robust_acc" in parsed.general.objectives and "objectives" not in parsed.broken
    if wanted and parsed.attacks is None and "attacks" not in parsed.broken:
        hint = "Write attacks: {} for the defaults, or objectives: [clean_acc]."
        yield Problem(("objectives",), "robust_acc needs the section attacks; found none.", hint)


def _feature_cosines_are_measured(parsed: Sections) -> Iterator[Problem]:
    if "feature_cosine" not in parsed.general.objectives or parsed.broken & {"objectives", "methods"}:
        return
    without = [entry.label for entry in parsed.methods if "robustness_tokens" not in entry.spaces]
    if without:
        message = f"feature_cosine is measured by robustness_tokens alone; found the methods {', '.join(without)}."
        yield Problem(("objectives",), message, "A backbone without tokens is robustness_tokens: {count: 0}.")
    for entry in parsed.methods:
        space = entry.spaces.get("robustness_tokens")
        if space is not None and any(not config.measured_images for config in space.discrete_corners()):
            path = ("methods", parsed.positions[entry.label], "robustness_tokens", "measured_images")
            yield Problem(path, "the objective feature_cosine is measured on images of validation; found 0.")


def _monitor_needs_a_ball(parsed: Sections) -> Iterator[Problem]:
    monitor = parsed.general.monitor
    if monitor.images and monitor.epsilon is None and parsed.attacks is None and "attacks" not in parsed.broken:
        message = "a monitor attacks within a ball, and there is no section attacks to take ε from; found none."
        yield Problem(("monitor", "epsilon"), message, "Write epsilon: 8/255, or a section attacks.")


def _weights_exist(parsed: Sections) -> Iterator[Problem]:
    for model in _models(parsed):
        if model.weights is not None and not model.weights.is_file():
            yield Problem(("model", "weights"), f"no such file: {model.weights}.")
            return
        if model.pretrained and timm.is_model(model.name) and not has_pretrained(model.name):
            message = f"timm has no pretrained weights of {model.name}."
            yield Problem(("model", "pretrained"), message, "Name a local file in model.weights, or another model.")
            return


def _stacks_fit_together(parsed: Sections) -> Iterator[Problem]:
    for path, entry in _entries(parsed):
        for reason in check_stack({name: find("methods", name) for name in entry.spaces}):
            yield Problem(path, _sentence(reason))


def _entries(parsed: Sections) -> Iterator[tuple[Path, MethodEntry]]:
    """Yield every stack that is trained, and where it stands: those of the trials, then those of parents."""
    for entry in parsed.methods:
        yield ("methods", parsed.positions[entry.label]), entry
    for parent in parsed.parents.values():
        if isinstance(parent, TrainedParent):
            yield ("parents", parent.name, "methods"), parent.entry


def _models_can_run_the_methods(parsed: Sections) -> Iterator[Problem]:
    facts: dict[ModelFacts, None] = {}
    for model in _models(parsed):
        try:
            facts[_facts(model)] = None
        except ModelError as error:
            yield _model_problem(error)
            return
    for path, entry in _entries(parsed):
        yield from _method_problems(entry, path, facts)


def _method_problems(entry: MethodEntry, path: Path, facts: Iterable[ModelFacts]) -> Iterator[Problem]:
    """Ask each method of an entry about every corner of its space on every model; one problem for each field."""
    reasons: dict[Path, dict[str, None]] = {}
    for name, space in entry.spaces.items():
        method = find("methods", name)
        for config in space.corners():
            for fact in facts:
                for field, reason in method.check(config, fact):
                    reasons.setdefault((*path, name, field), {})[reason] = None
    for where, found in reasons.items():
        first, *others = found
        more = f" (and {len(others)} more of its values)" if others else ""
        yield Problem(where, _sentence(first.rstrip(".") + more))


def _attacks_can_run(parsed: Sections) -> Iterator[Problem]:
    return attack_problems(parsed.attacks, NUM_CLASSES)


def _data_is_there(parsed: Sections) -> Iterator[Problem]:
    if parsed.data is not None:
        for field, reason in find("datasets", parsed.data.name).check(parsed.data):
            yield Problem(("data", field), _sentence(reason))


def _best_epoch_has_images(parsed: Sections) -> Iterator[Problem]:
    if parsed.training is None or parsed.data is None or parsed.data.selection_fraction > 0:
        return
    recipes = [*parsed.training.discrete_corners(), *(recipe for _, recipe in parent_recipes(parsed.parents.values()))]
    if any(config.select == "best" for config in recipes):
        message = "training.select: best chooses the epoch on a share of the training images; found a share of 0."
        yield Problem(("data", "selection_fraction"), message)


def _known_is_searched(parsed: Sections) -> Iterator[Problem]:
    if parsed.model is None or parsed.training is None or parsed.broken & {"methods", "search"}:
        return
    parameters = list_parameters(parsed.model, parsed.training, parsed.methods)
    for position, entry in enumerate(parsed.general.search.known):
        for problem in fix_params(entry, parameters, parsed.methods)[1]:
            yield Problem(("search", "known", position, *problem.path), problem.message, problem.hint)


def _published_can_be_measured(parsed: Sections) -> Iterator[Problem]:
    if "search" in parsed.broken:
        return
    search, plan = parsed.general.search, parsed.attacks
    names = [] if plan is None else [*(stage.label for stage in plan.stages), *plan.columns]
    columns = None if "attacks" in parsed.broken else names
    yield from published_problems(search.known, search.published_in, columns)
    if parsed.model is None or parsed.training is None or "methods" in parsed.broken:
        return
    parameters = list_parameters(parsed.model, parsed.training, parsed.methods)
    for position, left in _left_open(parsed, parameters):
        if PUBLISHED in search.known[position]:
            message = f"figures are those of a whole configuration, and this one leaves {', '.join(left)} open."
            yield Problem(("search", "known", position, PUBLISHED), message, "Give each a value.")


def _grid_is_complete(parsed: Sections) -> Iterator[Problem]:
    """A grid draws nothing: its known configurations are complete, or its domains are lists."""
    search = parsed.general.search
    if search.sampler != "grid" or parsed.model is None or parsed.training is None:
        return
    if parsed.broken & {"methods", "search"}:
        return
    parameters = list_parameters(parsed.model, parsed.training, parsed.methods)
    problems = [*_open_known(parsed, parameters), *([] if search.known else _endless_domains(parsed))]
    yield from problems
    if problems or search.trials is None:
        return
    size = len(build_grid(search, parameters, parsed.methods))
    if search.trials > size * search.replicates:
        times = f" × {search.replicates} replicates" if search.replicates > 1 else ""
        message = f"the grid has {size} configurations{times}; found {search.trials} trials."
        yield Problem(("search", "trials"), message, "Leave trials out for all of it; more replicates add seeds.")


def _open_known(parsed: Sections, parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    for position, left in _left_open(parsed, parameters):
        message = f"a grid draws nothing, and this configuration leaves {', '.join(left)} open."
        yield Problem(("search", "known", position), message, "Give each a value.")


def _left_open(parsed: Sections, parameters: Mapping[str, Parameter]) -> Iterator[tuple[int, list[str]]]:
    """Yield the position of each known configuration that is legal and leaves something open, and what that is."""
    for position, entry in enumerate(parsed.general.search.known):
        fixed, problems = fix_params(entry, parameters, parsed.methods)
        left = [] if problems else open_parameters(fixed, parameters, parsed.methods)
        if left:
            yield position, left


def _endless_domains(parsed: Sections) -> Iterator[Problem]:
    spaces: list[tuple[Path, Space[Any] | None]] = [(("model",), parsed.model), (("training",), parsed.training)]
    for entry in parsed.methods:
        spaces += [(("methods", parsed.positions[entry.label], name), space) for name, space in entry.spaces.items()]
    for path, space in spaces:
        for name, domain in space.domains.items() if space is not None else ():
            try:
                discrete_values(domain)
            except ValueError as error:
                low, high = domain.probes()
                hint = f"List values, e.g. [{low}, {high}], or give one; or write search.known."
                yield Problem((*path, name), _sentence(str(error)), hint)


def _models(parsed: Sections) -> list[ModelConfig]:
    """Return the different models that the model section can give, at most MAX_MODELS of them."""
    models = list(dict.fromkeys(parsed.model.discrete_corners())) if parsed.model is not None else []
    return list(thin(models, MAX_MODELS))


@lru_cache(maxsize=256)
def _facts(model: ModelConfig) -> ModelFacts:
    return model_facts(model, CHANNELS, NUM_CLASSES)


def _model_problem(error: ModelError) -> Problem:
    """Turn "model.name: timm has no …" into a problem at that field."""
    place, _, message = str(error).partition(": ")
    if place.split(".")[0] == "model" and message:
        return Problem(tuple(place.split(".")), message)
    return Problem(("model",), str(error))


def _sentence(text: str) -> str:
    return text.rstrip(".") + "."
