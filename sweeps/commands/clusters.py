"""Commands for clusters: ready-made starts, and what they run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from search_spaces.errors import ClusterError
from search_spaces.imports import quick_imports
from sweeps.commands import run
from sweeps.commands.arguments import RUNS, Address, File, Name, Storage
from sweeps.commands.opening import print_line
from sweeps.exit_codes import BAD_INPUT, INTERRUPTED, SOME_FAILED

if TYPE_CHECKING:
    from sweeps.folder import SweepFolder

app = typer.Typer(no_args_is_help=True, help="Ready-made starts on Slurm, machines of one's own, AWS and Kubernetes.")


@app.command("render")
def render_start(
    target: Annotated[Literal["slurm", "ray", "aws", "kuberay"], typer.Argument(help="What to write a start for.")],
    settings: Annotated[
        Path, typer.Option("--settings", help="YAML file of the nodes; see cluster/presets.", show_default=False)
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the file.")] = Path(),
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- FILE OPTIONS", help="Another sweep than the settings': its file, launch's options."),
    ] = None,
) -> None:
    """Write a ready-made start from one small settings file, and say what to do with it."""
    from cluster.render import render
    from cluster.settings import parse_settings, with_command
    from sweeps.yaml_source import read_document

    document, source = read_document(settings)
    parsed, problems = parse_settings(document, target)
    if parsed is not None:
        parsed, problems = with_command(parsed, tuple(command or ()), target)
    if parsed is None:
        raise source.refusal(problems)
    start = render(target, parsed)
    path = folder / start.file
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(start.text)
    if start.second is not None:
        other, text = start.second
        (folder / other).write_text(text)
        print_line(f"{folder / other} is written.")
    print_line(f"{path} is written. Next:")
    for what, line in start.commands(str(path)):
        print_line(f"\n  # {what}\n  {line}")


@app.command("start")
def start(
    file: File,
    name: Annotated[str | None, typer.Option("--name", help="Name of the sweep; default: the file's stem.")] = None,
    storage: Storage = RUNS,
    address: Address = None,
    wait_for: Annotated[int, typer.Option("--wait-for", min=0, help="Nodes to wait for before the sweep starts.")] = 0,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="CPUs that each of them has.")] = 1,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs that each of them has.")] = 0,
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="How long to wait for all of them.")] = 30,
    head: Annotated[
        bool, typer.Option("--head", help="Start a Ray head here, which `cluster join` finds; it ends with the sweep.")
    ] = False,
    head_cpus: Annotated[float, typer.Option("--head-cpus", min=0, help="CPUs of the head for trials.")] = 0,
    head_gpus: Annotated[float, typer.Option("--head-gpus", min=0, help="GPUs of the head for trials.")] = 0,
    host: Annotated[
        str | None, typer.Option("--host", help="Address at which the others reach the head.", show_default=False)
    ] = None,
    accept_failed: Annotated[
        bool, typer.Option("--accept-failed", help="End with 0 where the sweep is done and only trials have failed.")
    ] = False,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Further options of launch.", show_default=False)
    ] = None,
) -> None:
    """Launch a sweep, or resume it if it is there: one command for the first time and every time after."""
    from sweeps.folder import SweepFolder

    folder = SweepFolder(storage, name if name is not None else file.stem)
    with contextlib.ExitStack() as here:
        if head:
            address = here.enter_context(_head(folder, address, head_cpus, head_gpus, host))
        if wait_for:
            _wait(address, wait_for, cpus, gpus, minutes)
        words = ["resume", folder.name] if folder.ledger.exists() else ["launch", str(file), "--name", folder.name]
        words += ["--storage", str(storage), *(["--address", address] if address is not None else [])]
        code = run.app(words if words[0] == "resume" else [*words, *(options or ())], standalone_mode=False) or 0
    raise typer.Exit(0 if accept_failed and code == SOME_FAILED else code)


@app.command("join")
def join(
    name: Name,
    storage: Storage = RUNS,
    cpus: Annotated[
        float | None, typer.Option("--cpus", min=0, help="CPUs to give; default: what Slurm gave, or all.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option("--gpus", min=0, help="GPUs to give; default: what Slurm gave, or all.")
    ] = None,
    until: Annotated[
        float | None,
        typer.Option("--until", help="When this machine ends, in seconds since the epoch; default: Slurm's."),
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=1, help="The same, counted from now.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Minutes to wait for a head, or for another one.")] = 30,
) -> None:
    """Lend this machine to a sweep until the sweep is finished or the machine's time is up.

    Exit codes: 0 the sweep is finished, or its head is gone for good; 130 the time is up; 2 no head has
    come, or the time is too short for anything that is left to do.
    """
    from cluster.connect import this_machine
    from cluster.head import head_folder
    from cluster.join import Asked, Capacity, End, Joining, capacity_of, leaving_on_signals
    from sweeps.folder import SweepFolder

    folder = SweepFolder(storage.resolve(), name)
    end = time.time() + 60 * minutes if minutes is not None else until
    devices = 0 if gpus is not None else len(this_machine().devices)  # looking for them takes seconds
    found = capacity_of(os.environ, len(os.sched_getaffinity(0)), devices, end)
    given = Capacity(found.cpus if cpus is None else cpus, found.gpus if gpus is None else gpus, found.leaves_at)
    asked = Asked()
    joining = Joining(
        head_folder(folder.storage, name), given, lambda: _is_complete(folder), 60 * wait, print_line, asked
    )
    with leaving_on_signals(asked, knows_end=given.leaves_at is not None):
        why = joining.run()
    print_line(f"left: {why.value}")
    raise typer.Exit({End.TIME: INTERRUPTED, End.TOO_SHORT: BAD_INPUT}.get(why, 0))


def _is_complete(folder: SweepFolder) -> bool:
    """Return whether a sweep is there and finished."""
    from sweeps.ledger import Ledger

    if not folder.ledger.exists():
        return False
    ledger = Ledger.at(folder.ledger)
    try:
        return ledger.sweep().completed_at is not None
    finally:
        ledger.close()


@contextlib.contextmanager
def _head(folder: SweepFolder, address: str | None, cpus: float, gpus: float, host: str | None) -> Iterator[str]:
    """Run a head while the block runs; a signal before the driver takes them over ends it too."""
    from cluster.connect import prepare_environment
    from cluster.head import head_folder, running_head

    if address is not None:
        raise ClusterError(f"--address {address}: it is that of --head here. Give one of the two.")

    def stop(*_: object) -> None:
        raise typer.Exit(INTERRUPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        prepare_environment()
        with running_head(head_folder(folder.storage.resolve(), folder.name), cpus, gpus, host, print_line) as found:
            yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(address: str | None, count: int, cpus: float, gpus: float, minutes: float) -> None:
    with quick_imports():
        from cluster.connect import prepare_environment
        from cluster.wait import wait_for_nodes

        prepare_environment()
        wait_for_nodes(address or "auto", count, cpus, gpus, minutes, print_line)
