"""Signs of life: what is silence, from when on it counts, and that a worker gives them unit by unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sweeps.pulse import Pulse, beat, count_beats, heard, is_silent
from sweeps.stage_job import judge_shard
from tests.sweeps.stages import real_job, real_stage


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 3)), min_size=1, max_size=30),
    st.floats(1, 200),
)
def test_silence_is_the_time_since_the_last_look_that_found_a_new_beat(
    looks: list[tuple[float, int]], limit: float
) -> None:
    pulse, now, beats = Pulse(), 0.0, 2
    noticed: float | None = None
    for wait_s, more in looks:
        now, beats = now + wait_s, beats + more
        if more or noticed is None:
            noticed = now
        pulse = heard(pulse, beats, now)
        assert is_silent(pulse, now, limit) == (noticed is not None and now - noticed >= limit)


def test_a_worker_that_starts_has_two_minutes_whatever_the_limit_and_one_that_waits_for_ever() -> None:
    assert [is_silent(Pulse(1, 0.0), now, 5) for now in (119, 120)] == [False, True]
    assert [is_silent(Pulse(1, 0.0), now, 500) for now in (499, 500)] == [False, True]
    assert [is_silent(Pulse(2, 0.0), now, 5) for now in (4, 5)] == [False, True]
    assert not is_silent(Pulse(), 1e9, 5)


def test_a_beat_is_counted_and_one_that_nobody_listens_to_costs_nothing(tmp_path: Path) -> None:
    place = tmp_path / "0"
    assert count_beats(place) == 0
    for expected in (1, 2, 3):
        beat(place)
        assert count_beats(place) == expected
    beat(None)
    beat(tmp_path / "put away" / "0")
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_worker_beats_when_it_begins_when_it_is_ready_and_after_every_unit(trained: Any, tmp_path: Path) -> None:
    stage = real_stage(images=50, batch_size=5)  # the clean passes are a unit, those who are right some more
    (tmp_path / "pulses").mkdir()
    judge_shard(real_job(trained, tmp_path / "store", stage), 0, 1, tmp_path / "pulses" / "0")
    units = len(list((tmp_path / "store").rglob("*.npz")))
    assert units >= 3
    assert count_beats(tmp_path / "pulses" / "0") == 2 + units
    judge_shard(real_job(trained, tmp_path / "store", stage), 0, 1, tmp_path / "pulses" / "1")
    assert count_beats(tmp_path / "pulses" / "1") == 2, "all of it was in the store"
