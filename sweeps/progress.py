"""The live view: one updating block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from sweeps.ledger import Ledger
from sweeps.parents import called
from sweeps.records import CLOSED, OPEN, State, TrialRecord
from sweeps.summary import front_of

REFRESH_S = 1.0


class Progress:
    """Shows how far the sweep is: `say` prints a line that stays, `refresh` redraws the block once a second."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger = ledger
        self._console = console
        self._started = time.monotonic()
        self._drawn = 0.0
        self._closed_at_start = len(ledger.trials(CLOSED))
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
        self._console.print(f"[dim]{_clock(time.monotonic() - self._started)}[/dim] ", end="")
        self._console.print(text, markup=False, highlight=False)

    def refresh(self) -> None:
        """Redraw the block if it is older than `REFRESH_S`."""
        now = time.monotonic()
        if self._live is None or now - self._drawn < REFRESH_S:
            return
        self._drawn = now
        sweep = self._ledger.sweep()
        trials = self._ledger.trials(bare=True)
        remaining = self._eta(trials, sweep.requested, now - self._started)
        block = render_block(trials, sweep.requested, sweep.objectives, remaining, self._ledger.parents())
        self._live.update(block, refresh=True)

    def _eta(self, trials: Sequence[TrialRecord], requested: int, elapsed: float) -> float | None:
        closed = sum(t.state in CLOSED for t in trials)
        here = closed - self._closed_at_start
        return elapsed / here * (requested - closed) if here > 0 else None


def render_block(
    trials: Sequence[TrialRecord],
    requested: int,
    objectives: Sequence[str],
    remaining_s: float | None,
    parents: Sequence[TrialRecord] = (),
) -> RenderableType:
    """Draw the block: a bar, what is open, the best value of each objective and the size of the front."""
    closed = sum(t.state in CLOSED for t in trials)
    counts = {state: sum(t.state is state for t in trials) for state in (*OPEN, State.FAILED)}
    open_parents = [p for p in parents if p.state in (State.PROPOSED, State.TRAINING)]
    here = [f"{called(p)} {p.state}, {p.epochs} epochs done" for p in open_parents]
    here += [f"{count} {state}" for state, count in counts.items() if count]
    now = ", ".join(here) or "nothing running"
    left = "" if remaining_s is None else f"   about {_clock(remaining_s)} left"
    members = front_of(trials, objectives)
    best = [f"best {o} {max(v for t in members if (v := t.value(o)) is not None):.3f}" for o in objectives if members]
    line = f"front {len(members)}" + "".join(f"   {text}" for text in best)
    bar = ProgressBar(total=max(requested, 1), completed=closed, width=40)
    return Group(bar, Text(f"{closed} of {requested} trials done   {now}{left}"), Text(line))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
