"""What a ready-made start runs in the end: the sweep, launched the first time and resumed ever after."""

from __future__ import annotations

import shlex

from cluster.settings import ClusterSettings


def start_command(settings: ClusterSettings, *more: str) -> list[str]:
    """Return the words of the command that launches or resumes, without storage, address and options of launch."""
    return ["python", "run_sweep.py", "cluster", "start", settings.sweep.file, "--name", settings.sweep.title, *more]


def whole_command(settings: ClusterSettings, address: str, *more: str) -> list[str]:
    """Return the words of the whole command. Args: more: further options of ``cluster start``."""
    place = ("--storage", settings.sweep.storage, "--address", address)
    options = ("--", *settings.sweep.options) if settings.sweep.options else ()
    return [*start_command(settings, *place, *more), *options]


def waiting_for(settings: ClusterSettings, workers: int, head_takes_trials: bool) -> tuple[str, ...]:
    """Return the options that wait for so many workers, and the head where it is one of those that train."""
    nodes = settings.nodes
    count = workers + head_takes_trials
    minutes = str(settings.wait_minutes)
    return ("--wait-for", str(count), "--cpus", str(nodes.cpus), "--gpus", str(nodes.gpus), "--minutes", minutes)


def in_project(settings: ClusterSettings, command: str) -> str:
    """Return a shell line that runs `command` in the project, after the lines that set a node up."""
    return " && ".join((f"cd {shlex.quote(settings.sweep.project)}", *settings.nodes.setup, command))
