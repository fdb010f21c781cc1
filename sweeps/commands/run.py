"""Commands that run: doctor, plan, prefetch, launch, resume, trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from search_spaces.errors import ConfigError, Problem
from search_spaces.imports import quick_imports
from sweeps.commands.arguments import RUNS, Address, File, Name, Overrides, Scale, Storage, Total
from sweeps.commands.opening import drive_on, open_sweep, out, print_line, print_sweep, read

app = typer.Typer()
PANEL = "Run"


@app.command(rich_help_panel=PANEL)
def doctor(
    storage: Storage = RUNS,
    address: Address = None,
    mlflow: Annotated[
        str | None,
        typer.Option("--mlflow", metavar="URI", help="MLflow server; default: the storage folder's database."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON list, for programs.")] = False,
) -> None:
    """Check what a sweep needs here: packages, GPUs, storage, MLflow, Ray. Exit code 2 if something is in the way."""
    from dataclasses import asdict

    from sweeps.doctor import line
    from sweeps.doctor_facts import findings

    found = []
    for finding in findings(storage, address, mlflow):
        found.append(finding)
        if not json_:
            out.print(line(finding, width=8), soft_wrap=True, highlight=False)
    if json_:
        out.print_json(json.dumps([asdict(finding) for finding in found]))
    raise typer.Exit(2 if any(finding.state == "bad" for finding in found) else 0)


@app.command(rich_help_panel=PANEL)
def plan(
    file: File,
    storage: Storage = RUNS,
    scale: Scale = None,
    set_: Overrides = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster whose nodes are looked at; without it, this machine.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="CLUSTER", help="Nodes that are not here: 4x80GB, '2*(8x24GB,64cpu)', a settings file."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like", metavar="NAME", help="A sweep that has run: its seconds tell the time, its peaks the shares."
        ),
    ] = None,
) -> None:
    """Validate a file and show what it would run, without starting anything.

    What fits at once is shown for this machine, for a cluster that runs (--address), or for the nodes that --on
    describes: by GPUs and cores, such as 4x80GB or 2*(8xa100:80GB,64cpu)+16cpu, or by a settings file, such as
    cluster/presets/slurm.yaml.
    """
    from sweeps.plan import describe, render
    from sweeps.plan_inputs import nodes_to_plan, seconds_of

    config = read(file, set_ or [], scale)
    nodes = nodes_to_plan(on, address, print_line)
    if on is not None and (problems := config.resources.problems(nodes)):
        raise ConfigError(problems)
    measured = None if like is None else seconds_of(like, storage)
    out.print(render(describe(config), storage, nodes, measured))


@app.command(rich_help_panel=PANEL)
def prefetch(file: File, set_: Overrides = None) -> None:
    """Fetch the weights and the data that a sweep needs, so that it can run where there is no network."""
    from sweeps.prefetch import stage

    for staged in stage(read(file, set_ or [], None), print_line):
        print_line(str(staged))
    out.print("everything is here: the sweep runs with HF_HUB_OFFLINE=1 and without network.")


@app.command(rich_help_panel=PANEL)
def launch(
    file: File,
    name: Annotated[str | None, typer.Option("--name", help="Name of the sweep; default: the file's.")] = None,
    storage: Storage = RUNS,
    address: Address = None,
    trials: Total = None,
    scale: Scale = None,
    prior: Annotated[
        list[str] | None,
        typer.Option("--prior", metavar="NAME", help="A sweep whose finished trials inform the search; repeatable."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Run a sweep to its end. It can be interrupted at any moment and resumed."""
    from sweeps.folder import SweepFolder

    with quick_imports():
        from sweeps.creation import create_sweep
        from sweeps.machine import require_machine

    if name is not None:
        SweepFolder(storage, name)  # a bad name is said before anything else is looked at
    overrides = [*(set_ or []), *([] if trials is None else [f"search.trials={trials}"])]
    config = read(file, overrides, scale)
    folder = SweepFolder(storage.resolve(), name if name is not None else config.name or file.stem)
    require_machine(config, address)
    create_sweep(config, folder, print_line, prior or ())
    print_sweep(folder)
    drive_on(folder, address, None)


@app.command(rich_help_panel=PANEL)
def resume(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(help="The YAML, changed where results stay comparable.", show_default=False)
    ] = None,
    storage: Storage = RUNS,
    address: Address = None,
    trials: Total = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the lease even of a driver that seems to live.")
    ] = False,
    set_: Overrides = None,
) -> None:
    """Go on with a sweep, toward the total that was asked for; --trials raises the total.

    With FILE it goes on as that says: what leaves results comparable (more trials, other resources, tracking, failures)
    is recorded, all else is refused with the differences.

    A driver that lives is left alone; --take-over takes its lease all the same, and it can write nothing more.
    """
    from sweeps.changes import check_comparable, plan_change
    from sweeps.config import read_sweep
    from sweeps.records import IMPORTED

    folder, ledger = open_sweep(name, storage)
    sweep = ledger.sweep()
    requested = sweep.requested
    if trials is not None and trials < requested:
        problem = f"{trials} is fewer than the {requested} trials that the sweep has; a total can only grow."
        raise ConfigError([Problem((), problem, source="--trials")])
    if trials is not None and any(t.label == IMPORTED for t in ledger.trials()):
        problem = "the sweep is a checkpoint that was brought; there is nothing to train."
        raise ConfigError([Problem((), problem, f"{folder.command('evaluate')} --plan FILE judges it.", "--trials")])
    if folder.config.exists():
        check_comparable(sweep, read_sweep(folder.config), str(folder.config))
    change = None if file is None else plan_change(sweep, read_sweep(file, set_ or []), str(file))
    ledger.close()
    drive_on(folder, address, trials, take_over, change)


@app.command(rich_help_panel=PANEL)
def trial(
    file: File,
    method: Annotated[str | None, typer.Option("--method", help="Which method entry; its label.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Keep the trial's files here.", show_default=False)
    ] = None,
    scale: Scale = None,
    set_: Overrides = None,
) -> None:
    """Run one trial in the foreground, without Ray, each searched field at its default or at what --set says."""
    from sweeps.foreground import origin_of, pinned_trial, run_trial
    from sweeps.study import trial_seed

    config = read(file, set_ or [], scale)
    one = pinned_trial(config, method)
    out.print_json(json.dumps(one.plain()["methods"]))
    seed, origin = trial_seed(config.search.seed, 0), origin_of(one, config)
    result = run_trial(one, seed, config.attacks, print_line, folder, origin)
    robust = "" if result.robust_acc is None else f", robust {result.robust_acc:.4f}"
    out.print(f"clean {result.clean_acc:.4f}{robust}, weights {result.weights_digest}", highlight=False)
