"""Staging: pretrained weights and data brought onto this machine, before anything that costs a GPU begins.

`launch` and `resume` stage what is missing; ``run_sweep.py prefetch FILE`` does the same where there is network, for a
sweep that runs where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.domains import thin
from search_spaces.errors import ModelError, ParentChanged
from sweeps.config import SweepConfig
from sweeps.entries import GivenParent
from sweeps.rules import MAX_MODELS
from trainables import hub
from trainables.config import ModelConfig
from trainables.dataset import Dataset, Splits
from trainables.parent import check_sha256
from trainables.registry import find, load_plugins
from trainables.vit import check_weights

Say = Callable[[str], None]


@dataclass(frozen=True)
class Staged:
    """Something that the sweep needs, now on this machine."""

    what: str
    place: Path | None
    """Its file or folder; None if it needs none."""
    size: int | None
    """Bytes; None for a folder of the user's own, which may take long to measure."""

    def __str__(self) -> str:
        if self.place is None:
            return f"{self.what}: comes with the installation"
        size = "" if self.size is None else f", {self.size / 1e6:,.1f} MB"
        return f"{self.what}: {self.place.absolute()}{size}"


def to_fetch(config: SweepConfig) -> list[str]:
    """Say what `stage` would fetch, one clause each; needs no network.

    Raises: DataError or ModelError if something is missing and may not be fetched.
    """
    clauses = [hub.to_fetch(name) for name in pretrained_models(config)]
    return [clause for clause in (*clauses, _dataset(config).to_fetch()) if clause]


def stage(config: SweepConfig, say: Say) -> list[Staged]:
    """Fetch the weights and the data that any trial of the sweep may need.

    Args:    say: takes a line before each thing that has to be fetched.
    Raises:  DataError or ModelError if something cannot be had.
    """
    return [*stage_weights(config, say), stage_data(config, say)]


def stage_weights(config: SweepConfig, say: Say) -> list[Staged]:
    """Fetch the pretrained weights of every model that the sweep may draw, and list local weights beside them.

    Raises: ModelError if something cannot be had, or the checkpoint of a parent is not what it was.
    """
    staged = []
    for name in pretrained_models(config):
        if missing := hub.to_fetch(name):
            say(missing)
        staged.append(_staged(f"pretrained {name}", hub.fetch(name)))
    local = dict.fromkeys(model.weights for model in config.model.discrete_corners() if model.weights is not None)
    staged += [_staged("weights", path) for path in local]
    return staged + [_staged(f"parent {parent.name}", _checked(parent)) for parent in _given(config)]


def stage_data(config: SweepConfig, say: Say) -> Staged:
    """Fetch the data set if it is not there."""
    dataset = _dataset(config)
    if missing := dataset.to_fetch():
        say(missing)
    dataset.prepare()
    what = f"data set {config.data.name}"
    return Staged(what, dataset.place, None) if hasattr(config.data, "path") else _staged(what, dataset.place)


def check_fit(config: SweepConfig, splits: Splits) -> list[str]:
    """Return what the models of the sweep leave out of the weights that they start from, each sentence once.

    Nothing is fetched, and of pretrained weights nothing is read. ModelError if weights do not fit, or the
    checkpoint of a parent is not what it was.
    """
    models = thin(list(dict.fromkeys(config.model.discrete_corners())), MAX_MODELS)
    notes = [_notes(model, splits) for model in models] + [_parent_notes(p, models[0], splits) for p in _given(config)]
    return list(dict.fromkeys(note for found in notes for note in found))


def pretrained_models(config: SweepConfig) -> list[str]:
    """Return the names of the models that a trial may start from timm's weights, searched fields included."""
    return list(dict.fromkeys(model.name for model in config.model.discrete_corners() if model.pretrained))


def _notes(model: ModelConfig, splits: Splits) -> tuple[str, ...]:
    return check_weights(model, num_classes=splits.num_classes, channels=splits.channels)


def _given(config: SweepConfig) -> list[GivenParent]:
    return [parent for parent in config.parents if isinstance(parent, GivenParent)]


def _checked(parent: GivenParent) -> Path:
    try:
        check_sha256(parent.checkpoint, parent.sha256, parent.name)
    except ParentChanged as error:
        raise ModelError(str(error)) from error
    return parent.checkpoint


def _parent_notes(parent: GivenParent, model: ModelConfig, splits: Splits) -> tuple[str, ...]:
    """Return what the model leaves out of a parent's checkpoint."""
    weights = model.model_copy(update={"pretrained": False, "weights": _checked(parent)})
    try:
        return _notes(weights, splits)
    except ModelError as error:
        raise ModelError(f"parents.{parent.name}.checkpoint: {str(error).removeprefix('model.weights: ')}") from error


def _dataset(config: SweepConfig) -> Dataset[Any]:
    load_plugins(config.plugins)
    dataset: Dataset[Any] = find("datasets", config.data.name)(config.data, config.model.at_defaults().img_size)
    return dataset


def _staged(what: str, place: Path | None) -> Staged:
    return Staged(what, place, None if place is None else _bytes_in(place))


def _bytes_in(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
