"""Commands for clusters: ready-made starts, and what they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from search_spaces.imports import quick_imports
from sweeps.commands import run
from sweeps.commands.arguments import RUNS, Address, File, Storage
from sweeps.commands.opening import print_line

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
    if wait_for:
        with quick_imports():
            from cluster.connect import prepare_environment
            from cluster.wait import wait_for_nodes

            prepare_environment()
            wait_for_nodes(address or "auto", wait_for, cpus, gpus, minutes, print_line)
    words = ["resume", folder.name] if folder.ledger.exists() else ["launch", str(file), "--name", folder.name]
    words += ["--storage", str(storage), *(["--address", address] if address is not None else [])]
    code = run.app(words if words[0] == "resume" else [*words, *(options or ())], standalone_mode=False) or 0
    raise typer.Exit(0 if accept_failed and code == 1 else code)
