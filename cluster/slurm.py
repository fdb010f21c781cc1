"""The Slurm start: one job of whole nodes that stops before its time limit, is requeued and goes on."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files

from cluster.settings import ClusterSettings
from cluster.start_command import start_command


def render_slurm(settings: ClusterSettings) -> str:
    """Return the text of a file for sbatch; settings that `parse_settings` has accepted for slurm."""
    import jinja2

    sweep, nodes, slurm = settings.sweep, settings.nodes, settings.slurm
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["quote"] = shlex.quote
    template = environment.from_string((files("cluster") / "slurm.sbatch.j2").read_text())
    return template.render(
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
        f"--time={slurm.time_limit}",
        "--requeue",
        f"--signal=B:USR1@{slurm.stop_before_s}",
        f"--output={in_quotes(f'{sweep.storage}/{sweep.title}-%j.log')}",
        "--open-mode=append",
        f"--partition={slurm.partition}" if slurm.partition else None,
        f"--account={slurm.account}" if slurm.account else None,
    ]
    return [*(line for line in lines if line is not None), *slurm.extra]


def in_quotes(text: str) -> str:
    """Quote as Slurm reads its directives: double quotes around what has spaces."""
    return f'"{text}"' if re.search(r"\s", text) else text
