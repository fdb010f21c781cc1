"""The command line of Paretune. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from search_spaces.errors import ConfigError, ParentError, Problem, StorageError, SweepError, TrackingAway
from search_spaces.imports import quick_imports
from search_spaces.storage import storage_problem

if TYPE_CHECKING:
    from sweeps.changes import Change
    from sweeps.config import SweepConfig
    from sweeps.evaluate import Added
    from sweeps.folder import SweepFolder
    from sweeps.ledger import Ledger
    from sweeps.records import SweepRecord
    from sweeps.requests import Request
    from sweeps.status_view import StatusView

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Sweeps for robust vision transformers: Optuna searches, Ray Tune trains, attacks judge, MLflow compares.",
    epilog="Exit codes: 0 done, 1 done with failed trials, 2 bad input, 3 the driver failed, 130 interrupted.",
)
out = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120)))
err = Console(stderr=True)

File = Annotated[Path, typer.Argument(help="The sweep's YAML file.", show_default=False)]
Name = Annotated[str, typer.Argument(help="The sweep's name.", show_default=False)]
Number = Annotated[int, typer.Argument(help="The trial's number.", show_default=False, min=0)]
Numbers = Annotated[list[int] | None, typer.Argument(help="The trials' numbers.", show_default=False, min=0)]
Storage = Annotated[Path, typer.Option("--storage", help="Folder that holds the sweeps.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file; repeatable.")
]
Total = Annotated[int | None, typer.Option("--trials", min=1, help="Trials in total.", show_default=False)]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join; without it, a local one.")]
Scale = Annotated[
    Literal["smoke"] | None,
    typer.Option("--scale", help="Shrink the file to a test of its code path: seconds, no data, no weights."),
]
RUNS = Path("runs")
WATCH_S = 1.0
"""Between two looks of `status --watch`."""


@app.command()
def plan(file: File, storage: Storage = RUNS, scale: Scale = None, set_: Overrides = None) -> None:
    """Validate a file and show what it would run, without starting anything."""
    from sweeps.plan import describe, render

    out.print(render(describe(_read(file, set_ or [], scale)), storage))


@app.command()
def prefetch(file: File, set_: Overrides = None) -> None:
    """Fetch the weights and the data that a sweep needs, so that it can run where there is no network."""
    from sweeps.prefetch import stage

    for staged in stage(_read(file, set_ or [], None), _print_line):
        _print_line(str(staged))
    out.print("everything is here: the sweep runs with HF_HUB_OFFLINE=1 and without network.")


@app.command()
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
        from sweeps.runner import create_sweep, require_machine

    if name is not None:
        SweepFolder(storage, name)  # a bad name is said before anything else is looked at
    overrides = [*(set_ or []), *([] if trials is None else [f"search.trials={trials}"])]
    config = _read(file, overrides, scale)
    folder = SweepFolder(storage.resolve(), name if name is not None else config.name or file.stem)
    require_machine(config, address)
    create_sweep(config, folder, _print_line, prior or ())
    out.print(f"sweep [bold]{folder.name}[/bold] in {folder.root}", highlight=False)
    _drive(folder, address, None)


@app.command()
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

    folder, ledger = _open(name, storage)
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
    _drive(folder, address, trials, take_over, change)


@app.command()
def retry(
    name: Name,
    numbers: Numbers = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that have failed.")] = False,
    storage: Storage = RUNS,
    address: Address = None,
) -> None:
    """Run failed trials and failed attacks again: same number, configuration and seed, from the last good checkpoint.

    A driver that runs takes them up; without one the sweep goes on here.
    """
    from sweeps.steering import retry_request

    folder, ledger = _open(name, storage)
    request = retry_request(ledger, numbers or [], failed=failed)
    if not _ask(folder, ledger, request):
        _drive(folder, address, None)


@app.command()
def extend(
    name: Name,
    trials: Total = None,
    known: Annotated[
        Path | None,
        typer.Option("--known", help="YAML file: a list of configurations to try next.", show_default=False),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option("--prior", metavar="NAME", help="A sweep whose finished trials inform the search."),
    ] = None,
    storage: Storage = RUNS,
    address: Address = None,
) -> None:
    """Ask more of a sweep: a larger total, known configurations (in addition, unless --trials says otherwise), or what
    another sweep has learned. A driver that runs takes it up; without one the sweep goes on here."""
    from sweeps.steering import extend_request

    folder, ledger = _open(name, storage)
    request = extend_request(ledger, total=trials, known=known, prior=prior, storage=storage, say=_print_line)
    if not _ask(folder, ledger, request):
        _drive(folder, address, None)


@app.command()
def stop(name: Name, numbers: Numbers, storage: Storage = RUNS) -> None:
    """End single trials of a sweep for good: they become stopped, the others go on."""
    from sweeps.steering import stop_request

    folder, ledger = _open(name, storage)
    if not _ask(folder, ledger, stop_request(ledger, numbers or [])):
        _print_line(f"no driver runs: it happens as soon as the sweep goes on. {folder.resume_command}")


@app.command()
def pause(name: Name, storage: Storage = RUNS) -> None:
    """End the driver of a sweep, wherever it runs; `resume` goes on. At most the current epochs are done again."""
    from sweeps.requests import Request
    from sweeps.summary import sweep_state

    folder, ledger = _open(name, storage)
    state = sweep_state(ledger)
    if state != "running":
        _print_line(f"nothing to pause: the sweep is {state} and no driver runs.")
        return
    _ask(folder, ledger, Request.make("pause"))


def _ask(folder: SweepFolder, ledger: Ledger, request: Request) -> bool:
    """Leave a request for the driver and close the ledger; returns whether a driver lives that takes it up."""
    from sweeps.requests import put
    from sweeps.summary import sweep_state

    runs = sweep_state(ledger) == "running"
    put(folder.requests, request)
    ledger.close()
    if runs:
        _print_line(f"asked the running driver; {folder.command('status')} shows what waits.")
    return runs


@app.command()
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

    config = _read(file, set_ or [], scale)
    one = pinned_trial(config, method)
    out.print_json(json.dumps(one.plain()["methods"]))
    seed, origin = trial_seed(config.search.seed, 0), origin_of(one, config)
    result = run_trial(one, seed, config.attacks, _print_line, folder, origin)
    robust = "" if result.robust_acc is None else f", robust {result.robust_acc:.4f}"
    out.print(f"clean {result.clean_acc:.4f}{robust}, weights {result.weights_digest}", highlight=False)


@app.command()
def rerun(name: Name, number: Number, storage: Storage = RUNS) -> None:
    """Repeat a trial of a sweep from its configuration and seed, in the foreground, and compare the values."""
    from sweeps.config import parse_sweep
    from sweeps.foreground import origin_in, run_trial
    from sweeps.records import IMPORTED, LAUNCHED
    from trainables.config import TrialConfig

    folder, ledger = _open(name, storage)
    record = ledger.trial(number)
    config = parse_sweep(ledger.sweep().document)
    if record.label == IMPORTED:
        raise SweepError(f"trial {number} was brought as a checkpoint; there is no training to repeat.")
    done = [s for s in ledger.stages(number) if s.plan == LAUNCHED and s.split == "validation" and s.state == "done"]
    trial = TrialConfig.model_validate(record.config)
    origin = origin_in(trial, config, ledger, folder)
    result = run_trial(trial, record.seed, config.attacks, _print_line, origin=origin)
    same = result.clean_acc == record.clean_acc and result.weights_digest == record.weights_digest
    now = {stage.position: stage.accuracy for stage in result.stages}
    for stage in done:
        same = same and stage.accuracy == now[stage.position]
        out.print(f"{stage.attack}: {stage.accuracy:.4f} before, {now[stage.position]:.4f} now", highlight=False)
    before = "not measured" if record.clean_acc is None else f"{record.clean_acc:.4f}"
    out.print(f"clean: {before} before, {result.clean_acc:.4f} now", highlight=False)
    out.print("equal to the ledger, bit for bit" if same else "[yellow]differs from the ledger[/yellow]")
    raise typer.Exit(0 if same else 1)


@app.command()
def evaluate(
    name: Annotated[str | None, typer.Argument(help="The sweep's name.", show_default=False)] = None,
    plan: Annotated[
        str, typer.Option("--plan", help="YAML file with attacks, or a ready-made plan: standard, jasmin, diagnostics.")
    ] = "standard",
    trials: Annotated[str, typer.Option("--trials", help="front, all, or numbers: 1,5-8.")] = "front",
    plan_name: Annotated[
        str | None, typer.Option("--as", help="Name of the plan in the sweep; default: the file's.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Judge these weights instead of a sweep's trials.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The checkpoint's timm model.", show_default=False)
    ] = None,
    storage: Storage = RUNS,
    address: Address = None,
    set_: Overrides = None,
) -> None:
    """Judge trained weights by a further attack plan: trials of a sweep, or any checkpoint.

    A checkpoint becomes a sweep of one trial under NAME, by default the file's stem. Its images and the model's size
    come from the sections data and model of the plan's file, or from --set data.name=cifar10 --set model.img_size=32.
    """
    if checkpoint is not None:
        _evaluate_checkpoint(checkpoint, name, plan, model, storage, address, set_ or [])
        return
    from sweeps.config import parse_sweep
    from sweeps.evaluate import add_plan, read_plan

    if name is None or model is not None:
        message = "name a sweep, or give --checkpoint with --model."
        raise ConfigError([Problem((), message, source="evaluate")])
    folder, ledger = _open(name, storage)
    launched = parse_sweep(ledger.sweep().document, folder.config.name).attacks
    ledger.close()
    stem, section = read_plan(plan, launched, set_ or [])
    added = add_plan(folder, plan_name or stem, section, trials, out, address=address)
    out.print(f"{added.judged} images judged now, once for each attack; the rest was in the store.", highlight=False)
    _show_plan(folder, added)
    raise typer.Exit(130 if added.interrupted else int(bool(added.failed)))


def _evaluate_checkpoint(
    checkpoint: Path,
    name: str | None,
    plan: str,
    model: str | None,
    storage: Path,
    address: str | None,
    overrides: list[str],
) -> None:
    from sweeps.evaluate import checkpoint_document, import_sweep
    from sweeps.folder import SweepFolder

    folder = SweepFolder(storage.resolve(), name or checkpoint.stem)
    document = checkpoint_document(checkpoint, plan, model, overrides)
    import_sweep({**document, "name": folder.name}, checkpoint, folder, _print_line)
    out.print(f"sweep [bold]{folder.name}[/bold] in {folder.root}", highlight=False)
    _drive(folder, address, None)


def _show_plan(folder: SweepFolder, added: Added) -> None:
    from sweeps.ledger import Ledger
    from sweeps.plan_table import plan_table
    from sweeps.report import build_report
    from sweeps.snapshot import Snapshot

    ledger = Ledger.at(folder.ledger)
    html, _ = build_report(ledger, folder)
    out.print(plan_table(Snapshot.read(ledger), added.plan, added.trials))
    out.print(f"report: {html}", highlight=False, soft_wrap=True)


@app.command()
def verify(name: Name, number: Number, storage: Storage = RUNS) -> None:
    """Replay the adversarial images that were kept for a trial: in the ball, in [0, 1], and misclassified?"""
    with quick_imports():
        from sweeps.records import LAUNCHED
        from sweeps.verify import verify_trial

    folder, ledger = _open(name, storage)
    replayed = verify_trial(ledger, folder, number)
    for stage, found in ((item.stage, item.found) for item in replayed):
        if not (found.kept or found.without_image):
            continue
        where = f"{'' if stage.plan == LAUNCHED else stage.plan + ': '}{stage.attack} on {stage.split} images"
        left = f"; {found.without_image} fallen images were not kept" if found.without_image else ""
        out.print(
            f"{where}: {found.kept} kept, {found.inside} in the ball and in [0, 1], {found.misclassified} misclassified"
            f"{left}",
            highlight=False,
        )
        if found.failed:
            out.print(f"  [red]not confirmed:[/red] images {', '.join(map(str, found.failed))}", highlight=False)
    bad = sum(len(item.found.failed) for item in replayed)
    kept = sum(item.found.kept for item in replayed)
    out.print(f"{kept - bad} of {kept} adversarial images confirmed", highlight=False)
    raise typer.Exit(int(bool(bad)))


@app.command()
def compare(
    name: Name,
    first: Annotated[int, typer.Argument(help="A trial's number.", show_default=False, min=0)],
    second: Annotated[int, typer.Argument(help="Another trial's number.", show_default=False, min=0)],
    storage: Storage = RUNS,
) -> None:
    """Compare two trials: their configurations, what became of them, and image by image whether that may be chance."""
    from sweeps.compared import configuration_table, outcome_table
    from sweeps.paired import NothingInCommon, pair_of, render_comparison
    from sweeps.snapshot import Snapshot

    _, ledger = _open(name, storage)
    snapshot = Snapshot.read(ledger)
    a, b = pair_of(snapshot, first, second)
    out.print(configuration_table(a, b))
    out.print()
    out.print(outcome_table(snapshot, a, b))
    out.print()
    try:
        out.print(render_comparison(snapshot, first, second))
    except NothingInCommon as nothing:
        _print_line(str(nothing))


@app.command()
def best(
    name: Name,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="A condition: clean_acc>=0.9, jasmin.k>0; repeatable.", show_default=False),
    ] = None,
    maximize: Annotated[str | None, typer.Option("--maximize", help="Default: the last objective.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Only trials of this method.")] = None,
    top: Annotated[int, typer.Option("--top", help="How many to show.", min=1)] = 5,
    storage: Storage = RUNS,
) -> None:
    """Choose a configuration: the best trials under conditions, and the knee of the front."""
    from sweeps.choosing import choose, knee_of, parse_conditions
    from sweeps.snapshot import Snapshot
    from sweeps.terminal import trials_table

    folder, ledger = _open(name, storage)
    snapshot = Snapshot.read(ledger)
    figure = maximize or snapshot.sweep.objectives[-1]
    found = choose(snapshot, parse_conditions(where or [], snapshot), figure, method)
    if not found.ranked:
        raise SweepError("no finished trial with all its attacks meets that; loosen --where, or see `status`.")
    title = f"Best by {figure} ({len(found.ranked)} trials to choose from)"
    out.print(trials_table(snapshot, found.ranked[:top], title))
    for trial in found.open:
        note = f"trial {trial.number} might be better: only an upper bound of it is known. Its other attacks: "
        plan = f"{folder.command('evaluate')} --trials {trial.number}"
        out.print(note + plan, highlight=False, soft_wrap=True)
    if (knee := knee_of(snapshot)) is not None:
        out.print(f"knee of the front: trial {knee.number} ({knee.label})", highlight=False)
    out.print_json(json.dumps(dict(found.ranked[0].config)))
    number = found.ranked[0].number
    out.print(f"its weights:   {folder.command('checkpoint')} {number} --out DIR", highlight=False, soft_wrap=True)
    out.print(f"trained again: {folder.command('rerun')} {number}", highlight=False, soft_wrap=True)


@app.command()
def confirm(
    name: Name,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Trainings of each configuration; default: 3.", show_default=False),
    ] = None,
    trials: Annotated[str, typer.Option("--trials", help="front, or numbers: 1,5-8.")] = "front",
    as_: Annotated[
        str | None, typer.Option("--as", help="Name of the confirmation; default: NAME-confirm.", show_default=False)
    ] = None,
    storage: Storage = RUNS,
    address: Address = None,
) -> None:
    """Freeze the front, train it again with new seeds and judge it on test images: how good is it really?

    The confirmation is a sweep of its own. Asked again it goes on, with a larger --seeds it grows, and it shows the
    result once it is whole.
    """
    with quick_imports():
        from sweeps.confirm import prepare

    prepared = prepare(_open(name, storage)[0], seeds=seeds, wanted=trials, name=as_, say=_print_line)
    out.print(f"sweep [bold]{prepared.folder.name}[/bold] in {prepared.folder.root}", highlight=False)
    _drive(prepared.folder, address, None, change=prepared.change)


@app.command()
def checkpoint(
    name: Name,
    number: Number,
    to: Annotated[Path, typer.Option("--out", help="New folder for weights, configuration and card.")],
    storage: Storage = RUNS,
) -> None:
    """Hand over a trial's model: safetensors and a configuration that timm loads by itself, and a model card."""
    from sweeps.exported_model import export_model
    from sweeps.snapshot import Snapshot

    folder, ledger = _open(name, storage)
    place = export_model(Snapshot.read(ledger), folder, number, to)
    for path in sorted(place.iterdir()):
        out.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def logs(
    name: Name,
    which: Annotated[str, typer.Argument(help="The trial's number, or a parent's name.", show_default=False)],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the trial does.")] = False,
    storage: Storage = RUNS,
) -> None:
    """Print what a trial or a parent has said, and its error if it failed."""
    folder, ledger = _open(name, storage)
    number = _number_of(ledger, which)
    record = ledger.trial(number)
    for line in _follow(
        folder.trial_log(number), lambda: follow and ledger.trial(number).state in ("proposed", "training")
    ):
        sys.stdout.write(line)
        sys.stdout.flush()
    if record.error:
        out.print(f"[red]{record.error_kind}[/red]")
        out.print(record.error, markup=False, highlight=False)


