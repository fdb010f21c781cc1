"""Ctrl-C, SIGTERM and SIGUSR1: the first one stops the driver soon, another one at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from rich.console import Console

from sweeps.exit_codes import INTERRUPTED
from sweeps.folder import SweepFolder
from sweeps.halt import Halt
from sweeps.lines import print_as_is

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def signal_received(halt: Halt, console: Console, folder: SweepFolder) -> None:
    """First signal: stop soon, everything kept. Second: now."""
    if halt.requested:
        print_as_is(console, f"\nstopped at once. {folder.resume_command}")
        os._exit(INTERRUPTED)
    halt.requested = True
    console.print("\nstopping; once more stops at once.", highlight=False)


def install(handler: Callable[..., None]) -> None:
    """Handle all three so, whatever Ray or Tune have installed meanwhile."""
    for number in SIGNALS:
        signal.signal(number, handler)


@contextlib.contextmanager
def handled_signals(halt: Halt, console: Console, folder: SweepFolder) -> Iterator[None]:
    """Let a signal ask for a stop while the block runs, and a second one end the process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install(lambda *_: signal_received(halt, console, folder))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
