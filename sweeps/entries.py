"""What trials are made of: entries of methods, and parents that they start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from search_spaces.config import Config
from search_spaces.space import Space
from trainables.config import TrainingConfig


class ParentSection(Config):
    """A model that trials start from (``start_from: NAME`` in an entry of methods): trained once for all of them, or
    given. Nothing in it is searched; model and data are the sweep's."""

    methods: Any = None
    """The method or stack that trains it: ``{adversarial: {epsilon: 8/255}}``. Fields that are left out have their
    defaults; a method that adds weights of its own cannot be here."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields that differ from the section training; what that searches has its default here."""
    checkpoint: Path | None = None
    """Local weights (.safetensors, or a .pth state dict) instead."""
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None
    """Of the checkpoint; None is what it is at the launch. A file that changes afterwards is refused."""

    @model_validator(mode="after")
    def _is_trained_or_given(self) -> ParentSection:
        if (self.methods is None) == (self.checkpoint is None):
            found = "neither" if self.methods is None else "both"
            raise ValueError(f"a parent is trained by methods, or is a checkpoint; found {found}")
        if self.checkpoint is not None and self.training:
            raise ValueError(f"a checkpoint is not trained; found training: {self.training}")
        if self.checkpoint is None and self.sha256 is not None:
            raise ValueError("sha256 is that of a checkpoint; found none")
        return self


@dataclass(frozen=True)
class MethodEntry:
    """One entry of `methods`: a method, or several that are stacked."""

    label: str
    """``jasmin``, ``jasmin+adversarial``, ``safer@robust``; unique in a sweep."""
    spaces: Mapping[str, Space[Any]]
    start_from: str | None = None
    """Name of the parent; None starts from what the section model says."""

    def prefix(self, method: str) -> str:
        """Return what stands before ``.field`` in the names of a method's parameters."""
        return method if method == self.label else f"{self.label}/{method}"

    def plain(self) -> dict[str, Any]:
        """Return every field of every method, and the parent if there is one, as JSON-ready data."""
        parent = {} if self.start_from is None else {"start_from": self.start_from}
        return {name: space.plain() for name, space in self.spaces.items()} | parent


@dataclass(frozen=True)
class TrainedParent:
    """A parent that the sweep trains, its configuration complete but for what all trials share."""

    name: str
    entry: MethodEntry
    """With one value for every field."""
    training: TrainingConfig

    def plain(self) -> dict[str, Any]:
        """Return what decides its weights as JSON-ready data."""
        return {"methods": self.entry.plain(), "training": self.training.plain()}


@dataclass(frozen=True)
class GivenParent:
    """A parent that is a checkpoint."""

    name: str
    checkpoint: Path
    sha256: str

    def plain(self) -> dict[str, Any]:
        """Return what decides its weights as JSON-ready data: not where they are."""
        return {"sha256": self.sha256}


ParentEntry = TrainedParent | GivenParent
