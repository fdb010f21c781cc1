"""The end of a driver: the report is rebuilt and the terminal shows the front, the links and what to do next."""

from __future__ import annotations

from rich.console import Console

from sweeps.confirm_cost import more_seeds, suggestion
from sweeps.confirmation_view import confirmation_sentences, confirmation_table, single_seed_note
from sweeps.folder import SweepFolder
from sweeps.gains import gain_sentence
from sweeps.ledger import Ledger
from sweeps.lines import print_as_is
from sweeps.records import IMPORTED
from sweeps.report import read_report, write_report
from sweeps.snapshot import Snapshot
from sweeps.summary import front_of, headline
from sweeps.terminal import front_scatter, front_table, replicates_table
from sweeps.tracking_ui import links

DEFAULT_PORT = 5000


def conclude(folder: SweepFolder, console: Console) -> None:
    """Show what the sweep has come to so far; works for unfinished sweeps too."""
    ledger = Ledger.at(folder.ledger)
    snapshot, state = read_report(ledger, folder)
    html, _ = write_report(snapshot, state, folder)
    sweep, trials = snapshot.sweep, snapshot.trials
    console.print()
    console.print(front_scatter(snapshot))
    console.print(front_table(snapshot))
    console.print()
    if (replicates := replicates_table(snapshot)) is not None:
        console.print(replicates)
        console.print()
    console.print(f"{folder.name}: {state}, {headline(sweep, trials)}", highlight=False)
    print_line(console, "gain", gain_sentence(snapshot))
    print_confirmation(console, snapshot, folder, state)
    print_line(console, "report", str(html))
    if flagged := len(snapshot.flags):
        trials_have = f"{flagged} trial{'s have' if flagged > 1 else ' has'}"
        print_line(
            console, "flags", f"{trials_have} reasons not to trust the attacks: Warnings and flags in the report"
        )
    print_tracking(console, folder, ledger)
    if sweep.completed_at is None:
        print_line(console, "to go on", folder.resume_command)
    elif any(trial.label == IMPORTED for trial in trials):
        print_line(console, "another plan", f"{folder.command('evaluate')} --plan FILE")
    elif sweep.document.get("confirms"):
        print_line(console, "more seeds", more_seeds(snapshot, folder))
    else:
        print_line(console, "more trials", f"{folder.resume_command} --trials {sweep.requested * 2}")
    ledger.close()


def print_confirmation(console: Console, snapshot: Snapshot, folder: SweepFolder, state: str) -> None:
    """Show what became of the front with new seeds, or how to find out and what that takes.

    Args: snapshot: as `read_report` returns it.
    """
    confirming = snapshot.confirming
    if confirming is not None:
        if (table := confirmation_table(confirming)) is not None:
            console.print()
            console.print(table)
        for text in confirmation_sentences(confirming):
            console.print(text, markup=False, highlight=False)
        console.print()
        return
    if (note := single_seed_note(snapshot)) is not None:
        print_line(console, "one seed", note)
    if state == "finished" and (command := suggestion(snapshot, folder)) is not None:
        print_line(console, "confirm", command)


def print_tracking(console: Console, folder: SweepFolder, ledger: Ledger, base: str | None = None) -> None:
    """Print MLflow's pages of a sweep, and how to start the server if there is none yet.

    Args: base: address of a running server; None is the sweep's own remote server, or the one that `ui` starts.
    """
    sweep = ledger.sweep()
    remote = sweep.mlflow_uri if sweep.mlflow_uri and sweep.mlflow_uri.startswith("http") else None
    runs = [t.mlflow_run_id for t in front_of(ledger.trials(), sweep.objectives) if t.mlflow_run_id]
    pages = links(sweep, base or remote or f"http://127.0.0.1:{DEFAULT_PORT}", runs)
    if pages and base is None and remote is None:
        print_line(console, "MLflow", f"{folder.command('ui')} starts the server for these pages:")
    for name, address in pages.items():
        print_line(console, f" {name}", address)


def print_line(console: Console, name: str, text: str) -> None:
    """Print "name: text" with the texts aligned and not wrapped."""
    print_as_is(console, f"{name + ':':<20}{text}")
