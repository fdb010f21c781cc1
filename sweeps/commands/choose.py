"""Commands that choose and say how far to trust it: best, compare, confirm, evaluate, verify, rerun, checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import ConfigError, Problem, SweepError
from search_spaces.imports import quick_imports
from sweeps.commands.arguments import RUNS, Address, Name, Number, Overrides, Storage
from sweeps.commands.opening import drive_on, open_sweep, out, print_line, print_sweep
from sweeps.exit_codes import INTERRUPTED

if TYPE_CHECKING:
    from sweeps.evaluate import Added
    from sweeps.folder import SweepFolder

app = typer.Typer()
PANEL = "Choose and trust"


@app.command(rich_help_panel=PANEL)
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

    folder, ledger = open_sweep(name, storage)
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


@app.command(rich_help_panel=PANEL)
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

    _, ledger = open_sweep(name, storage)
    snapshot = Snapshot.read(ledger)
    a, b = pair_of(snapshot, first, second)
    out.print(configuration_table(a, b))
    out.print()
    out.print(outcome_table(snapshot, a, b))
    out.print()
    try:
        out.print(render_comparison(snapshot, first, second))
    except NothingInCommon as nothing:
        print_line(str(nothing))


@app.command(rich_help_panel=PANEL)
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

    prepared = prepare(open_sweep(name, storage)[0], seeds=seeds, wanted=trials, name=as_, say=print_line)
    print_sweep(prepared.folder)
    drive_on(prepared.folder, address, None, change=prepared.change)


@app.command(rich_help_panel=PANEL)
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
    folder, ledger = open_sweep(name, storage)
    launched = parse_sweep(ledger.sweep().document, folder.config.name).attacks
    ledger.close()
    stem, section = read_plan(plan, launched, set_ or [])
    added = add_plan(folder, plan_name or stem, section, trials, out, address=address)
    out.print(f"{added.judged} images judged now, once for each attack; the rest was in the store.", highlight=False)
    _show_plan(folder, added)
    raise typer.Exit(INTERRUPTED if added.interrupted else int(bool(added.failed)))


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
    import_sweep({**document, "name": folder.name}, checkpoint, folder, print_line)
    print_sweep(folder)
    drive_on(folder, address, None)


def _show_plan(folder: SweepFolder, added: Added) -> None:
    from sweeps.ledger import Ledger
    from sweeps.plan_table import plan_table
    from sweeps.report import build_report
    from sweeps.snapshot import Snapshot

    ledger = Ledger.at(folder.ledger)
    html, _ = build_report(ledger, folder)
    out.print(plan_table(Snapshot.read(ledger), added.plan, added.trials))
    out.print(f"report: {html}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def verify(name: Name, number: Number, storage: Storage = RUNS) -> None:
    """Replay the adversarial images that were kept for a trial: in the ball, in [0, 1], and misclassified?"""
    with quick_imports():
        from sweeps.records import LAUNCHED
        from sweeps.verify import verify_trial

    folder, ledger = open_sweep(name, storage)
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


@app.command(rich_help_panel=PANEL)
def rerun(name: Name, number: Number, storage: Storage = RUNS) -> None:
    """Repeat a trial of a sweep from its configuration and seed, in the foreground, and compare the values."""
    from sweeps.config import parse_sweep
    from sweeps.foreground import origin_in, run_trial
    from sweeps.records import IMPORTED, LAUNCHED
    from trainables.config import TrialConfig

    folder, ledger = open_sweep(name, storage)
    record = ledger.trial(number)
    config = parse_sweep(ledger.sweep().document)
    if record.label == IMPORTED:
        raise SweepError(f"trial {number} was brought as a checkpoint; there is no training to repeat.")
    done = [s for s in ledger.stages(number) if s.plan == LAUNCHED and s.split == "validation" and s.state == "done"]
    trial = TrialConfig.model_validate(record.config)
    origin = origin_in(trial, config, ledger, folder)
    result = run_trial(trial, record.seed, config.attacks, print_line, origin=origin)
    same = result.clean_acc == record.clean_acc and result.weights_digest == record.weights_digest
    now = {stage.position: stage.accuracy for stage in result.stages}
    for stage in done:
        same = same and stage.accuracy == now[stage.position]
        out.print(f"{stage.attack}: {stage.accuracy:.4f} before, {now[stage.position]:.4f} now", highlight=False)
    before = "not measured" if record.clean_acc is None else f"{record.clean_acc:.4f}"
    out.print(f"clean: {before} before, {result.clean_acc:.4f} now", highlight=False)
    out.print("equal to the ledger, bit for bit" if same else "[yellow]differs from the ledger[/yellow]")
    raise typer.Exit(0 if same else 1)


@app.command(rich_help_panel=PANEL)
def checkpoint(
    name: Name,
    number: Number,
    to: Annotated[Path, typer.Option("--out", help="New folder for weights, configuration and card.")],
    storage: Storage = RUNS,
) -> None:
    """Hand over a trial's model: safetensors and a configuration that timm loads by itself, and a model card."""
    from sweeps.exported_model import export_model
    from sweeps.snapshot import Snapshot

    folder, ledger = open_sweep(name, storage)
    place = export_model(Snapshot.read(ledger), folder, number, to)
    for path in sorted(place.iterdir()):
        out.print(str(path), highlight=False, soft_wrap=True)
