"""The live view of a driver: one updating block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweeps.ledger import Ledger
from sweeps.live_block import plain_line, render_block
from sweeps.live_reader import LiveReader
from sweeps.live_state import Member, PoolState
from sweeps.pace import in_clock

REFRESH_S = 1.0
SHARE = 0.02
"""Of the driver's time, at most, goes into looking: a look that takes long is followed by a longer pause."""
HEARTBEAT_S = 60.0
"""Between two lines that only say how far it is, where there is no terminal."""


class Progress:
    """Shows how far the sweep is: `say` prints a line that stays, `refresh` looks at the ledger once a second."""

    def __init__(
        self, ledger: Ledger, console: Console, requests: Path, pool: Callable[[], PoolState | None] = lambda: None
    ) -> None:
        """Args: requests: folder of what other terminals ask for; pool: what the driver knows of its attacks."""
        self._reader = LiveReader(ledger, requests)
        self._console = console
        self._pool = pool
        self._started = self._said_at = time.monotonic()
        self._next_look = 0.0
        self._front: list[int] | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line, with the time since the start."""
        now = self._said_at = time.monotonic()
        line = Text(in_clock(now - self._started), "dim").append(f" {text}", "not dim")
        self._console.print(line, soft_wrap=True)

    def refresh(self) -> None:
        """Look at the ledger if the last look is old enough: redraw the block, or print what has changed."""
        now = time.monotonic()
        if now < self._next_look:
            return
        state = self._reader.read(time.time(), self._pool())
        members = [member.number for member in state.front]
        if self._front is not None and set(members) != set(self._front):
            self.say(front_line(state.front, self._front))
        self._front = members
        if self._live is not None:
            size = self._console.size
            self._live.update(render_block(state, size.width, size.height - 1), refresh=True)
        elif now - self._said_at >= HEARTBEAT_S:
            self.say(plain_line(state))
        took = time.monotonic() - now
        self._next_look = now + max(REFRESH_S, took / SHARE)


def front_line(front: Sequence[Member], before: Sequence[int]) -> str:
    """Return ``front: 3 trials, 7 joins, 2 and 4 leave``. Args: before: numbers of its members at the last look."""
    numbers = [member.number for member in front]
    joined = sorted(set(numbers) - set(before))
    left = sorted(set(before) - set(numbers))
    parts = [f"front: {len(numbers)} trial{'s' * (len(numbers) != 1)}"]
    parts += [f"{_listed(joined)} join{'s' * (len(joined) == 1)}"] if joined else []
    parts += [f"{_listed(left)} leave{'s' * (len(left) == 1)}"] if left else []
    return ", ".join(parts)


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
