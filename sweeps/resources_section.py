"""The section resources: what trainings and attacks may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from cluster.packing import Node
from cluster.resources import GB, Shares, plan_shares, shortage, unfit
from search_spaces.config import Config, Number
from search_spaces.errors import Problem
from sweeps.yaml_source import long_form


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
        return not (self.is_measured and self.evaluation.is_measured)

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
