"""The settings of a ready-made start: one small YAML file says what the sweep runs on, whatever starts it there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from search_spaces.config import Config
from search_spaces.errors import Problem
from search_spaces.problems import unknown_key, validate

TARGETS = ("slurm", "ray", "aws", "kuberay")
"""What a start can be rendered for."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Label = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
Line = Annotated[str, Field(pattern=r"^[^\n\r]+$")]
Absolute = Annotated[str, Field(pattern=r"^/[^\n\r]*$")]
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$")]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]*$")]

CHOSEN_BY_US = frozenset({"--name", "--storage", "--address"})
"""Options of `launch` that the settings decide; given twice they could differ between launch and resume."""


class SweepSettings(Config):
    """What runs, and where its files are."""

    file: Line = "sweeps/presets/quickstart.yaml"
    """The sweep's YAML file, as the nodes see it; a relative path begins in `project`."""
    name: Name | None = None
    """Name of the sweep; without it the file's own, less its suffix."""
    storage: Absolute = "/shared/paretune/runs"
    """Folder that holds the sweeps: the same files under the same path on every node."""
    project: Absolute = "/shared/paretune/project"
    """Folder of this project on every node."""
    options: tuple[Line, ...] = ()
    """Further options of `launch`, one word each: ["--trials", "100"]."""

    @property
    def title(self) -> str:
        """The sweep's name."""
        return self.name or PurePosixPath(self.file).stem


class NodeSettings(Config):
    """The nodes that train and attack."""

    count: int = Field(default=1, ge=1, le=1000)
    """How many; on own machines the lists in `ray` count. A head that takes no trials is one of them under Slurm and on
    own machines, and one more on AWS and Kubernetes."""
    cpus: int = Field(default=8, ge=1)
    """Cores of each that the sweep may use."""
    gpus: int = Field(default=1, ge=0)
    """GPUs of each."""
    gpu_type: Name | None = None
    """Kind of GPU, in the words of the cluster: Slurm's type of a gres."""
    gpu_memory_gb: int | None = Field(default=None, ge=1)
    """Memory of each GPU in GB, for `plan --on` where a sweep asks for memory; nothing else reads it."""
    memory_gb: int | None = Field(default=None, ge=1)
    """Memory of each in GB; None takes what there is (Slurm, own machines, AWS) or 4 per core (Kubernetes)."""
    head_takes_trials: bool | None = None
    """Whether the head node trains as well. None: yes under Slurm and on own machines, where it is a node like the
    others; no on AWS and Kubernetes, where it is a small machine that nobody takes away."""
    setup: tuple[Line, ...] = ()
    """Shell lines that each node runs in `project` before anything else: modules, ``source .venv/bin/activate``. On
    Kubernetes the image takes their place."""
    install: tuple[Line, ...] = ()
    """Shell lines that ``ray up`` runs in `project` when a node is new (own machines, AWS)."""


class SlurmSettings(Config):
    """One job of whole nodes; or, with `array`, jobs of one node each that join and leave."""

    time_limit: TimeLimit = "24:00:00"
    """As Slurm writes it: ``HH:MM:SS``, ``D-HH:MM:SS``, or minutes. The sweep goes on in the next one."""
    stop_before_s: int = Field(default=300, ge=180, le=3600)
    """Seconds before the end in which the current epochs are given up, checkpoints kept, and the job requeued."""
    partition: Line | None = None
    account: Line | None = None
    extra: tuple[Line, ...] = ()
    """Further options of sbatch: ["--qos=long", "--constraint=nvlink"]."""
    exclusive: bool = True
    """Whole nodes. `ray symmetric-run` refuses a node where this user runs Ray already, and its end stops all of it;
    false is right only where Slurm gives each job processes of its own."""
    container: Line | None = None
    """Image for pyxis (``srun --container-image``), `storage` and `project` mounted; None runs on the node itself."""
    array: int | None = Field(default=None, ge=1, le=1000)
    """The elastic start: so many jobs of one node each, as `nodes` describes it and shared with other jobs, which come
    and go while a small job without GPU drives the sweep. None is one job of `nodes.count` whole nodes."""
    at_once: int | None = Field(default=None, ge=1)
    """Most of them that Slurm runs at once; None leaves it to Slurm."""
    head_time_limit: TimeLimit = "7-00:00:00"
    """Of the driving job, which is requeued as well: all nodes leave then, and join the next."""
    head_partition: Line | None = None
    """Of the driving job; None is `partition`."""
    head_cpus: int = Field(default=2, ge=1)
    head_memory_gb: int = Field(default=8, ge=2)
    """Cores and memory of the driving job."""


