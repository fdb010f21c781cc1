"""The sections of a sweep that are read as they stand: their fields, defaults and ranges; the larger ones have files
of their own."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from search_spaces.config import Config
from search_spaces.object_uri import ObjectUri
from sweeps.failures_section import FailuresSection
from sweeps.folder import NAME_PATTERN, NAME_RULE
from sweeps.resources_section import ResourcesSection
from sweeps.yaml_source import long_form
from trainables.config import MonitorConfig

Objective = Literal["clean_acc", "robust_acc", "feature_cosine"]


DEFAULT_TRIALS = 50
"""Trials of a sweep that names no number and has no grid."""
TRACKING_SCHEMES = ("http://", "https://", "sqlite:", "postgresql", "mysql", "mssql", "databricks", "file:")
"""What MLflow knows how to reach; it takes anything else for a folder of that name."""


Allocation = Literal["shared", "equal", "equal_seconds"]


class SearchSection(Config):
    """How configurations are proposed; a name alone is the sampler: ``search: grid``."""

    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's multi-objective TPE; independent random draws; or grid: the known configurations and nothing else, or
    without any every combination of the listed values."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """How many trials the sweep trains; None is 50, or with a grid all of it. Fewer take the grid's first ones."""
    replicates: Annotated[int, Field(ge=1)] = 1
    """How often a grid is trained, each time with other seeds; the whole grid once, then again."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the sampler and, with the trial's number, of every trial."""
    startup_trials: Annotated[int, Field(ge=0)] = 10
    """Random draws before TPE starts to learn from results."""
    known: tuple[dict[str, Any], ...] = ()
    """Configurations to try first; parameters that one leaves out are drawn. In a grid none may be left out. One that
    leaves nothing out may carry a paper's figures, ``published: {clean_acc: 0.9856, PGD2: 0.4545}``: accuracies from 0
    to 1, by the names of the plan's attacks. The report sets ours beside them; they change no result."""
    published_in: str | None = None
    """Where these figures stand: ``Yudin et al. 2025, arXiv:2507.07814, table 4``, and how its protocol differs."""
    allocation: Allocation = "shared"
    """Who decides how much each method gets: the sampler, which prefers what does well; or each gets the same number of
    trials, or the same seconds of training, and is searched on its own, the random draws divided among the methods."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_the_sampler(cls, value: Any) -> Any:
        return long_form("search", value)

    @field_validator("allocation")
    @classmethod
    def _a_grid_is_allocated(cls, allocation: str, info: ValidationInfo) -> str:
        if allocation != "shared" and info.data.get("sampler") == "grid":
            raise ValueError(f"a grid fixes the method of every trial; found {allocation} with sampler: grid")
        return allocation

    @field_validator("replicates")
    @classmethod
    def _only_a_grid_is_repeated(cls, replicates: int, info: ValidationInfo) -> int:
        if replicates > 1 and info.data.get("sampler", "grid") != "grid":
            sampler = info.data["sampler"]
            raise ValueError(f"only sampler: grid trains its configurations again; found {replicates} with {sampler}")
        return replicates


class TrackingSection(Config):
    """Where MLflow keeps its copy of the sweep."""

    enabled: bool = True
    uri: str | None = None
    """MLflow tracking URI; None is the database mlflow.db in the storage folder. The name and password for a server
    stand in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never here."""
    experiment: Annotated[str, Field(min_length=1)] = "paretune"

    @field_validator("uri")
    @classmethod
    def _a_server_without_its_password(cls, uri: str | None) -> str | None:
        if uri is not None and re.search(r"://[^/@]*:[^/@]*@", uri):
            raise ValueError(
                "a password belongs into MLFLOW_TRACKING_PASSWORD (the name into MLFLOW_TRACKING_USERNAME), not here; "
                "found one"
            )
        if uri is not None and not uri.startswith(TRACKING_SCHEMES):
            found = uri.rpartition("@")[2]
            allowed = f"{', '.join(TRACKING_SCHEMES[:-1])} or {TRACKING_SCHEMES[-1]}"
            raise ValueError(f"it should begin with {allowed}; found {found!r}")
        return uri


class ConfirmsSection(Config):
    """Which front a sweep trains again with new seeds; `confirm NAME` writes it, nobody else needs to."""

    sweep: str
    """Name of the sweep whose front it was."""
    id: str
    """Of that sweep: names are given again, ids are not."""
    trials: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Its trials, in the order of search.known."""
    clean_acc: tuple[float, ...] = ()
    """Validation figure that each of them was chosen by; one seed."""
    robust_acc: tuple[float, ...] = ()
    """The same of robust accuracy."""

    @model_validator(mode="after")
    def _a_figure_for_each(self) -> ConfirmsSection:
        for name in ("clean_acc", "robust_acc"):
            if len(getattr(self, name)) not in (0, len(self.trials)):
                raise ValueError(f"{name} has one value for each of the trials {list(self.trials)}")
        return self


class LedgerSection(Config):
    """Where the sweep's ledger is."""

    url: str | None = None
    """postgresql+psycopg://user@host/database, in which every sweep has a schema of its own; None is a sqlite file in
    the sweep's folder. Passwords stand in PGPASSWORD or ~/.pgpass, never here."""

    @field_validator("url")
    @classmethod
    def _a_server_without_its_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith("postgresql"):
            raise ValueError("it should be a postgresql URL, or null for a sqlite file in the sweep's folder")
        if re.search(r"://[^/@]*:[^/@]*@", url):
            raise ValueError("a password belongs into PGPASSWORD or ~/.pgpass, not here; found one")
        return url


class StorageSection(Config):
    """Where workers write what they train and judge."""

    objects: str | None = None
    """s3://BUCKET/PREFIX (gs:// likewise) for checkpoints, final weights, verdicts and the trials' logs, so that nodes
    need to share no folder; with region, scheme or endpoint_override behind a question mark where they are needed. None
    is the sweep's folder, which all nodes share. Keys stand in AWS_ACCESS_KEY_ID … or come with the machine, never
    here."""

    @field_validator("objects")
    @classmethod
    def _a_place_without_its_keys(cls, objects: str | None) -> str | None:
        return None if objects is None else str(ObjectUri.read(objects))


class GeneralSections(Config):
    """The sections that need no look at the methods or attacks."""

    name: str | None = None
    """Name of the sweep and of its folder."""
    objectives: tuple[Objective, ...] = ("clean_acc", "robust_acc")
    """What is maximised."""
    monitor: MonitorConfig = MonitorConfig()
    search: SearchSection = SearchSection()
    resources: ResourcesSection = ResourcesSection()
    tracking: TrackingSection = TrackingSection()
    ledger: LedgerSection = LedgerSection()
    storage: StorageSection = StorageSection()
    failures: FailuresSection = FailuresSection()
    plugins: tuple[str, ...] = ()
    """Python files with further methods, attacks or data sets."""
    confirms: ConfirmsSection | None = None
    notify: str | None = None
    """Command for the shell when the sweep is finished or its driver has failed."""

    @field_validator("name")
    @classmethod
    def _stays_in_the_storage_folder(cls, name: str | None) -> str | None:
        if name is not None:
            check_name(name)
        return name

    @field_validator("objectives")
    @classmethod
    def _at_least_one_and_no_repeats(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if not objectives or len(set(objectives)) != len(objectives):
            raise ValueError("objectives are one or more of clean_acc, robust_acc and feature_cosine, each once")
        return objectives


def check_name(name: str) -> None:
    """Raise ValueError unless `name` can name a sweep: it becomes a folder's name and must not lead out of there."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(NAME_RULE)
