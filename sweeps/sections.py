"""The sections of a sweep beside model, data, training and methods: their fields, defaults and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from cluster.packing import Node
from cluster.resources import GB, Shares, plan_shares, shortage, unfit
from search_spaces.config import Config, Number
from search_spaces.errors import Problem
from search_spaces.object_uri import ObjectUri
from search_spaces.space import Space
from sweeps.folder import NAME_PATTERN, NAME_RULE
from sweeps.yaml_source import long_form
from trainables.attack import Surrogate, Threat
from trainables.config import AttackConfig, MonitorConfig, TrainingConfig, attack_config_type


def _or_auto(allowed: str) -> WrapValidator:
    """Say "auto or …" once, instead of one complaint for each member of the union."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"it should be auto or {allowed}") from None

    return WrapValidator(check)


AutoCount = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], _or_auto("a whole number of at least 1")]
AutoGpus = Annotated[
    Annotated[Number, Field(ge=0)] | Literal["auto"], _or_auto("a number of at least 0; 0.25 is a quarter of a GPU")
]
Cpus = Annotated[Number, Field(gt=0)]
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


class _Claim(Config):
    """What one training or attack stage gets of a machine."""

    cpus: Cpus = 1
    gpus: AutoGpus = "auto"
    memory_gb: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _share_or_memory(self) -> Self:
        if self.gpus != "auto" and self.memory_gb is not None:
            found = f"gpus: {self.gpus:g} and memory_gb: {self.memory_gb:g}"
            raise ValueError(f"give gpus or memory_gb, not both; found {found}")
        return self

    @property
    def is_measured(self) -> bool:
        """Whether the share follows from what is measured, where there are GPUs."""
        return self.gpus == "auto" and self.memory_gb is None

    @property
    def memory_bytes(self) -> float | None:
        """GPU memory in bytes; None where it is not given."""
        return None if self.memory_gb is None else float(self.memory_gb) * GB


class EvaluationResources(_Claim):
    """What the attacks may use, apart from the trainings."""

    workers: AutoCount = "auto"
    """Attack stages at the same time while trials train; auto is 1. Afterwards they use what the trials used."""
    cpus: Cpus = 1
    """CPU cores of one stage."""
    gpus: AutoGpus = "auto"
    """Share of a GPU that one stage gets; auto follows from the memory that was measured, else it is 0.25 where there
    are GPUs, and 0 without."""
    memory_gb: Annotated[Number, Field(gt=0)] | None = None
    """GPU memory of one stage in GB, instead of `gpus`: its share of a device is this part of the device's memory."""