def _number_of(ledger: Ledger, which: str) -> int:
    """Return the number of a trial, or of the parent of that name; ConfigError if it is neither."""
    from sweeps.parents import names_of

    if which.isdecimal():
        return int(which)
    parents = {name: row.number for row in ledger.parents() for name in names_of(row)}
    if which not in parents:
        there = f"; parents: {', '.join(parents)}" if parents else ""
        raise ConfigError([Problem((), f"expected the number of a trial{there}; found {which!r}.", source="logs")])
    return parents[which]


@app.command()
def status(
    name: Name,
    storage: Storage = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on as long as the sweep runs; Ctrl-C ends it.")] = False,
) -> None:
    """Show how far a sweep is, from its ledger alone; works with a dead driver and from another terminal."""
    from sweeps.requests import waiting
    from sweeps.status_view import StatusView
    from sweeps.summary import status as summarise

    folder, ledger = _open(name, storage)

    if as_json:
        sys.stdout.write(json.dumps(summarise(ledger, waiting(folder.requests)), indent=2) + "\n")
    elif watch:
        with suppress(KeyboardInterrupt):
            _watch(StatusView(ledger, folder))
    else:
        out.print(StatusView(ledger, folder).look(out.width)[1], soft_wrap=True)


@app.command()
def report(
    names: Annotated[list[str], typer.Argument(help="The sweep's name; several are laid over each other.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Page of several sweeps; default: A+B.html in the storage folder.")
    ] = None,
    storage: Storage = RUNS,
) -> None:
    """Rebuild the HTML report and the Markdown table from the ledger; with several names, one page of all of them."""
    if len(names) > 1:
        from sweeps.overlay import build_overlay

        opened = [_open(name, storage) for name in dict.fromkeys(names)]
        _print_line(str(build_overlay([ledger for _, ledger in opened], storage, to)))
        return
    if to is not None:
        message = "the page of one sweep stands in its folder; --out is for several."
        raise ConfigError([Problem((), message, source="--out")])
    from sweeps.report import build_report

    folder, ledger = _open(names[0], storage)
    for path in build_report(ledger, folder):
        out.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def figures(
    name: Name,
    to: Annotated[Path | None, typer.Option("--out", help="Folder; default: figures in the sweep's.")] = None,
    format_: Annotated[str, typer.Option("--format", help="pdf, png or both.")] = "pdf,png",
    storage: Storage = RUNS,
) -> None:
    """Draw figures for a paper: the front, the hypervolume and what decides it, one column wide."""
    from sweeps.print_figures import write_figures
    from sweeps.snapshot import Snapshot

    folder, ledger = _open(name, storage)
    formats = [part.strip() for part in format_.split(",") if part.strip()]
    for path in write_figures(Snapshot.read(ledger), to or folder.root / "figures", formats):
        _print_line(str(path))


