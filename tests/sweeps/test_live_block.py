"""The block of the live view, rendered to text."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sweeps.live_block import cut, plain_line, render_block, share_room
from sweeps.live_state import Attack, LiveState, Member, Training
from sweeps.pace import Left, Pace

QUIET = LiveState("s", 20, 0, 0, (), (), (), 0, (), ("clean_acc", "robust_acc"), ("plain", "adversarial"))
BUSY = replace(
    QUIET,
    finished=10,
    stopped=1,
    failed=((4, "nan"), (9, "crash")),
    trainings=(
        Training("parent robust", "", 2, 5, {"clean": 0.5}),
        Training("7", "adversarial", 8, 12, {"clean": 0.912, "robust": 0.433, "loss": 1.2}),
        Training("8", "plain", 0, 12, {}, stopping=True),
        Training("12", "plain", 0, None, {}, started=False),
    ),
    attacks=(
        Attack(5, "plain", "autoattack 11 of 12: fab_t", (1, 2, 3)),
        Attack(6, "adversarial", "autoattack 3 of 12: apgd_t, target 2", (0, 0, 1)),
    ),
    to_judge=2,
    front=(Member(3, "plain", (0.986, 0.3), exact=False), Member(2, "adversarial", (0.9, 0.7))),
    pace=Pace(0.5, 5234.0),
    left=Left(250.0),
    asked=("stop 8",),
    elapsed_s=309.0,
)


def drawn(state: LiveState, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render_block(state, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [80, 120])
def test_everything_that_happens_is_in_the_block(width: int) -> None:
    lines = drawn(BUSY, width)
    assert lines[0].endswith("13 of 20 trials done   05:09   about 4 min left")
    rows = {line[:10].strip() or line.split()[0]: line for line in lines}
    assert "epoch 8/12  clean 0.912  robust 0.433" in rows["7"]
    assert "parent robust  " in rows["training"]
    assert rows["8"].endswith("epoch 0/12  stopping")
    assert rows["12"].split()[-2:] == ["plain", "waits"]
    assert rows["attacking"].endswith("autoattack 11 of 12: fab_t  1 of 3 shards done")
    assert rows["6"].endswith("apgd_t, target 2  waits")
    assert any("  2 trained, waiting for the first attack" in line for line in lines)
    assert rows["front"].startswith("front     2 of 10 finished (clean/robust, ≤: attacks to come)")
    assert "3 plain 0.986/≤0.300  2 adversarial 0.900/0.700" in " ".join(map(str.strip, lines)).replace(")  3", ") 3")
    assert rows["pace"] == "pace      30 epochs a minute, 5,200 training images a second"
    assert rows["notes"].startswith("notes     2 failed: trial 4 (nan), trial 9 (crash); 1 stopped; asked for: stop")


def test_before_anything_has_begun_it_says_what_one_waits_for() -> None:
    lines = drawn(QUIET)
    assert "time left: –" in lines[0]
    assert lines[1:] == [
        "training  the first workers are starting",
        "front     no trial is finished yet",
    ]


def test_without_a_driver_nothing_trains_and_no_time_is_left() -> None:
    lines = drawn(replace(BUSY, alive=False, elapsed_s=None, left=None, pace=None))
    assert lines[0].endswith("13 of 20 trials done")
    assert lines[1].startswith("to train  parent robust")
    assert not any("training  " in line for line in lines)


def test_a_crowd_is_cut_and_counted() -> None:
    many = tuple(Training(str(n), "adversarial", n, 100, {"clean": 0.5}) for n in range(40))
    lines = drawn(replace(BUSY, trainings=many))
    assert len(lines) <= 24
    shown = sum("epoch" in line and "epochs a minute" not in line for line in lines)
    assert f"… and {40 - shown} more" in "\n".join(lines)
    assert any("fab_t" in line for line in lines)
    assert any(line.startswith("front") for line in lines)


counts = st.integers(0, 60)
labels = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=90)


@given(counts, counts, counts, st.integers(40, 130), st.integers(8, 40), labels)
def test_it_always_fits(trainings: int, attacks: int, members: int, width: int, height: int, label: str) -> None:
    state = replace(
        BUSY,
        trainings=tuple(Training(str(n), label, n, 100, {"clean": 0.5, "robust": 0.1}) for n in range(trainings)),
        attacks=tuple(Attack(n, label, f"autoattack 3 of 12: {label}", (0, 1, 2)) for n in range(attacks)),
        front=tuple(Member(n, label, (0.5, 0.5)) for n in range(members)),
    )
    lines = render_block(state, width, height).plain.split("\n")
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


@given(counts, counts, st.integers(0, 40))
def test_room_is_shared_without_waste(first: int, second: int, room: int) -> None:
    mine, theirs = share_room(first, second, room)
    assert mine + theirs == min(room, first + second)
    assert (mine <= first, theirs <= second) == (True, True)


@given(st.lists(st.integers(), max_size=30), st.integers(0, 30))
def test_nothing_is_lost_in_a_cut(items: list[int], lines: int) -> None:
    found = cut(items, lines)
    assert len(found) <= lines or not items
    if found and isinstance(found[-1], str):
        assert int(found[-1].split()[2]) == len(items) - (len(found) - 1)
    elif lines:
        assert found == items


def test_a_log_gets_one_line() -> None:
    assert plain_line(BUSY) == "13 of 20 done, 3 training, 2 attacked, 2 to be attacked, 2 failed, about 4 min left"
    assert plain_line(QUIET) == "0 of 20 done, time left: –"