class RaySettings(Config):
    """Machines of one's own, started by ``ray up`` over SSH."""

    head: Host = "head.example.org"
    """Name or address of the head, reachable from all."""
    workers: tuple[Host, ...] = ("worker-1.example.org",)
    """The others."""
    ssh_user: Name = "ubuntu"
    ssh_private_key: Line | None = None
    """Path of a key on the machine that runs ``ray up``; None leaves it to SSH."""


class AwsSettings(Config):
    """Spot workers and a small head that is paid in full."""

    region: Host = "us-west-2"
    zones: tuple[Host, ...] = ("us-west-2a",)
    """Availability zones, tried in order."""
    head_type: Host = "m6i.xlarge"
    worker_type: Host = "g5.4xlarge"
    """Instance types. `nodes.cpus` and `nodes.gpus` have to be those of `worker_type`."""
    image: Annotated[str, Field(pattern=r"^ami-[0-9a-z]+$")] = "ami-00000000000000000"
    """Machine image with CUDA and Python; the default does not exist and has to be replaced."""
    ssh_user: Name = "ubuntu"
    spot: bool = True
    """Workers may be taken away at any moment, which costs their current epochs."""
    min_workers: int = Field(default=0, ge=0)
    """Workers that stay when there is nothing to do; up to `nodes.count` run."""
    idle_minutes: int = Field(default=10, ge=1)
    """Idle workers go after so many minutes."""
    disk_gb: int = Field(default=150, ge=20)
    """Root disk of every instance in GB."""
    file_system: Annotated[str, Field(pattern=r"^fs-[0-9a-f]+$")] | None = None
    """EFS that is mounted at `shared`; None means that `nodes.setup` brings the storage."""
    shared: Absolute = "/shared"
    """Where `file_system` is mounted; `sweep.storage` lies in it."""


class KubeRaySettings(Config):
    """One RayJob: a cluster that lives as long as the sweep."""

    namespace: Label = "default"
    image: Line = "registry.example.org/paretune:latest"
    """Image with this project in `sweep.project` and what it needs; its Ray and Python are those of all pods."""
    claim: Label = "paretune"
    """PersistentVolumeClaim, ReadWriteMany, that is mounted at `shared`."""
    shared: Absolute = "/shared"
    """`sweep.storage` lies in it."""
    min_workers: int | None = Field(default=None, ge=0)
    """Workers that stay when there is nothing to do; None is `nodes.count`, no autoscaling."""
    idle_s: int = Field(default=300, ge=10)
    """Idle workers go after so many seconds."""
    head_cpus: int = Field(default=4, ge=1)
    head_memory_gb: int = Field(default=16, ge=2)
    node_labels: dict[Line, str] = Field(default_factory=dict)
    """Labels that the nodes of workers must have, such as ``cloud.google.com/gke-accelerator: nvidia-l4``."""
    spot_label: Line | None = None
    """Label, with value "true", by which the cluster marks spot nodes; workers go there and bear its taint."""
    gpu_resource: Line = "nvidia.com/gpu"
    retries: int = Field(default=3, ge=0)
    """New clusters after one that was lost; each goes on where the one before it was."""
    service_account: Label | None = None


class ClusterSettings(Config):
    """What a start is rendered from. The sections of other targets than the one that is asked for do not matter."""

    sweep: SweepSettings = SweepSettings()
    nodes: NodeSettings = NodeSettings()
    slurm: SlurmSettings = SlurmSettings()
    ray: RaySettings = RaySettings()
    aws: AwsSettings = AwsSettings()
    kuberay: KubeRaySettings = KubeRaySettings()
    wait_minutes: int = Field(default=30, ge=1)
    """How long to wait for the nodes; where some may come later, the sweep then starts with those that are there."""

    def head_takes_trials(self, target: str) -> bool:
        """Return whether the head trains as well, by the target's own default if the file leaves it open."""
        given = self.nodes.head_takes_trials
        return target in ("slurm", "ray") if given is None else given


SECTIONS: dict[str, type[Config]] = {
    "sweep": SweepSettings,
    "nodes": NodeSettings,
    "slurm": SlurmSettings,
    "ray": RaySettings,
    "aws": AwsSettings,
    "kuberay": KubeRaySettings,
}


def parse_settings(document: Mapping[str, Any], target: str) -> tuple[ClusterSettings | None, list[Problem]]:
    """Return (settings, []) for plain data, or (None, every problem). Args: target: one of TARGETS."""
    problems = [unknown_key((), key, ClusterSettings.model_fields) for key in document if not _is_known(key)]
    sections: dict[str, Any] = {}
    for key, config_type in SECTIONS.items():
        sections[key], found = validate(config_type, document.get(key), (key,))
        problems += found
    if problems:
        return None, problems
    rest = {key: value for key, value in document.items() if key not in SECTIONS}
    settings, problems = validate(ClusterSettings, {**rest, **sections}, ())
    problems = problems or list(_cross_problems(settings, target))
    return (None, problems) if problems else (settings, [])


