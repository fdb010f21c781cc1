"""The data set and the model of a run as MLflow records them: one input for each split, and tags of the model.

They are read off the ledger, and the model's size off the head of its weights file. A `LoggedModel` of MLflow 3 is not
made: it is no part of the run, is not found again by a tag before it is created, and wants a copy of the weights.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cluster.object_store import ObjectStore
from search_spaces.errors import ObjectStoreError
from search_spaces.object_uri import ObjectUri
from sweeps.folder import SweepFolder
from sweeps.records import SweepRecord, TrialRecord

CONTEXTS = ("training", "validation", "test")
LONGEST_DIGEST = 36
"""Characters that MLflow takes."""
LONGEST_HEAD = 100_000_000
"""Bytes; safetensors refuses a longer head."""
USUAL_HEAD = 2**20
"""Bytes that are asked of an object store: a tensor takes about a hundred."""


class DataInput(NamedTuple):
    """One split of a data set, in the words of MLflow's entities."""

    name: str
    """With the split in it: one run has a data set of the same name and digest only once."""
    digest: str
    source_type: str
    source: str
    """JSON."""
    schema: str
    """JSON."""
    profile: str
    """JSON."""
    context: str
    """training, validation or test."""


def data_inputs(sweep: SweepRecord, config: Mapping[str, Any]) -> list[DataInput]:
    """Return the splits of the data set that a trial's configuration names. The digest is that of all splits."""
    data = config["data"]
    place = data.get("path") or data.get("root")
    known = ("local", {"uri": str(place)}) if place else ("code", {"tags": {"mlflow.source.name": str(data["name"])}})
    source_type, source = known[0], json.dumps(known[1])
    schema = json.dumps({"mlflow_tensorspec": {"features": _features(config), "targets": _tensor("int64", [-1])}})
    return [
        DataInput(
            name=f"{data['name']}/{context}",
            digest=sweep.data_digest[:LONGEST_DIGEST],
            source_type=source_type,
            source=source,
            schema=schema,
            profile=json.dumps(_profile(sweep, context)),
            context=context,
        )
        for context in CONTEXTS
    ]


def _features(config: Mapping[str, Any]) -> str:
    """Images as attacks see them, (B, C, H, W) in [0, 1]; −1 where the configuration leaves a size to others."""
    side = config["model"].get("img_size") or -1
    mean = config["data"].get("mean")
    return _tensor("float32", [-1, len(mean) if mean and len(mean) > 1 else -1, side, side])


def _tensor(kind: str, shape: list[int]) -> str:
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": kind, "shape": shape}}])


def _profile(sweep: SweepRecord, context: str) -> dict[str, int]:
    images = sweep.split_sizes.get(context)
    return {**({} if images is None else {"num_rows": images}), "num_classes": sweep.num_classes}


def model_tags(trial: TrialRecord, folder: SweepFolder) -> dict[str, str]:
    """Return model.name, and of a trained one model.weights_digest, model.file and model.parameters.

    The file is told relative to the storage folder, and is left out once it has been removed.
    """
    tags = {"model.name": str(trial.config["model"]["name"])}
    if trial.weights_digest is None:
        return tags
    tags["model.weights_digest"] = trial.weights_digest
    file = folder.trial(trial.number) / "final" / "weights.safetensors"
    name, parameters = file.relative_to(folder.storage).as_posix(), count_parameters(file)
    if (objects := folder.objects) is not None:
        inside = file.relative_to(folder.root).as_posix()
        name, parameters = str(objects.joined(inside)), _count_remote(objects, inside)
    if parameters is not None:
        tags |= {"model.file": name, "model.parameters": str(parameters)}
    return tags


def _count_remote(objects: ObjectUri, name: str) -> int | None:
    """Return the same as `count_parameters` of an object; None also if the store is away: a tag is no result."""
    try:
        head = ObjectStore(objects).read_head(name, USUAL_HEAD)
    except ObjectStoreError:
        return None
    return None if head is None else _numbers_in(io.BytesIO(head))


def count_parameters(weights: Path) -> int | None:
    """Return how many numbers a model's file holds, the constants that normalise pixels apart; None without a file.

    Only the head is read: eight bytes with its length, then JSON with the shape of every tensor (safetensors' format).
    """
    try:
        with weights.open("rb") as file:
            return _numbers_in(file)
    except OSError:
        return None


def _numbers_in(file: BinaryIO) -> int | None:
    length = int.from_bytes(file.read(8), "little")
    try:
        head = json.loads(file.read(min(length, LONGEST_HEAD)))
    except ValueError:
        return None
    constants = ("__metadata__", "mean", "std")
    shapes: list[list[int]] = [tensor["shape"] for name, tensor in head.items() if name not in constants]
    return sum(math.prod(shape) for shape in shapes)