@app.command()
def export(
    name: Name,
    storage: Storage = RUNS,
    format_: Annotated[str, typer.Option("--format", help="json, csv, optuna or latex.")] = "json",
    to: Annotated[Path | None, typer.Option("--out", help="File to write; default: standard output.")] = None,
    trials: Annotated[Literal["front", "all"], typer.Option("--trials", help="Of latex: which trials.")] = "front",
    split: Annotated[
        Literal["validation", "test"], typer.Option("--split", help="Of latex: whose images.")
    ] = "validation",
) -> None:
    """Export all trials, failures included: JSON, CSV, or an Optuna study in a sqlite file; or a table for LaTeX."""
    from sweeps import export as exporting

    folder, ledger = _open(name, storage)
    if format_ == "optuna":
        out.print(
            str(exporting.export_optuna(ledger, to or folder.root / "optuna.db")), highlight=False, soft_wrap=True
        )
        return
    writers: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(exporting.export_json(ledger, folder), indent=2) + "\n",
        "csv": lambda: exporting.export_csv(ledger),
        "latex": lambda: exporting.export_latex(ledger, trials, split),
    }
    if format_ not in writers:
        message = f"unknown format; allowed: json, csv, optuna, latex; found {format_!r}."
        raise ConfigError([Problem((), message, source="--format")])
    text = writers[format_]()
    if to is None:
        sys.stdout.write(text)
    else:
        to.write_text(text)