class ResourcesSection(_Claim):
    """What the trainings may use."""

    concurrent: AutoCount = "auto"
    """Trainings that run at the same time."""
    cpus: Cpus = 1
    """CPU cores of one training; whole ones become its threads."""
    gpus: AutoGpus = "auto"
    """Share of a GPU that one training gets; auto follows from the memory that its class was measured to need before
    the sweep, else it is 0.75 where there are GPUs, and 0 without."""
    memory_gb: Annotated[Number, Field(gt=0)] | None = None
    """GPU memory of one training in GB, CUDA's own included, instead of `gpus`: its share of a device is this part of
    the device's memory, rounded up to 1/100, on each kind of device its own."""
    mps: Literal["auto", "off"] = "auto"
    """auto starts CUDA MPS where processes share a GPU of this machine and NVIDIA's program for it is installed, so
    that they compute at the same time; off leaves it alone. On a cluster the nodes' owner starts it."""
    evaluation: EvaluationResources = EvaluationResources()

    @model_validator(mode="before")
    @classmethod
    def _auto_is_all_defaults(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto":
            raise ValueError("it should be auto, which is all defaults, or a mapping")
        return long_form("resources", value)

    @property
    def threads(self) -> int:
        """Threads of torch in one training."""
        return max(1, int(self.cpus))

    @property
    def wants_mps(self) -> bool:
        """Whether MPS is allowed and processes may share a GPU: not if each takes a whole one, or none."""
        shares = (one.gpus for one in (self, self.evaluation))
        return self.mps == "auto" and any(share == "auto" or 0 < share < 1 for share in shares)

    @property
    def asks_for_gpus(self) -> bool:
        """Whether anything but auto is asked for, which a machine may lack."""
        each = (self, self.evaluation)
        return any(one.gpus != "auto" or one.memory_gb is not None for one in each)

    @property
    def asks_for_memory(self) -> bool:
        """Whether a share follows from the memory of the devices."""
        return any(one.memory_gb is not None or one.gpus == "auto" for one in (self, self.evaluation))

    def shares(
        self, nodes: Sequence[Node], trial_bytes: float | None = None, attack_bytes: float | None = None
    ) -> Shares:
        """Return who gets how much of these nodes. Args: trial_bytes, attack_bytes: what one was measured to need of a
        GPU's memory; it counts where the section leaves it open."""
        attacks = self.evaluation
        return plan_shares(
            nodes,
            concurrent=None if self.concurrent == "auto" else self.concurrent,
            trial_cpus=float(self.cpus),
            trial_gpus=None if self.gpus == "auto" else float(self.gpus),
            evaluation_workers=None if self.evaluation.workers == "auto" else self.evaluation.workers,
            evaluation_cpus=float(self.evaluation.cpus),
            evaluation_gpus=None if self.evaluation.gpus == "auto" else float(self.evaluation.gpus),
            trial_memory_bytes=trial_bytes if self.is_measured else self.memory_bytes,
            evaluation_memory_bytes=attack_bytes if attacks.is_measured else attacks.memory_bytes,
        )

    def problems(self, nodes: Sequence[Node]) -> list[Problem]:
        """Return why these nodes cannot run one training beside the attacks; Ray would wait for ever."""
        here = ("resources",)
        trainings, attacks = self.memory_bytes, self.evaluation.memory_bytes
        found = []
        each = ((here, "a training", trainings, False), ((*here, "evaluation"), "an attack", attacks, True))
        for path, what, memory, on_any in each:
            if memory is not None and (message := unfit(what, memory, nodes, on_any=on_any)):
                hint = f"Give {'.'.join((*path, 'gpus'))} instead, or leave such nodes out."
                found.append(Problem((*path, "memory_gb"), f"{message}.", hint))
        if not found and (lacking := shortage(self.shares(nodes), nodes)):
            short = "cpus" if "CPUs of one node" in lacking else "gpus"
            hint = "Ask for less (gpus: auto takes what is there), or join a cluster that has it with --address."
            found.append(Problem((*here, short), f"{lacking}.", hint))
        return found


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


class FailurePolicy(Config):
    """What follows one kind of failure of a training: so many attempts more, each from the last good checkpoint."""

    retries: Annotated[int, Field(ge=0)] | None = None
    """How often it is tried again after a failure of this kind; without it, it shares `failures.retries`."""
    backoff_s: Annotated[Number, Field(ge=0)] = 0
    """Seconds before the second attempt, doubled for each further one, 600 at most; other trials go on meanwhile."""


class RepeatedPolicy(FailurePolicy):
    """A failure that another attempt of the same configuration and seed would only repeat."""

    retries: Annotated[int, Field(ge=0)] | None = 0
    """How often it is tried again all the same."""


class NodePolicy(FailurePolicy):
    """A machine was lost with the trainings on it, which is not their fault; a training that brings its machine down is
    to end some day all the same, hence an allowance of its own."""

    retries: Annotated[int, Field(ge=0)] | None = 100
    """How often it goes on elsewhere after that; None: it shares `failures.retries`."""


class MemoryPolicy(FailurePolicy):
    """A device or the machine had no memory left."""

    grow_share: Annotated[Number, Field(ge=1)] = 2
    """Each further attempt gets so many times the share of a GPU (without GPUs: of the cores), up to a whole device, so
    that fewer trials run beside it; such attempts come when the other trainings are over."""


class AttackPolicy(Config):
    """An attack stage failed. What it has judged is kept; its failed tries count together, whatever they failed of. A
    lost worker's part is judged again without being asked."""

    halvings: Annotated[int, Field(ge=0)] = 3
    """How often a stage without memory is tried again, each time with half the batch size."""
    hangs: Annotated[int, Field(ge=0)] = 1
    """How often a stage that judged nothing for `failures.hang_after_s` is tried again."""
    retries: Annotated[int, Field(ge=0)] = 0
    """How often a stage that failed otherwise is tried again."""


class FailuresSection(Config):
    """What happens when a training or an attack fails. Interruptions of the driver never count."""

    retries: Annotated[int, Field(ge=0)] = 1
    """How often a failed training is tried again, over all kinds that say nothing else."""
    hang_after_s: Annotated[Number, Field(gt=0)] | None = None
    """A training that reports nothing for so long is ended and has failed as a hang, and so is an attack stage of which
    a worker judges no further unit for so long; to start, both have two minutes at least. A unit is up to four batches
    of an attack, and up to 64 without one. Give several times what the longest epoch or unit takes; None
    waits for ever."""
    crash: FailurePolicy = FailurePolicy()
    """The worker process died."""
    node: NodePolicy = NodePolicy()
    """The machine was lost that a training ran on. Attacks that lose theirs are judged again without being asked."""
    memory: MemoryPolicy = MemoryPolicy()
    """A device or the machine had no memory left."""
    hang: FailurePolicy = FailurePolicy()
    """A training's silence for `hang_after_s`; for stages see `attack`."""
    exception: FailurePolicy = FailurePolicy()
    """The training raised anything else."""
    nan: RepeatedPolicy = RepeatedPolicy()
    """A loss was NaN or infinite."""
    checkpoint: RepeatedPolicy = RepeatedPolicy()
    """The trial's folder holds another trial's checkpoint."""
    attack: AttackPolicy = AttackPolicy()
    """A stage of the attack failed."""


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


class Stage(Config):
    """One attack of a plan with its own configuration: a stage of the cascade, or a column."""

    attack: str
    """Key of the attack: a file in trainables/attacks, or a plugin."""
    config: SerializeAsAny[AttackConfig]
    threat: Threat
    """The plan's ball, or a column's own."""
    label: str
    """Unique in its plan: the attack's key, with _2, _3 … when it is there again; or the column's name."""
    surrogate: Surrogate | None = None
    """Of a column: the model that the attack sees instead of the judged one; None is the judged one."""

    @field_validator("config", mode="before")
    @classmethod
    def _find_config(cls, value: Any, info: Any) -> Any:
        if isinstance(value, Mapping) and "attack" in info.data:
            return attack_config_type(info.data["attack"]).model_validate(value)
        return value


class TestSection(Config):
    """The attack on the test split, for members of the front unless it says otherwise."""

    __test__ = False  # no test for pytest to collect

    images: Annotated[int, Field(ge=1)] | None = 256
    """Test images attacked, class-balanced; None takes all."""
    stages: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Attacks, in order; None takes those of the validation split."""
    trials: Annotated[int, Field(ge=1)] = 10
    """At most so many members of the front."""
    evaluate: Literal["front", "all"] = "front"
    """Whom the test images judge: members of the front, or every finished trial, whatever `trials` says."""


class AttackSection(Threat):
    """The attacks as the YAML writes them."""

    plan: Literal["standard", "jasmin", "diagnostics"] | None = None
    """A ready-made plan (sweeps/plans/) whose values hold wherever this section says nothing else."""
    images: Annotated[int, Field(ge=1)] | None = 256
    """Validation images attacked, class-balanced; None takes all."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images that go through the model at once."""
    stages: Annotated[tuple[Any, ...], Field(min_length=1)] = ("autoattack",)
    """The cascade: robust accuracy is what all of them leave standing. An attack made of parts counts as its parts. The
    first (part) is the search objective and judges every trial; the others judge what may lie on the front."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """Attacks that stand for themselves and decide nothing, by name: ``FGSM4: {fgsm: {}, epsilon: 4/255}``. Each has
    the section's ball unless it gives norm or epsilon. They judge whom the later stages judge, on both splits. With
    ``surrogate: backbone`` an attack sees the model without learnt tokens and is transferred to the model with them."""
    evaluate: Literal["front", "all"] = "front"
    """Whom the later stages and the columns judge: what may lie on the front, or every trial."""
    later_stages: Literal["auto", "idle", "end"] = "auto"
    """When the later stages run: idle, while trials train, wherever the evaluation's share is free; or at the end,
    which takes fewer passes, because the front is known better then; auto is idle where that share is on GPUs."""
    test: TestSection | None = TestSection()
    keep_images: bool = False
    """Keep the adversarial images, for `verify`; an image of 32×32 pixels in colour takes 12 kB."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of every attack's random numbers."""


ADJUSTABLE = ("batch_size", "evaluate", "later_stages", "keep_images")
"""Fields of the section attacks that decide no figure; `test.trials` and `test.evaluate` are others."""


class TestPlan(TestSection):
    """The test section with its attacks looked up."""

    stages: tuple[Stage, ...]


class AttackPlan(AttackSection):
    """The attack section with its attacks looked up."""

    stages: tuple[Stage, ...]
    columns: dict[str, Stage]
    test: TestPlan | None

    @property
    def threat(self) -> Threat:
        """The ball that every stage of the cascade searches."""
        return Threat(norm=self.norm, epsilon=self.epsilon)

    @property
    def tested(self) -> int | None:
        """At most so many members of the front are judged on test images; None is every finished trial."""
        if self.test is None:
            return 0
        return None if self.test.evaluate == "all" else self.test.trials

    def as_written(self) -> dict[str, Any]:
        """Return what decides figures as YAML would write it, defaults filled in."""
        test = self.test and {"images": self.test.images, "stages": _as_written(self.test.stages)}
        columns = {
            label: {
                column.attack: column.config.plain(),
                **column.threat.plain(),
                **({} if column.surrogate is None else {"surrogate": column.surrogate}),
            }
            for label, column in self.columns.items()
        }
        plain = {name: value for name, value in self.plain().items() if name not in ("plan", *ADJUSTABLE)}
        return {**plain, "stages": _as_written(self.stages), "columns": columns, "test": test}

    def adjustable(self) -> dict[str, Any]:
        """Return what decides no figure, only which trials have one, when, and what it takes."""
        test = self.test and {"trials": self.test.trials, "evaluate": self.test.evaluate}
        return {**{name: getattr(self, name) for name in ADJUSTABLE}, "test": test}


def _as_written(stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    return [{stage.attack: stage.config.plain()} for stage in stages]


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
