"""Ready-made starts: from the settings to the file that sbatch, ``ray up`` or kubectl takes, and what to do with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cluster.kuberay import job_name, ray_job
from cluster.ray_yaml import aws, own_machines, sweep_command
from cluster.settings import ClusterSettings
from cluster.slurm import render_slurm

GET_TOKEN = "(umask 077 && ray get-auth-token --generate >/dev/null) && chmod 600 ~/.ray/auth_token"


@dataclass(frozen=True)
class Start:
    """One ready-made start. No secret is in it."""

    file: str
    """Name for its file."""
    text: str
    next_steps: tuple[tuple[str, str], ...]
    """(what it does, command), in order; ``{file}`` stands for the file's path."""

    def commands(self, path: str) -> list[tuple[str, str]]:
        """Return the next steps for the file at `path`."""
        return [(what, command.replace("{file}", shlex.quote(path))) for what, command in self.next_steps]


def render(target: str, settings: ClusterSettings) -> Start:
    """Return the start of a target. Args: settings: what `parse_settings` has accepted for it."""
    return {"slurm": _slurm, "ray": _ray, "aws": _aws, "kuberay": _kuberay}[target](settings)


def _slurm(settings: ClusterSettings) -> Start:
    steps = (
        ("its log goes there", f"mkdir -p {shlex.quote(settings.sweep.storage)}"),
        ("submit it", "sbatch {file}"),
        ("watch it", "squeue --me"),
    )
    return Start(f"{settings.sweep.title}.sbatch", render_slurm(settings), steps)


def _ray(settings: ClusterSettings) -> Start:
    head = f"Sweep {settings.sweep.title} on machines of one's own."
    return _ray_up(settings, "ray", head, own_machines(settings))


def _aws(settings: ClusterSettings) -> Start:
    workers = "spot workers" if settings.aws.spot else "workers"
    head = f"Sweep {settings.sweep.title} on AWS: a head that is paid in full, up to {settings.nodes.count} {workers}."
    return _ray_up(settings, "aws", head, aws(settings))


def _ray_up(settings: ClusterSettings, target: str, head: str, document: dict[str, Any]) -> Start:
    command = shlex.quote(sweep_command(settings, target))
    steps = (
        ("once: the token that all nodes share", GET_TOKEN),
        ("start the cluster, from this project's folder", "RAY_AUTH_MODE=token ray up {file}"),
        ("start the sweep, or go on with it", f"ray exec {{file}} --tmux {command}"),
        ("in the end", "ray down {file}"),
    )
    return Start(f"{settings.sweep.title}-{target}.yaml", _as_yaml(head, document), steps)


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