@app.command()
def ui(
    name: Name,
    storage: Storage = RUNS,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Start MLflow's pages on 127.0.0.1 and print deep links into them; Ctrl-C ends the server."""
    from sweeps.conclude import print_tracking
    from sweeps.config import parse_sweep
    from sweeps.tracking_ui import start_ui, stop_ui

    folder, ledger = _open(name, storage)
    sweep = ledger.sweep()
    if sweep.mlflow_run_id is None:
        raise SweepError(f"MLflow has not seen this sweep yet. {folder.command('sync')} writes it.")
    uri = parse_sweep(sweep.document).tracking.uri or folder.default_tracking_uri
    if uri.startswith("http"):
        print_tracking(out, folder, ledger)
        return
    server, address = start_ui(uri, port)
    try:
        print_tracking(out, folder, ledger, address)
        out.print("Ctrl-C ends the server.", style="dim")
        server.wait()
    except KeyboardInterrupt:
        out.print("stopped")
    finally:
        stop_ui(server)


@app.command()
def gc(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only shown.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also the final weights of trials that others dominate.")
    ] = False,
    storage: Storage = RUNS,
) -> None:
    """Show the files of a sweep that nothing needs any more; --yes removes them. Refused while a driver runs."""
    from sweeps.disk import in_words
    from sweeps.retention import collect, find_unneeded

    folder, ledger = _open(name, storage)
    unneeded = (collect if yes else find_unneeded)(ledger, folder, weights=weights)
    for kind in unneeded:
        out.print(f"{kind.what}: {len(kind.paths)}, {in_words(kind.size)}", highlight=False)
        for path in kind.paths:
            out.print(f"  {path.relative_to(folder.root)}", style="dim", highlight=False, soft_wrap=True)
    total = in_words(sum(kind.size for kind in unneeded))
    if not unneeded:
        out.print("nothing to remove: every file is needed.")
    elif yes:
        out.print(f"removed {total}.", highlight=False)
    else:
        out.print(f"{total} could go: {folder.command('gc')}{' --weights' if weights else ''} --yes", highlight=False)


