"""Scale: a sweep shrunk until it runs through in seconds, on the code path of the whole one.

`smoke` keeps what decides which code runs: the model family with its image, patch and token sizes (so that every k
stays legal), the recipe, every method entry, the attacks of every stage, the search and the tracking. It shrinks what
only costs: two narrow blocks and fresh weights; a hundred of the embedded digits, whatever the data section says, so
that neither files nor network are needed; one epoch, short attacks on a few images, one trial per method entry; a
parent that is a checkpoint becomes one that is trained. The figures of such a run mean nothing.

What ``--set`` says comes afterwards and wins: ``--set data.name=arrays --set data.path=…`` gives images of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from search_spaces.errors import SweepError
from sweeps.attack_section import AttackSection
from sweeps.published import SOURCE, without_figures
from sweeps.yaml_source import long_form
from trainables.attack import Threat
from trainables.config import label_of
from trainables.registry import Kind, find

Scale = Literal["smoke"]
Section = dict[str, Any]

MODEL: Section = {"embed_dim": 24, "depth": 2, "num_heads": 2}
DATA: Section = {"name": "digits", "train_images": 100, "validation_images": 40, "test_images": 40}
TRAINING: Section = {"epochs": 1, "batch_size": 20}
FRESH = ("pretrained", "weights")
"""Fields of the model that are left out: its weights are fresh."""
DROPPED = ("compile", "micro_batch", "warmup_epochs")
"""Fields of the training that are left out, for compiling takes longer than the whole run, or made to fit."""
IMAGES = 8
"""Validation and test images that are attacked; fewer where the document has fewer."""
LIMITS: Section = {"steps": 2, "restarts": 2, "queries": 20}
"""Fields of methods and attacks that make them dear, and the most that they keep."""
_DEAR = tuple(f".{field}" for field in LIMITS)


def shrink(document: Mapping[str, Any], scale: Scale, stem: str) -> Section:
    """Return a document at another scale, its name with the scale as suffix; what is broken stays as it is.

    Args: document: plain data as YAML gives it; stem: the name of a sweep that has none.
    """
    assert scale == "smoke"
    changes: dict[str, Callable[[Any], Any]] = {
        "model": _model,
        "data": _data,
        "training": _training,
        "parents": _parents,
        "methods": _methods,
        "attacks": _attacks,
        "monitor": _monitor,
        "search": lambda search: _search(search, document.get("methods")),
        "resources": lambda _: {"concurrent": 1},  # trials of a second each finish before a second worker has started
        "name": lambda name: f"{name or stem}-{scale}",
    }
    made = {key: change(document.get(key)) for key, change in changes.items()}
    return {**document, **{key: value for key, value in made.items() if value is not None}}


def _model(section: Any) -> Any:
    if not isinstance(section, Mapping | None):
        return section
    return {**{k: v for k, v in (section or {}).items() if k not in FRESH}, **MODEL}


def _data(section: Any) -> Any:
    kept = {k: v for k, v in section.items() if k == "selection_fraction"} if isinstance(section, Mapping) else {}
    return {**kept, **DATA}


def _training(section: Any) -> Any:
    if not isinstance(section, Mapping | None):
        return section
    given = section or {}
    made = {**{k: v for k, v in given.items() if k not in DROPPED}, **TRAINING}
    if given.get("warmup_epochs"):
        made["warmup_epochs"] = TRAINING["epochs"] / 2
    if given.get("micro_batch"):
        made["micro_batch"] = TRAINING["batch_size"] // 2
    return made


def _methods(section: Any) -> Any:
    if not isinstance(section, list):
        return section
    return [
        {name: _shrunk("methods", name, settings) for name, settings in entry.items()}
        if (entry := _as_mapping(value))
        else value
        for value in section
    ]


def _parents(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {name: _parent(value) if isinstance(value, Mapping) else value for name, value in section.items()}


def _parent(section: Mapping[str, Any]) -> Section:
    """Shrink a parent as a trial; a checkpoint, which fits the whole model alone, gives way to plain fine-tuning."""
    if "checkpoint" in section:
        return {"methods": "plain", "training": dict(TRAINING)}
    methods = section.get("methods")
    shrunk = _methods([methods])[0] if methods is not None else None
    return {**section, "methods": shrunk, "training": _training(section.get("training"))}


def _attacks(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    made = {**section, "images": _fewer(section.get("images")), "stages": _stages(section.get("stages"))}
    if isinstance(section.get("columns"), Mapping):
        made["columns"] = {label: _column(value) for label, value in section["columns"].items()}
    test = section.get("test", {})
    if isinstance(test, Mapping):
        made["test"] = {**test, "images": _fewer(test.get("images")), "trials": 1}
        if test.get("stages") is not None:
            made["test"]["stages"] = _stages(test["stages"])
    return made


def _column(value: Any) -> Any:
    named = _as_mapping(value)
    return {k: v if k in Threat.model_fields else _shrunk("attacks", k, v) for k, v in named.items()} or value


def _monitor(section: Any) -> Any:
    if not isinstance(section, Mapping) or not section.get("images"):
        return section
    return {**section, "images": _fewer(section["images"]), "steps": LIMITS["steps"]}


def _stages(section: Any) -> Any:
    stages = AttackSection().stages if section is None else section
    if not isinstance(stages, list | tuple):
        return stages
    return [
        {name: _shrunk("attacks", name, settings) for name, settings in stage.items()}
        if (stage := _as_mapping(value))
        else value
        for value in stages
    ]


def _search(section: Any, methods: Any) -> Any:
    """Keep one known configuration per method entry; an entry without one gets its bare name, unless in a grid."""
    search = long_form("search", section)
    if not isinstance(search, Mapping | None):
        return search
    labels = [_label(value) for value in methods] if isinstance(methods, list) else ["plain"]
    given = (search or {}).get("known") or []
    made = {k: v for k, v in (search or {}).items() if k not in ("replicates", SOURCE)}
    is_grid = made.get("sampler") == "grid"
    if not isinstance(given, list | tuple) or not all(isinstance(entry, Mapping) for entry in given):
        return search
    known: list[Section] = []
    for label in labels:
        own = [entry for entry in given if entry.get("method", label if len(labels) == 1 else None) == label]
        known += [_without_pinned(own[0])] if own else [] if is_grid else [{"method": label}]
    return {**made, "trials": len(known) or len(labels), "known": known}


def _label(value: Any) -> str:
    """Return the label of an entry of methods, which reading gives it."""
    entry = _as_mapping(value)
    parent = entry.get("start_from")
    return label_of((str(name) for name in entry if name != "start_from"), None if parent is None else str(parent))


def _without_pinned(entry: Mapping[str, Any]) -> Section:
    """Leave out of a known configuration what is set here, and a paper's figures, which are of the whole model."""
    ours = {f"model.{name}" for name in (*MODEL, *FRESH)} | {f"training.{name}" for name in (*TRAINING, *DROPPED)}
    kept = without_figures(entry)
    return {k: v for k, v in kept.items() if k not in ours and not k.endswith((*_DEAR, "warmup_epochs"))}


def _shrunk(kind: Kind, name: str, settings: Any) -> Any:
    """Limit what makes a method or an attack dear; a warm-up over epochs is left out, for there is one epoch."""
    if not isinstance(settings, Mapping | None):
        return settings
    made = {k: v for k, v in (settings or {}).items() if not k.endswith("warmup_epochs")}
    try:
        fields = find(kind, name).Config.model_fields
    except SweepError:  # no such name, which is said later; or a plugin that is not loaded yet
        return made
    if made.get("version") == "aa10":  # its length is in its name; the standard version has the same parts
        made["version"] = "standard"
    for field in LIMITS.keys() & fields.keys():
        value = made.get(field, fields[field].default)
        made[field] = min(value, LIMITS[field]) if type(value) is int else LIMITS[field]
    return made


def _fewer(images: Any) -> int:
    return min(images, IMAGES) if type(images) is int else IMAGES


def _as_mapping(value: Any) -> Mapping[str, Any]:
    """Read an entry of methods or stages: a name, or a mapping of names to settings; empty if it is neither."""
    if isinstance(value, str):
        return {value: None}
    return value if isinstance(value, Mapping) else {}
