"""The reader of the live view: what it keeps equals what a fresh one finds, and a look costs little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.live_reader import LiveReader, describe_stage
from sweeps.live_state import LiveState, PoolState
from sweeps.pace import Left
from sweeps.requests import Request, put
from tests.sweeps import ledgers


def look(ledger: Ledger, folder: SweepFolder, now: float = 0.0, pool: PoolState | None = None) -> LiveState:
    return LiveReader(ledger, folder.requests).read(now, pool)


def test_the_ledger_alone_has_the_whole_view(unfinished: Ledger, folder: SweepFolder) -> None:
    put(folder.requests, Request.make("stop", trials=(6,)))
    state = look(unfinished, folder)
    assert (state.requested, state.finished, state.closed, state.failed) == (8, 4, 5, ((4, "nan"),))
    assert [(t.name, t.label, t.epochs, t.planned, t.stopping) for t in state.trainings] == [
        ("5", "plain", 0, 3, False),
        ("6", "jasmin", 2, 3, True),
    ]
    assert [t.started for t in state.trainings] == [False, True]
    assert state.trainings[1].figures == {"loss": 1.0}
    assert [(a.number, a.label, a.what, a.shards) for a in state.attacks] == [(7, "adversarial", "pgd", None)]
    assert [(m.number, m.values) for m in state.front] == [
        (0, (0.95, 20 / 256)),
        (1, (0.9, 100 / 256)),
        (2, (0.8, 180 / 256)),
    ]
    assert all(m.exact for m in state.front)
    assert state.asked == ("stop 6",)
    assert state.labels == ("plain", "jasmin", "adversarial")


def test_what_only_the_driver_knows_is_given_beside(unfinished: Ledger, folder: SweepFolder) -> None:
    pool = PoolState(2, {(7, ("validation", 0)): (1, 1, 3)})
    assert look(unfinished, folder, pool=pool).attacks[0].shards == (1, 1, 3)


def test_following_a_sweep_sees_what_a_fresh_look_would(
    open_ledger: Callable[..., Ledger], folder: SweepFolder
) -> None:
    ledger = open_ledger(requested=6)
    reader, seen = LiveReader(ledger, folder.requests), []
    started = replace(ledgers.stage_record(2), state="running")
    acts: list[Callable[[], object]] = [
        lambda: ledger.note_driver("driver started", {}),
        lambda: ledgers.finish(ledger, 0, "plain", 0.9, 100, 90),
        lambda: ledgers.finish(ledger, 1, "jasmin", 0.8, 150, None),
        lambda: ledgers.propose(ledger, 2, "plain"),
        lambda: ledgers.train(ledger, 2, 0.95),
        lambda: ledger.start_stage(started),
        lambda: ledgers.attack(ledger, 1, 140, position=1, exact=True),
        lambda: ledger.fail_stage(started, "it fails"),
        lambda: ledgers.propose(ledger, 3, "jasmin"),
        lambda: ledgers.start(ledger, 3, 2),
        lambda: ledger.grant(Request.make("stop", trials=(3,))),
        lambda: ledger.grant(Request.make("retry", trials=(2,))),
        lambda: ledger.raise_total(9),
    ]
    with Lease(ledger):
        for act in acts:
            act()
            now = time.time()
            seen.append(reader.read(now))
            assert replace(seen[-1], left=None) == replace(look(ledger, folder, now), left=None)
    assert seen[-1].requested == 9
    assert seen[7].failed == ((2, "attack"),)
    assert [(m.number, m.exact) for m in seen[2].front] == [(0, True), (1, False)]
    assert [(m.number, m.exact) for m in seen[6].front] == [(0, True), (1, True)]


def test_the_pace_and_the_time_left_are_of_the_last_driver_alone(
    open_ledger: Callable[..., Ledger], folder: SweepFolder
) -> None:
    ledger = open_ledger(requested=4, planned_stages=())
    with Lease(ledger):
        ledger.note_driver("driver started", {})
        ledgers.propose(ledger, 0, "plain")
        ledgers.train(ledger, 0, 0.9)
        ledger.finish_without_attack(0)
        ledger.note_driver("driver started", {})
        reader = LiveReader(ledger, folder.requests)
        assert (reader.read(time.time()).pace, reader.read(time.time()).left) == (None, None)
        ledgers.propose(ledger, 1, "plain")
        ledgers.start(ledger, 1, 2)
    began = next(e.at for e in reversed(ledger.events()) if e.kind == "training")
    state = reader.read(began + 10)
    assert state.pace is not None
    assert state.pace.epochs_per_s == pytest.approx(0.2)
    assert state.left == Left(pytest.approx((1 + 3 + 3) / 0.2))


def test_the_stages_that_the_front_will_need_are_counted(
    open_ledger: Callable[..., Ledger], folder: SweepFolder
) -> None:
    ledger = open_ledger(requested=2)
    with Lease(ledger):
        ledger.note_driver("driver started", {})
        ledgers.finish(ledger, 0, "plain", 0.9, 100, 90)
        ledgers.finish(ledger, 1, "plain", 0.8, 150, None)
        least = look(ledger, folder).left
        assert least == Left(32.5, at_least=True)  # the dear attack on trial 1; nothing is known of test images
        ledgers.attack(ledger, 1, 140, position=1, exact=True)
        ledgers.test_stages(ledger, 0, 80, 80, 0.9)
    assert look(ledger, folder).left == Left(2.5 + 32.5)
    assert look(ledger, folder, pool=PoolState(2)).left == Left((2.5 + 32.5) / 2)


def test_a_stage_is_described_for_people() -> None:
    plan = ledgers.parted() + ledgers.parted("test") + (ledgers.planned("cw", 9, plan="more"),)
    found = [describe_stage(stage, plan) for stage in plan]
    assert found[0] == "pgd"
    assert found[2] == "autoattack 2 of 6: apgd_t, target 0"
    assert found[5] == "autoattack 5 of 6: fab_t"
    assert found[7] == "pgd (test images)"
    assert found[-1] == "more: cw"
