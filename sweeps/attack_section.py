"""The section attacks: as the YAML writes it, and with its attacks looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from search_spaces.config import Config
from trainables.attack import Surrogate, Threat
from trainables.config import AttackConfig, attack_config_type


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