@app.command()
def sync(name: Name, storage: Storage = RUNS) -> None:
    """Bring MLflow up to date with the ledger; what is there already is not written again."""
    from sweeps.conclude import print_tracking
    from sweeps.config import parse_sweep
    from sweeps.lease import Lease
    from sweeps.snapshot import without_passwords
    from sweeps.tracking import Mirror

    folder, ledger = _open(name, storage)
    tracking = parse_sweep(ledger.sweep().document).tracking
    with Lease(ledger, say=_print_line):
        done = ledger.sweep().completed_at is not None
        try:
            Mirror(ledger, folder, tracking.uri, tracking.experiment).sync(None if done else "KILLED")
        except SweepError:
            raise
        except Exception as error:
            where = without_passwords(tracking.uri or folder.default_tracking_uri)
            raise TrackingAway(
                f"MLflow is not up to date: {where} said {str(error).splitlines()[0]!r}. The ledger has everything; "
                f"ask again when the server answers: {folder.command('sync')}"
            ) from error
        print_tracking(out, folder, ledger)


cluster_app = typer.Typer(
    no_args_is_help=True, help="Ready-made starts on Slurm, machines of one's own, AWS and Kubernetes."
)
app.add_typer(cluster_app, name="cluster")


@cluster_app.command("render")
def cluster_render(
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
        located = [source.locate(problem) for problem in problems]
        raise ConfigError(sorted(located, key=lambda problem: (problem.line is None, problem.line or 0)))
    start = render(target, parsed)
    path = folder / start.file
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(start.text)
    _print_line(f"{path} is written. Next:")
    for what, line in start.commands(str(path)):
        _print_line(f"\n  # {what}\n  {line}")


@cluster_app.command("start")
def cluster_start(
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
            wait_for_nodes(address or "auto", wait_for, cpus, gpus, minutes, _print_line)
    words = ["resume", folder.name] if folder.ledger.exists() else ["launch", str(file), "--name", folder.name]
    words += ["--storage", str(storage), *(["--address", address] if address is not None else [])]
    code = app(words if words[0] == "resume" else [*words, *(options or ())], standalone_mode=False) or 0
    raise typer.Exit(0 if accept_failed and code == 1 else code)


def _read(file: Path, overrides: list[str], scale: Literal["smoke"] | None) -> SweepConfig:
    with quick_imports():
        from sweeps.config import read_sweep

    config = read_sweep(file, overrides, scale)
    if scale is not None:
        out.print(
            f"--scale {scale}: tiny model, few digits, one epoch, one trial per method; its figures mean nothing.",
            style="yellow",
            highlight=False,
        )
    return config


def _open(name: str, storage: Path) -> tuple[SweepFolder, Ledger]:
    from sweeps.folder import SweepFolder
    from sweeps.ledger import Ledger

    folder = SweepFolder.existing(storage, name)
    return folder, Ledger.at(folder.ledger)


def _print_line(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _follow(path: Path, more: Callable[[], bool]) -> Iterator[str]:
    while not path.exists() and more():
        time.sleep(0.5)
    if not path.exists():
        return
    with path.open() as log:
        while True:
            line = log.readline()
            if line:
                yield line
            elif more():
                time.sleep(0.5)
            else:
                yield from log.readlines()
                return


def _watch(view: StatusView) -> None:
    """Show a status again and again while the sweep runs."""
    from rich.live import Live

    with Live(console=out, auto_refresh=False) as live:
        while True:
            state, shown = view.look(out.width, out.height - 1)
            live.update(shown, refresh=True)
            if state != "running":
                return
            time.sleep(WATCH_S)


def _drive(
    folder: SweepFolder,
    address: str | None,
    trials: int | None,
    take_over: bool = False,
    change: Change | None = None,
) -> None:
    from sweeps.conclude import conclude
    from sweeps.notify import notify
    from sweeps.runner import drive

    began = time.time()
    try:
        outcome = drive(folder, out, address=address, trials=trials, change=change, take_over=take_over)
    except SweepError as error:
        if _is_driver_failure(error):
            notify(_sweep_of(folder).document.get("notify"), folder, "failed", _print_line)
        raise
    conclude(folder, out)
    sweep = _sweep_of(folder)
    if sweep.completed_at is not None and sweep.completed_at >= began:
        notify(sweep.document.get("notify"), folder, "finished", _print_line)
    raise typer.Exit(outcome.exit_code)


def _sweep_of(folder: SweepFolder) -> SweepRecord:
    from sweeps.ledger import Ledger

    ledger = Ledger.at(folder.ledger)
    try:
        return ledger.sweep()
    finally:
        ledger.close()


def _is_driver_failure(error: SweepError) -> bool:
    return isinstance(error, StorageError | ParentError) or type(error).__name__ == "DriverCrashed"


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except SweepError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True, style="red")
        sys.exit(3 if _is_driver_failure(error) else 2)
    except Exception as error:
        text = _storage_text(error)
        if not text:
            raise
        err.print(text, markup=False, highlight=False, soft_wrap=True, style="red")
        sys.exit(3)


def _storage_text(error: Exception) -> str:
    """Say what is wrong with the storage, if that is the error; else nothing."""
    if problem := storage_problem(error):
        return f"the sweep's folder cannot be written: {problem}. Nothing is lost; put that right and ask again."
    if "file is not a database" in str(error) or "database disk image is malformed" in str(error):
        return (
            "the sweep's ledger.db is damaged: sqlite cannot read it. Put a copy back if there is one; weights and "
            "verdicts in the sweep's folder are still good. `sqlite3 ledger.db .recover` saves what can be saved."
        )
    if "database is locked" in str(error):
        return (
            "the ledger is locked: another process has begun to write and does not go on. A driver that is stopped "
            "(`ps` shows T) goes on with kill -CONT; kill -9 ends it, and nothing is lost."
        )
    return ""


def main() -> None:
    """Run the command line; an error of ours is one clear text and an exit code."""
    with _clear_errors():
        app()


def run() -> None:
    """Run the command line and end the process without Python's tidying up, which takes seconds with torch."""
    code = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)  # the first one registered runs last
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    run()
