"""The elastic Slurm start: a small job drives the sweep, and an array of one-node jobs joins and leaves it."""

from __future__ import annotations

import shlex

from cluster.settings import ClusterSettings
from cluster.slurm import every_job, filled
from cluster.start_command import start_command, waiting_for

FALLBACK_S = 120
"""Seconds before the limit at which Slurm tells a node's job; older Slurms alone need it, that tell no job its end."""


def render_head(settings: ClusterSettings) -> str:
    """Return the file of the job that drives the sweep."""
    sweep = settings.sweep
    words = start_command(settings, "--storage", sweep.storage, "--head", *waiting_for(settings, 1, False))
    options = ("--", *sweep.options) if sweep.options else ()
    what = "this job drives it, the jobs of the other file are its nodes. It may end and come again."
    return _rendered(settings, what, head_directives(settings), [*words, *options], is_head=True)


def render_nodes(settings: ClusterSettings) -> str:
    """Return the file of the array of nodes."""
    sweep, nodes = settings.sweep, settings.nodes
    words = ["python", "run_sweep.py", "cluster", "join", sweep.title, "--storage", sweep.storage]
    given = ["--cpus", str(nodes.cpus), "--gpus", str(nodes.gpus), "--wait", str(settings.wait_minutes)]
    what = "each job of this array is a node, until its time is up or the sweep is finished."
    return _rendered(settings, what, node_directives(settings), [*words, *given], is_head=False)


def _rendered(settings: ClusterSettings, what: str, directives: list[str], words: list[str], *, is_head: bool) -> str:
    return filled(
        "slurm_elastic.sbatch.j2",
        name=settings.sweep.title,
        what=what,
        directives=directives,
        project=settings.sweep.project,
        setup=settings.nodes.setup,
        command=shlex.join(words),
        is_head=is_head,
    )


def head_directives(settings: ClusterSettings) -> list[str]:
    """Return the options of the driving job that stand behind #SBATCH."""
    slurm = settings.slurm
    partition = slurm.head_partition or slurm.partition
    return [
        f"--job-name={settings.sweep.title}-head",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={slurm.head_cpus}",
        f"--mem={slurm.head_memory_gb}G",
        *every_job(settings, "-head-%j", slurm.head_time_limit, slurm.stop_before_s, partition),
    ]


def node_directives(settings: ClusterSettings) -> list[str]:
    """Return the options of the nodes' jobs that stand behind #SBATCH, those of the user last: the last one wins."""
    sweep, nodes, slurm = settings.sweep, settings.nodes, settings.slurm
    kind = f"{nodes.gpu_type}:" if nodes.gpu_type else ""
    at_once = f"%{slurm.at_once}" if slurm.at_once else ""
    lines = [
        f"--job-name={sweep.title}-node",
        f"--array=1-{slurm.array}{at_once}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={nodes.cpus}",
        f"--gpus-per-node={kind}{nodes.gpus}" if nodes.gpus else None,
        f"--mem={nodes.memory_gb}G" if nodes.memory_gb else None,
        *every_job(settings, "-node-%A_%a", slurm.time_limit, FALLBACK_S, slurm.partition),
    ]
    return [*(line for line in lines if line is not None), *slurm.extra]
