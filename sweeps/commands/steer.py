"""Commands that watch and steer: status, logs, stop, pause, retry, extend, gc."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import ConfigError, Problem
from sweeps.commands.arguments import RUNS, Address, Name, Numbers, Storage, Total
from sweeps.commands.opening import drive_on, open_sweep, out, print_line

if TYPE_CHECKING:
    from sweeps.folder import SweepFolder
    from sweeps.ledger import Ledger
    from sweeps.requests import Request
    from sweeps.status_view import StatusView

app = typer.Typer()
PANEL = "Watch and steer"
WATCH_S = 1.0
"""Between two looks of `status --watch`."""


@app.command(rich_help_panel=PANEL)
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

    folder, ledger = open_sweep(name, storage)

    if as_json:
        sys.stdout.write(json.dumps(summarise(ledger, waiting(folder.requests)), indent=2) + "\n")
    elif watch:
        with suppress(KeyboardInterrupt):
            _watch(StatusView(ledger, folder))
    else:
        out.print(StatusView(ledger, folder).look(out.width)[1], soft_wrap=True)


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


@app.command(rich_help_panel=PANEL)
def logs(
    name: Name,
    which: Annotated[str, typer.Argument(help="The trial's number, or a parent's name.", show_default=False)],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the trial does.")] = False,
    storage: Storage = RUNS,
) -> None:
    """Print what a trial or a parent has said, and its error if it failed."""
    from trainables.trial_folder import LOG, open_folder

    folder, ledger = open_sweep(name, storage)
    number = _number_of(ledger, which)
    record = ledger.trial(number)
    trial = open_folder(folder.trial_place(number))

    def more() -> bool:
        trial.fetch_log()
        return follow and ledger.trial(number).state in ("proposed", "training")

    trial.fetch_log()
    for line in _follow(trial.path / LOG, more):
        sys.stdout.write(line)
        sys.stdout.flush()
    if record.error:
        out.print(f"[red]{record.error_kind}[/red]")
        print_line(record.error)


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


@app.command(rich_help_panel=PANEL)
def stop(name: Name, numbers: Numbers, storage: Storage = RUNS) -> None:
    """End single trials of a sweep for good: they become stopped, the others go on."""
    from sweeps.steering import stop_request

    folder, ledger = open_sweep(name, storage)
    if not ask(folder, ledger, stop_request(ledger, numbers or [])):
        print_line(f"no driver runs: it happens as soon as the sweep goes on. {folder.resume_command}")


@app.command(rich_help_panel=PANEL)
def pause(name: Name, storage: Storage = RUNS) -> None:
    """End the driver of a sweep, wherever it runs; `resume` goes on. At most the current epochs are done again."""
    from sweeps.requests import Request
    from sweeps.summary import sweep_state

    folder, ledger = open_sweep(name, storage)
    state = sweep_state(ledger)
    if state != "running":
        print_line(f"nothing to pause: the sweep is {state} and no driver runs.")
        return
    ask(folder, ledger, Request.make("pause"))


@app.command(rich_help_panel=PANEL)
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

    folder, ledger = open_sweep(name, storage)
    request = retry_request(ledger, numbers or [], failed=failed)
    if not ask(folder, ledger, request):
        drive_on(folder, address, None)


@app.command(rich_help_panel=PANEL)
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

    folder, ledger = open_sweep(name, storage)
    request = extend_request(ledger, total=trials, known=known, prior=prior, storage=storage, say=print_line)
    if not ask(folder, ledger, request):
        drive_on(folder, address, None)


def ask(folder: SweepFolder, ledger: Ledger, request: Request) -> bool:
    """Leave a request for the driver and close the ledger; returns whether a driver lives that takes it up."""
    from sweeps.requests import put
    from sweeps.summary import sweep_state

    runs = sweep_state(ledger) == "running"
    put(folder.requests, request)
    ledger.close()
    if runs:
        print_line(f"asked the running driver; {folder.command('status')} shows what waits.")
    return runs


@app.command(rich_help_panel=PANEL)
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

    folder, ledger = open_sweep(name, storage)
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
        print_line(f"{total} could go: {folder.command('gc')}{' --weights' if weights else ''} --yes")
