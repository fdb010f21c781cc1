"""The Slurm start: one job of whole nodes that stops before its time limit, is requeued and goes on."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from typing import Any

from cluster.settings import ClusterSettings
from cluster.start_command import start_command


def render_slurm(settings: ClusterSettings) -> str:
    """Return the text of a file for sbatch; settings that `parse_settings` has accepted for slurm."""
    sweep, nodes, slurm = settings.sweep, settings.nodes, settings.slurm
    return filled(
        "slurm.sbatch.j2",
        name=sweep.title,
        storage=sweep.storage,
        project=sweep.project,
        directives=directives(settings),
        setup=nodes.setup,
        nodes=nodes.count,
        cpus=nodes.cpus,
        gpus=nodes.gpus,
        head_takes_trials=settings.head_takes_trials("slurm"),
        command=shlex.join(start_command(settings)),
        options=("--", *sweep.options) if sweep.options else (),
        container=slurm.container,
        wait_s=settings.wait_minutes * 60,
    )


def directives(settings: ClusterSettings) -> list[str]:
    """Return the options that stand behind #SBATCH, those of the user last: the last one wins."""
    sweep, nodes, slurm = settings.sweep, settings.nodes, settings.slurm
    kind = f"{nodes.gpu_type}:" if nodes.gpu_type else ""
    lines = [
        f"--job-name={sweep.title}",
        f"--nodes={nodes.count}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={nodes.cpus}",
        f"--gpus-per-node={kind}{nodes.gpus}" if nodes.gpus else None,
        f"--mem={nodes.memory_gb}G" if nodes.memory_gb else "--mem=0" if slurm.exclusive else None,
        "--exclusive" if slurm.exclusive else None,
        *every_job(settings, "-%j", slurm.time_limit, slurm.stop_before_s, slurm.partition),
    ]
    return [*(line for line in lines if line is not None), *slurm.extra]


def every_job(
    settings: ClusterSettings, log: str, time_limit: str, stop_before_s: int, partition: str | None
) -> list[str]:
    """Return the options that every job has, which is requeued and told its end.

    Args: log: what follows the sweep's name in that of the log; stop_before_s: seconds before the end.
    """
    sweep, account = settings.sweep, settings.slurm.account
    place = f"{sweep.storage}/{sweep.title}{log}.log"
    quoted = f'"{place}"' if re.search(r"\s", place) else place  # as Slurm reads its directives
    lines = [
        f"--time={time_limit}",
        "--requeue",
        f"--signal=B:USR1@{stop_before_s}",
        f"--output={quoted}",
        "--open-mode=append",
        f"--partition={partition}" if partition else None,
        f"--account={account}" if account else None,
    ]
    return [line for line in lines if line is not None]


def filled(template: str, **values: Any) -> str:
    """Return the text of a template of this package. Its filter quote is the shell's; a value it lacks is an error."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["quote"] = shlex.quote
    return environment.from_string((files("cluster") / template).read_text()).render(**values)
