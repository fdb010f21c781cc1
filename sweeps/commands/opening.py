"""What commands begin and end with: reading a file, opening a sweep, driving it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console

from search_spaces.errors import DriverCrashed, ParentError, StorageError, SweepError
from search_spaces.imports import quick_imports
from sweeps.lines import print_as_is

if TYPE_CHECKING:
    from sweeps.changes import Change
    from sweeps.config import SweepConfig
    from sweeps.folder import SweepFolder
    from sweeps.ledger import Ledger
    from sweeps.records import SweepRecord

out = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120)))
err = Console(stderr=True)


def read(file: Path, overrides: list[str], scale: Literal["smoke"] | None) -> SweepConfig:
    """Read a sweep's file, what --set and --scale change included."""
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


def open_sweep(name: str, storage: Path) -> tuple[SweepFolder, Ledger]:
    """Return a sweep that exists; SweepNotFound names those that do."""
    from sweeps.folder import SweepFolder
    from sweeps.ledger import Ledger

    folder = SweepFolder.existing(storage, name)
    return folder, Ledger.at(folder.ledger)


def print_sweep(folder: SweepFolder) -> None:
    """Print which sweep begins, and where it is."""
    from rich.text import Text

    out.print(Text.assemble("sweep ", (folder.name, "bold"), f" in {folder.root}"), soft_wrap=True)


def print_line(text: str) -> None:
    """Print text as it is, not wrapped."""
    print_as_is(out, text)


def drive_on(
    folder: SweepFolder,
    address: str | None,
    trials: int | None,
    take_over: bool = False,
    change: Change | None = None,
) -> None:
    """Run a sweep toward its end, show what it came to, and leave with its exit code."""
    from sweeps.conclude import conclude
    from sweeps.notify import notify
    from sweeps.runner import drive

    began = time.time()
    try:
        outcome = drive(folder, out, address=address, trials=trials, change=change, take_over=take_over)
    except SweepError as error:
        if is_driver_failure(error):
            notify(_sweep_of(folder).document.get("notify"), folder, "failed", print_line)
        raise
    conclude(folder, out)
    sweep = _sweep_of(folder)
    if sweep.completed_at is not None and sweep.completed_at >= began:
        notify(sweep.document.get("notify"), folder, "finished", print_line)
    raise typer.Exit(outcome.exit_code)


def _sweep_of(folder: SweepFolder) -> SweepRecord:
    """Return the sweep's own row of the ledger."""
    from sweeps.ledger import Ledger

    ledger = Ledger.at(folder.ledger)
    try:
        return ledger.sweep()
    finally:
        ledger.close()


def is_driver_failure(error: SweepError) -> bool:
    """Whether an error ended a driver that had begun; exit code 3."""
    return isinstance(error, StorageError | ParentError | DriverCrashed)
