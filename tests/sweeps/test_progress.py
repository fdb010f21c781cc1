"""The driver's view: plain lines where there is no terminal, one block where there is."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from sweeps import progress
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.live_state import Member
from sweeps.progress import HEARTBEAT_S, Progress, front_line
from tests.sweeps import ledgers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(**options: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(width=80, height=24, file=file, **options), file


def test_a_log_hears_of_the_front_and_once_a_minute_how_far_it_is(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, clock: Clock
) -> None:
    ledger, (out, file) = open_ledger(), console()
    with Lease(ledger), Progress(ledger, out, folder.requests) as view:
        view.refresh()
        ledgers.finish(ledger, 0, "plain", 0.9, 100, 90)
        clock.now += 2
        view.refresh()
        for _ in range(int(3 * HEARTBEAT_S)):
            clock.now += 1
            view.refresh()
    lines = file.getvalue().splitlines()
    assert lines[0] == "00:02 front: 1 trial, 0 joins"
    assert [line.split(" ", 1)[1] for line in lines[1:]] == ["1 of 8 done, time left: –"] * 3
    assert [line[:5] for line in lines[1:]] == ["01:02", "02:02", "03:02"]


def test_lines_that_are_said_put_the_next_heartbeat_off(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, clock: Clock
) -> None:
    out, file = console()
    view = Progress(open_ledger(), out, folder.requests)
    for second in range(120):
        clock.now += 1
        if second % 30 == 0:
            view.say("trial 7 (plain) [trained]: clean 0.9")
        view.refresh()
    assert file.getvalue().splitlines() == [
        f"0{m}:{s} trial 7 (plain) [trained]: clean 0.9" for m, s in ((0, "01"), (0, "31"), (1, "01"), (1, "31"))
    ]


def test_on_a_terminal_the_block_goes_and_what_was_said_stays(unfinished: Ledger, folder: SweepFolder) -> None:
    out, file = console(force_terminal=True)
    with Progress(unfinished, out, folder.requests) as view:
        view.refresh()
        view.say("something happened")
    text = file.getvalue()
    assert "5 of 8 trials done" in text
    assert "something happened" in text
    assert text.endswith("\x1b[?25h") or "\x1b[2K" in text.split("something happened")[1]  # the block is wiped away


def test_a_look_that_takes_long_is_followed_by_a_long_pause(
    open_ledger: Callable[..., Ledger], folder: SweepFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Progress(open_ledger(), console()[0], folder.requests)
    looks: list[float] = []
    read = view._reader.read

    def slow(now: float, pool: object) -> object:
        looks.append(clock.now)
        clock.now += 0.2
        return read(now, None)

    monkeypatch.setattr(view._reader, "read", slow)
    for _ in range(300):
        clock.now += 0.1
        view.refresh()
    assert looks[1] - looks[0] >= 0.2 / progress.SHARE - 1e-6


def test_a_change_of_the_front_is_one_line() -> None:
    members = [Member(n, "plain", (0.5,)) for n in (3, 9, 4)]
    assert front_line(members, [3, 4]) == "front: 3 trials, 9 joins"
    assert front_line(members, [1, 2, 3, 9]) == "front: 3 trials, 4 joins, 1 and 2 leave"
    assert front_line(members[:1], [3, 4]) == "front: 1 trial, 4 leaves"
    assert front_line([], [3, 4]) == "front: 0 trials, 3 and 4 leave"
