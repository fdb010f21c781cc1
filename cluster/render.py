"""Ready-made starts: from the settings to the file that sbatch, ``ray up`` or kubectl takes, and what to do with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.kuberay import job_name, ray_job
from cluster.ray_yaml import aws, own_machines, sweep_command
from cluster.settings import ClusterSettings
from cluster.slurm import render_slurm
from cluster.slurm_elastic import render_head, render_nodes

GET_TOKEN = "(umask 077 && ray get-auth-token --generate >/dev/null) && chmod 600 ~/.ray/auth_token"

DASHBOARD = "http://127.0.0.1:8265"
"""Where `ray dashboard` makes the head's dashboard, which takes jobs, answer on this machine."""


@dataclass(frozen=True)
class Start:
    """One ready-made start. No secret is in it."""

    file: str
    """Name for its file."""
    text: str
    next_steps: tuple[tuple[str, str], ...]
    """(what it does, command), in order; ``{file}`` stands for the file's path, ``{second}`` for the other one's."""
    second: tuple[str, str] | None = None
    """(name, text) of the other file of a start that has two, beside the first."""

    def commands(self, path: str) -> list[tuple[str, str]]:
        """Return the next steps for the file at `path`."""
        second = "" if self.second is None else shlex.quote(str(Path(path).with_name(self.second[0])))
        first = shlex.quote(path)
        return [(what, line.replace("{file}", first).replace("{second}", second)) for what, line in self.next_steps]


def render(target: str, settings: ClusterSettings) -> Start:
    """Return the start of a target. Args: settings: what `parse_settings` has accepted for it."""
    return {"slurm": _slurm, "ray": _ray, "aws": _aws, "kuberay": _kuberay}[target](settings)


def _slurm(settings: ClusterSettings) -> Start:
    if settings.slurm.array is not None:
        return _slurm_elastic(settings)
    steps = (
        ("its log goes there", f"mkdir -p {shlex.quote(settings.sweep.storage)}"),
        ("submit it", "sbatch {file}"),
        ("watch it", "squeue --me"),
    )
    return Start(f"{settings.sweep.title}.sbatch", render_slurm(settings), steps)


def _slurm_elastic(settings: ClusterSettings) -> Start:
    title = settings.sweep.title
    steps = (
        ("their logs go there", f"mkdir -p {shlex.quote(settings.sweep.storage)}"),
        ("submit what drives the sweep, without GPU", "sbatch {file}"),
        ("submit the nodes, at any time and as often as you like", "sbatch {second}"),
        ("watch them", "squeue --me"),
    )
    nodes = (f"{title}-nodes.sbatch", render_nodes(settings))
    return Start(f"{title}-head.sbatch", render_head(settings), steps, nodes)


def _ray(settings: ClusterSettings) -> Start:
    head = f"Sweep {settings.sweep.title} on machines of one's own."
    return _ray_up(settings, "ray", head, own_machines(settings))


def _aws(settings: ClusterSettings) -> Start:
    workers = "spot workers" if settings.aws.spot else "workers"
    head = f"Sweep {settings.sweep.title} on AWS: a head that is paid in full, up to {settings.nodes.count} {workers}."
    return _ray_up(settings, "aws", head, aws(settings))


def _ray_up(settings: ClusterSettings, target: str, head: str, document: dict[str, Any]) -> Start:
    command = sweep_command(settings, target)
    steps = (
        ("once: the token that all nodes share", GET_TOKEN),
        ("start the cluster, from this project's folder", "RAY_AUTH_MODE=token ray up {file}"),
        ("start the sweep, or go on with it", f"ray exec {{file}} --tmux {shlex.quote(command)}"),
        *_job_steps(command),
        ("in the end", "ray down {file}"),
    )
    return Start(f"{settings.sweep.title}-{target}.yaml", _as_yaml(head, document), steps)


def _job_steps(command: str) -> tuple[tuple[str, str], ...]:
    """Return the same as a job of Ray's; nothing where the words would not arrive as they are.

    `ray job submit` joins its words within double quotes, and a shell on the head reads them again.
    """
    if set(command) & set('"$`\\'):
        return ()
    words = f"ray job submit --address {DASHBOARD} --no-wait -- bash -c {shlex.quote(command)}"
    return (
        ("or as a job: forward the dashboard's port to this machine, in another terminal", "ray dashboard {file}"),
        ("and submit; `ray job logs` and `ray job stop` know it then", f"RAY_AUTH_MODE=token {words}"),
    )


def _kuberay(settings: ClusterSettings) -> Start:
    head = f"Sweep {settings.sweep.title} on Kubernetes, by KubeRay 1.5.1 or later. Applied again it goes on."
    job, space = job_name(settings.sweep.title), settings.kuberay.namespace
    steps = (
        ("start the sweep", "kubectl apply -f {file}"),
        ("watch it", f"kubectl -n {space} get rayjob {job} --watch"),
        ("go on with it after its end", "kubectl replace --force -f {file}"),
    )
    document = ray_job(settings, version("ray"))
    return Start(f"{settings.sweep.title}-kuberay.yaml", _as_yaml(head, document), steps)


def _as_yaml(head: str, document: dict[str, Any]) -> str:
    """Write plain data as YAML that every reader takes the same way: text that looks like something else is quoted."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    body = yaml.dump(document, Dumper=Plain, sort_keys=False, width=10_000, allow_unicode=True)
    return f"# {head}\n# Written by `run_sweep.py cluster render`.\n{body}"
