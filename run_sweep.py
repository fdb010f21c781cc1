"""The command line of Paretune; the commands are in `sweeps/commands`."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from search_spaces.errors import SweepError
from search_spaces.storage import storage_problem
from sweeps.commands import choose, clusters, run, see, steer
from sweeps.commands.opening import err, is_driver_failure
from sweeps.exit_codes import BAD_INPUT, DRIVER_FAILED
from sweeps.lines import print_as_is

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Sweeps for robust vision transformers: Optuna searches, Ray Tune trains, attacks judge, MLflow compares.",
    epilog="Exit codes: 0 done, 1 done with failed trials, 2 bad input, 3 the driver failed, 130 interrupted.",
)
for group in (run, steer, see, choose):
    app.add_typer(group.app)
app.add_typer(clusters.app, name="cluster", rich_help_panel="Run")


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except SweepError as error:
        print_as_is(err, str(error), "red")
        sys.exit(DRIVER_FAILED if is_driver_failure(error) else BAD_INPUT)
    except Exception as error:
        text = _storage_text(error)
        if not text:
            raise
        print_as_is(err, text, "red")
        sys.exit(DRIVER_FAILED)


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


def run_and_leave() -> None:
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
    run_and_leave()
