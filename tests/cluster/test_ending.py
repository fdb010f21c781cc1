"""Nodes that end: what still fits on them, where that is written, and what a worker does about it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import draining
from cluster.draining import Units, without
from cluster.ending import MARGIN, SPARE_S, VARIABLE, ends_at, fits
from search_spaces.errors import NodeEnding

SECONDS = st.floats(0, 1e7)


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says when this node ends; not written yet."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "at"))
    return tmp_path / "at"


@given(SECONDS, SECONDS, SECONDS)
def test_what_fits_would_be_over_before_the_end_even_if_it_took_its_margin_longer(
    expected_s: float, now: float, left_s: float
) -> None:
    assert fits(expected_s, now, now + left_s) is (now + expected_s * MARGIN + SPARE_S <= now + left_s)


def test_on_a_node_without_an_end_everything_fits_and_after_an_end_nothing() -> None:
    assert fits(1e9, now=0, end=None)
    assert fits(None, now=9, end=10), "nothing is known: it is tried"
    assert not fits(None, now=10, end=10)
    assert not fits(0, now=10, end=10)


def test_the_end_is_read_from_the_file_that_the_environment_names_and_may_come_nearer(end: Path) -> None:
    assert ends_at() is None, "the file is not there"
    end.write_text("1700000000\n")
    assert ends_at() == 1_700_000_000
    end.write_text("1600000000\n")
    assert ends_at() == 1_600_000_000
    end.write_text("soon")
    assert ends_at() is None


def test_without_the_variable_a_node_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert ends_at() is None


def test_no_unit_begins_that_would_take_as_long_as_the_longest_and_not_end(
    end: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained: list[str] = []
    monkeypatch.setattr(draining, "drain_this_node", lambda why, at: drained.append(f"{why} {at:g}"))
    end.write_text("100")
    clock = iter([0.0, 10.0, 40.0, 65.0])
    units = Units("pgd on trial 3", clock=lambda: next(clock))
    units.require()  # nothing is known: it is begun
    units.require()  # one took 10 s, 90 s are left
    units.require()  # one took 30 s, 60 s are left
    assert drained == []
    with pytest.raises(NodeEnding, match="pgd on trial 3: the node ends in 35 s"):
        units.require()  # one took 30 s, which with its margin is more than the 35 s that are left
    assert drained == ["pgd on trial 3 100"]


def test_what_others_have_taken_counts_for_the_first_unit(end: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "drain_this_node", lambda why, at: None)
    end.write_text("100")
    Units("pgd", 50.0, clock=lambda: 30.0).require()
    with pytest.raises(NodeEnding):
        Units("pgd", 60.0, clock=lambda: 30.0).require()


def test_on_a_node_without_an_end_units_are_only_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    clock = iter([0.0, 7.0, 9.0])
    units = Units("pgd", clock=lambda: next(clock))
    for _ in range(3):
        units.require()
    assert units.longest_s == 7.0


def test_nodes_that_drain_are_left_out() -> None:
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": True}]
    assert [node["NodeID"] for node in without(nodes, {"b": 1, "c": 2})] == ["a"]


def test_a_worker_outside_of_ray_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(asked.append("ray")))
    monkeypatch.setattr(draining, "import_module", lambda name: SimpleNamespace(DrainNodeReason=asked.append(name)))
    draining.drain_this_node("why", 0.0)
    assert asked == ["ray"]