def with_command(
    settings: ClusterSettings, command: tuple[str, ...], target: str
) -> tuple[ClusterSettings | None, list[Problem]]:
    """Return the settings with another sweep: its file, then options of `launch`; no words leave it as it is.

    The sweep's name is then that of the file.
    """
    if not command:
        return settings, []
    changed = settings.sweep.model_dump() | {"file": command[0], "options": list(command[1:]), "name": None}
    sweep, problems = validate(SweepSettings, changed, ())
    if not problems:
        settings = settings.model_copy(update={"sweep": sweep})
        problems = _cross_problems(settings, target)
    typed = [replace(problem, path=(), source=f"-- {' '.join(command)}") for problem in problems]
    return (None, typed) if typed else (settings, [])


def _is_known(key: str) -> bool:
    return key in ClusterSettings.model_fields


def _cross_problems(settings: ClusterSettings, target: str) -> list[Problem]:
    problems = _option_problems(settings.sweep)
    if not re.fullmatch(NAME, settings.sweep.title):
        message = f"{settings.sweep.title!r} cannot name a sweep (1 to 64 letters, digits, dots, underscores, hyphens)."
        problems.append(Problem(("sweep", "file"), message, "Give sweep.name."))
    if target == "slurm" and settings.slurm.array is not None:
        problems += _elastic_problems(settings)
    elif target == "slurm" and settings.slurm.at_once is not None:
        message = f"it limits the jobs of slurm.array, which is not given; found {settings.slurm.at_once}."
        problems.append(Problem(("slurm", "at_once"), message))
    elif target == "slurm" and settings.nodes.count == 1 and not settings.head_takes_trials("slurm"):
        message = "the only node is the head, so that nothing could train; allowed: true, or more nodes."
        problems.append(Problem(("nodes", "head_takes_trials"), message))
    if target == "ray" and not settings.ray.workers and not settings.head_takes_trials("ray"):
        message = "expected at least one worker where the head takes no trials; found none."
        problems.append(Problem(("ray", "workers"), message))
    shared = _shared(settings, target)
    if shared is not None and not PurePosixPath(settings.sweep.storage).is_relative_to(shared):
        message = f"it has to lie in {target}.shared ({shared}), which all nodes see; found {settings.sweep.storage!r}."
        problems.append(Problem(("sweep", "storage"), message))
    minimum = {"aws": settings.aws.min_workers, "kuberay": settings.kuberay.min_workers or 0}.get(target, 0)
    if minimum > settings.nodes.count:
        message = f"at most nodes.count ({settings.nodes.count}) is allowed; found {minimum}."
        problems.append(Problem((target, "min_workers"), message))
    return problems + (_unquotable(settings.sweep) if target == "kuberay" else [])


def _elastic_problems(settings: ClusterSettings) -> list[Problem]:
    """Return what does not go with jobs that join and leave."""
    nodes, slurm = settings.nodes, settings.slurm
    found = [
        (
            ("nodes", "count"),
            nodes.count != 1,
            f"with slurm.array each job is one node; allowed: 1, found {nodes.count}.",
        ),
        (
            ("nodes", "head_takes_trials"),
            bool(nodes.head_takes_trials),
            "with slurm.array the head is a job without GPU.",
        ),
        (("slurm", "container"), slurm.container is not None, "slurm.array has no containers; allowed: none."),
    ]
    return [Problem(path, message) for path, is_wrong, message in found if is_wrong]


def _shared(settings: ClusterSettings, target: str) -> str | None:
    """Return where the target mounts the storage, if it does."""
    if target == "aws":
        return settings.aws.shared if settings.aws.file_system else None
    return settings.kuberay.shared if target == "kuberay" else None


def _unquotable(sweep: SweepSettings) -> list[Problem]:
    """KubeRay's versions differ in how they pass a command on, so that nothing in it may need quotes."""
    words: list[tuple[tuple[str | int, ...], str]] = [
        (("file",), sweep.file),
        (("storage",), sweep.storage),
        (("project",), sweep.project),
        *((("options", position), word) for position, word in enumerate(sweep.options)),
    ]
    allowed = "on Kubernetes no word may need quotes (letters, digits, @%+=:,./-_)"
    return [Problem(("sweep", *at), f"{allowed}; found {word!r}.") for at, word in words if shlex.quote(word) != word]


def _option_problems(sweep: SweepSettings) -> list[Problem]:
    problems = []
    for position, word in enumerate(sweep.options):
        if word.partition("=")[0] in CHOSEN_BY_US:
            message = (
                f"{word.partition('=')[0]} is decided by the settings (sweep.name, sweep.storage); found {word!r}."
            )
            problems.append(Problem(("sweep", "options", position), message))
    return problems
