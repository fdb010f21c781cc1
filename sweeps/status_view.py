"""What `status` shows: the block of the live view, read from the ledger alone, with what else one asks of a sweep.

What only the driver knows is left out: how many shards of an attack stage are done and which stages wait for room, and
that several run at once, so that time left counts the attacks one after the other.
"""

from __future__ import annotations

import time
from dataclasses import replace

from rich.text import Text

from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.live_block import render_block
from sweeps.live_reader import LiveReader
from sweeps.parents import names_of
from sweeps.records import State
from sweeps.summary import sweep_state

ALL = 10_000
"""Lines for who does not watch: every open trial is named."""


class StatusView:
    """Reads a sweep again and again; a look after the first one is cheap."""

    def __init__(self, ledger: Ledger, folder: SweepFolder) -> None:
        self._ledger = ledger
        self._folder = folder
        self._reader = LiveReader(ledger, folder.requests)

    def look(self, width: int, height: int = ALL) -> tuple[str, Text]:
        """Return the sweep's state (`sweep_state`) and what to show, so many characters wide and lines high."""
        state = sweep_state(self._ledger)
        live = self._reader.read(time.time())
        if state != "running":
            live = replace(live, alive=False, elapsed_s=None, left=None, pace=None)
        lines = [Text(f"{live.name}: {state}", "bold")]
        below = self._below(state)
        lines.append(render_block(live, width, max(8, height - len(lines) - len(below))))
        return state, Text("\n", no_wrap=True).join([*lines, *below])

    def _below(self, state: str) -> list[Text]:
        lines = [
            f"parent {name}: {parent.state}, {parent.epochs} epochs done"
            for parent in self._ledger.parents()
            if parent.state in (State.TRAINED, State.FAILED)
            for name in names_of(parent)
        ]
        lines += [f"prior knowledge: {count} trials of {other}" for other, count in self._ledger.prior_counts().items()]
        if state in ("interrupted", "paused"):
            lines.append(f"to go on: {self._folder.resume_command}")
        return [Text(line) for line in lines]
