"""Commands that show: report, figures, export, ui, sync."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from search_spaces.errors import ConfigError, Problem, SweepError, TrackingAway
from sweeps.commands.arguments import RUNS, Name, Storage
from sweeps.commands.opening import open_sweep, out, print_line

app = typer.Typer()
PANEL = "See"


@app.command(rich_help_panel=PANEL)
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

        opened = [open_sweep(name, storage) for name in dict.fromkeys(names)]
        print_line(str(build_overlay([ledger for _, ledger in opened], storage, to)))
        return
    if to is not None:
        message = "the page of one sweep stands in its folder; --out is for several."
        raise ConfigError([Problem((), message, source="--out")])
    from sweeps.report import build_report

    folder, ledger = open_sweep(names[0], storage)
    for path in build_report(ledger, folder):
        out.print(str(path), highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def figures(
    name: Name,
    to: Annotated[Path | None, typer.Option("--out", help="Folder; default: figures in the sweep's.")] = None,
    format_: Annotated[str, typer.Option("--format", help="pdf, png or both.")] = "pdf,png",
    storage: Storage = RUNS,
) -> None:
    """Draw figures for a paper: the front, the hypervolume and what decides it, one column wide."""
    from sweeps.print_figures import write_figures
    from sweeps.snapshot import Snapshot

    folder, ledger = open_sweep(name, storage)
    formats = [part.strip() for part in format_.split(",") if part.strip()]
    for path in write_figures(Snapshot.read(ledger), to or folder.root / "figures", formats):
        print_line(str(path))


@app.command(rich_help_panel=PANEL)
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

    folder, ledger = open_sweep(name, storage)
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


@app.command(rich_help_panel=PANEL)
def ui(
    name: Name,
    storage: Storage = RUNS,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Start MLflow's pages on 127.0.0.1 and print deep links into them; Ctrl-C ends the server."""
    from sweeps.conclude import print_tracking
    from sweeps.config import parse_sweep
    from sweeps.tracking_ui import start_ui, stop_ui

    folder, ledger = open_sweep(name, storage)
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


@app.command(rich_help_panel=PANEL)
def sync(name: Name, storage: Storage = RUNS) -> None:
    """Bring MLflow up to date with the ledger; what is there already is not written again."""
    from sweeps.conclude import print_tracking
    from sweeps.config import parse_sweep
    from sweeps.lease import Lease
    from sweeps.snapshot import without_passwords
    from sweeps.tracking import Mirror

    folder, ledger = open_sweep(name, storage)
    tracking = parse_sweep(ledger.sweep().document).tracking
    with Lease(ledger, say=print_line):
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
