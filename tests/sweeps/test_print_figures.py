"""Figures for a paper: whole files of the promised kind, equal bytes for equal ledgers, bounds hollow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image
from typer.testing import CliRunner

import run_sweep
from search_spaces.errors import SweepError
from sweeps.folder import SweepFolder
from sweeps.importances import CHANCE, Importances
from sweeps.ledger import Ledger
from sweeps.pareto import knee
from sweeps.print_figures import COLUMN, DPI, draw_front, draw_hypervolume, draw_importances, write_figures
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers


def test_both_kinds_are_written_and_the_command_prints_their_paths(unfinished: Ledger, folder: SweepFolder) -> None:
    found = CliRunner().invoke(run_sweep.app, ["figures", folder.name, "--storage", str(folder.storage)])
    assert found.exit_code == 0, found.output
    written = [Path(line) for line in found.stdout.splitlines()]
    assert [p.name for p in written] == ["front.pdf", "front.png", "hypervolume.pdf", "hypervolume.png"]
    assert sorted(p.name for p in (folder.root / "figures").iterdir()) == sorted(p.name for p in written)
    pdf = (folder.root / "figures" / "front.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf  # which many publishers refuse
    with Image.open(folder.root / "figures" / "front.png") as image:
        assert image.width == pytest.approx(COLUMN * DPI, rel=0.1)


def test_equal_ledgers_give_equal_bytes(unfinished: Ledger, tmp_path: Path) -> None:
    snapshot = Snapshot.read(unfinished)
    one, other = (write_figures(snapshot, tmp_path / place) for place in "ab")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    moved = [t if t.number != 1 else replace(t, clean_acc=0.91) for t in snapshot.trials]
    third = write_figures(replace(snapshot, trials=tuple(moved)), tmp_path / "c")
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(one, third, strict=True))


def test_bounds_are_hollow_the_front_is_large_and_the_knee_has_a_ring(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    (axes,) = draw_front(snapshot).axes
    points = {
        tuple(round(float(x), 4) for x in place): (len(drawn.get_facecolor()) > 0, float(drawn.get_sizes()[0]))
        for drawn in axes.collections
        for place in drawn.get_offsets()
        if drawn.get_label().startswith("_")
    }
    filled, size = points[0.80, round(180 / 256, 4)]
    hollow, small = points[0.78, round(150 / 256, 4)]
    assert (filled, hollow) == (True, False)
    assert size > small
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(labels) >= {"plain", "jasmin", "adversarial", "upper bound"}
    values = [(t.clean_acc or 0.0, t.robust_acc or 0.0) for t in snapshot.front]
    assert ("knee" in labels) == (knee(values) is not None)
    assert axes.get_title() == ""


def test_the_hypervolume_never_falls(unfinished: Ledger) -> None:
    for axes in draw_hypervolume(Snapshot.read(unfinished)).axes:
        (line,) = axes.lines
        heights = [float(y) for y in line.get_ydata()]  # type: ignore[union-attr]
        assert heights == sorted(heights)
        assert 0 < heights[-1] < 1


def test_a_bar_stands_for_every_parameter_and_a_line_for_chance() -> None:
    found = [
        Importances("", "clean_acc", 30, {"method": 0.6, "training.learning_rate": 0.2, CHANCE: 0.1}),
        Importances("jasmin", "clean_acc", 20, {"jasmin.k": 0.4, CHANCE: 0.05}),
        Importances("", "robust_acc", 30, {"method": 0.9, CHANCE: 0.02}),
    ]
    left, right = draw_importances(found).axes
    assert [bar.get_width() for bar in left.patches] == [0.6, 0.2, 0.4]  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in right.patches] == [0.9]  # type: ignore[attr-defined]
    assert [line.get_xdata()[0] for line in left.lines] == [0.1, 0.1, 0.05]  # type: ignore[index]
    assert [label.get_text() for label in left.get_yticklabels()] == ["method", "learning_rate", "jasmin: k"]


def test_the_readers_own_settings_neither_matter_nor_change(
    unfinished: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = write_figures(Snapshot.read(unfinished), tmp_path / "a", ["png"])[:1]
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    (after,) = write_figures(Snapshot.read(unfinished), tmp_path / "b", ["png"])[:1]
    assert before.read_bytes() == after.read_bytes()
    assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("formats", [["svg"], [], ["pdf", "eps"]])
def test_another_format_is_refused_before_anything_is_written(
    unfinished: Ledger, tmp_path: Path, formats: list[str]
) -> None:
    with pytest.raises(SweepError, match="allowed are pdf and png"):
        write_figures(Snapshot.read(unfinished), tmp_path / "figures", formats)
    assert not (tmp_path / "figures").exists()


def test_without_a_finished_trial_there_is_nothing_to_draw(open_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no finished trial"):
        write_figures(Snapshot.read(open_ledger()), tmp_path)


def test_a_figure_is_replaced_as_a_whole(unfinished: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot.read(unfinished)
    path, *_ = write_figures(snapshot, tmp_path, ["png"])
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_figures(snapshot, tmp_path, ["png"])
    assert path.read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_sweep_of_one_objective_has_a_front_and_no_hypervolume(
    open_ledger: Callable[..., Ledger], tmp_path: Path
) -> None:
    ledger = open_ledger(ledgers.unfinished, objectives=("robust_acc",))
    assert [p.name for p in write_figures(Snapshot.read(ledger), tmp_path, ["png"])] == ["front.png"]
