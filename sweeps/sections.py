"""The sections of a sweep beside model, data, training and methods: their fields, defaults and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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

from cluster.resources import Shares, plan_shares
from search_spaces.config import Config, Number
from search_spaces.space import Space
from sweeps.folder import NAME_PATTERN, NAME_RULE
from trainables.attack import Threat
from trainables.config import AttackConfig, MonitorConfig, attack_config_type


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
Objective = Literal["clean_acc", "robust_acc"]


DEFAULT_TRIALS = 50
"""Trials of a sweep that names no number and has no grid."""


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
    """Configurations to try first; parameters that one leaves out are drawn. In a grid none may be left out."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_the_sampler(cls, value: Any) -> Any:
        return {"sampler": value} if isinstance(value, str) else value

    @field_validator("replicates")
    @classmethod
    def _only_a_grid_is_repeated(cls, replicates: int, info: ValidationInfo) -> int:
        if replicates > 1 and info.data.get("sampler", "grid") != "grid":
            sampler = info.data["sampler"]
            raise ValueError(f"only sampler: grid trains its configurations again; found {replicates} with {sampler}")
        return replicates


class EvaluationResources(Config):
    """What the attacks may use, apart from the trainings."""

    workers: AutoCount = "auto"
    """Attack stages at the same time while trials train; auto is 1. Afterwards they use what the trials used."""
    cpus: Cpus = 1
    """CPU cores of one stage."""
    gpus: AutoGpus = "auto"
    """Share of a GPU that one stage gets; auto is 0.25 where there are GPUs, else 0."""


class ResourcesSection(Config):
    """What the trainings may use."""

    concurrent: AutoCount = "auto"
    """Trainings that run at the same time."""
    cpus: Cpus = 1
    """CPU cores of one training; whole ones become its threads."""
    gpus: AutoGpus = "auto"
    """Share of a GPU that one training gets; auto is 0.75 where there are GPUs, else 0."""
    evaluation: EvaluationResources = EvaluationResources()

    @property
    def threads(self) -> int:
        """Threads of torch in one training."""
        return max(1, int(self.cpus))

    def shares(self, cpus: float, gpus: float) -> Shares:
        """Return who gets how much of a machine or cluster with so many CPUs and GPUs."""
        return plan_shares(
            cpus,
            gpus,
            concurrent=None if self.concurrent == "auto" else self.concurrent,
            trial_cpus=float(self.cpus),
            trial_gpus=None if self.gpus == "auto" else float(self.gpus),
            evaluation_workers=None if self.evaluation.workers == "auto" else self.evaluation.workers,
            evaluation_cpus=float(self.evaluation.cpus),
            evaluation_gpus=None if self.evaluation.gpus == "auto" else float(self.evaluation.gpus),
        )


class TrackingSection(Config):
    """Where MLflow keeps its copy of the sweep."""

    enabled: bool = True
    uri: str | None = None
    """MLflow tracking URI; None is the database mlflow.db in the storage folder."""
    experiment: Annotated[str, Field(min_length=1)] = "paretune"


class FailuresSection(Config):
    """What happens when a training raises."""

    retries: Annotated[int, Field(ge=0)] = 1
    """How often a failed training is tried again."""


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
    failures: FailuresSection = FailuresSection()
    plugins: tuple[str, ...] = ()
    """Python files with further methods, attacks or data sets."""

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
            raise ValueError("a sweep has clean_acc, robust_acc or both as its objectives, each once")
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

    @field_validator("config", mode="before")
    @classmethod
    def _find_config(cls, value: Any, info: Any) -> Any:
        if isinstance(value, Mapping) and "attack" in info.data:
            return attack_config_type(info.data["attack"]).model_validate(value)
        return value


class TestSection(Config):
    """The attack on the test split, for members of the front only."""

    __test__ = False  # no test for pytest to collect

    images: Annotated[int, Field(ge=1)] | None = 256
    """Test images attacked, class-balanced; None takes all."""
    stages: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Attacks, in order; None takes those of the validation split."""
    trials: Annotated[int, Field(ge=1)] = 10
    """At most so many members of the front."""


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
    the section's ball unless it gives norm or epsilon. They judge whom the later stages judge, on both splits."""
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

    def as_written(self) -> dict[str, Any]:
        """Return what decides figures as YAML would write it, defaults filled in."""
        test = self.test and {**self.test.plain(), "stages": _as_written(self.test.stages)}
        columns = {
            label: {column.attack: column.config.plain(), **column.threat.plain()}
            for label, column in self.columns.items()
        }
        left_out = ("plan", "later_stages", "keep_images")
        plain = {name: value for name, value in self.plain().items() if name not in left_out}
        return {**plain, "stages": _as_written(self.stages), "columns": columns, "test": test}


def _as_written(stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    return [{stage.attack: stage.config.plain()} for stage in stages]


@dataclass(frozen=True)
class MethodEntry:
    """One entry of `methods`: a method, or several that are stacked."""

    label: str
    """``jasmin``, ``jasmin+adversarial``; unique in a sweep."""
    spaces: Mapping[str, Space[Any]]

    def prefix(self, method: str) -> str:
        """Return what stands before ``.field`` in the names of a method's parameters."""
        return method if len(self.spaces) == 1 else f"{self.label}/{method}"

    def plain(self) -> dict[str, Any]:
        """Return every field of every method as JSON-ready data."""
        return {name: space.plain() for name, space in self.spaces.items()}
