"""Sweeps over each other: joined where they asked the same question, and otherwise only shown, with the differences."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import run_sweep
from search_spaces.errors import ConfigError
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.overlay import build_overlay, incomparable, joint_front, render_overlay
from sweeps.pareto import dominates
from sweeps.records import SweepRecord
from sweeps.snapshot import PALETTE, Snapshot
from tests.sweeps import ledgers


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Ledger, Ledger]]:
    """Sweeps one and two of the same question; two has a better robust trial and a worse clean one."""
    one = ledgers.unfinished(ledgers.folder_at(tmp_path, "one"))
    two = ledgers.empty(ledgers.folder_at(tmp_path, "two"), requested=3)
    with Lease(two):
        ledgers.finish(two, 0, "plain", 0.94, 60, 20)
        ledgers.finish(two, 1, "adversarial", 0.81, 210, 200)
        ledgers.finish(two, 2, "trades", 0.70, 100, None)
    yield one, two
    one.close()
    two.close()


def figure_of(page: str, name: str = "figure") -> dict[str, Any]:
    found = re.search(rf"^const {name} = (.*);$", page, re.MULTILINE)
    assert found
    figure: dict[str, Any] = json.loads(found.group(1))
    return figure


def page_of(*snapshots: Snapshot) -> str:
    return render_overlay(snapshots, ["finished"] * len(snapshots))


def test_the_joint_front_is_that_of_all_exact_trials_together(pair: tuple[Ledger, Ledger]) -> None:
    snapshots = [Snapshot.read(ledger) for ledger in pair]
    exact = [
        (place, t, (t.clean_acc or 0.0, t.robust_acc or 0.0))
        for place, s in enumerate(snapshots)
        for t in s.trials
        if t.exact
    ]
    slow = {(p, t.number) for p, t, v in exact if not any(dominates(other, v) for _, _, other in exact)}
    found = joint_front(snapshots)
    assert {(place, t.number) for place, t in found} == slow == {(0, 0), (0, 1), (1, 1)}
    assert [t.clean_acc for _, t in found] == [0.95, 0.90, 0.81]


def test_the_page_has_every_front_the_joint_one_and_who_is_on_it(pair: tuple[Ledger, Ledger], tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    found = CliRunner().invoke(run_sweep.app, ["report", "one", "two", "--storage", str(storage)])
    assert found.exit_code == 0, found.output
    page = (storage / "one+two.html").read_text()
    assert found.stdout.strip() == str(storage / "one+two.html")
    sweeps = page.partition('id="sweeps"')[2].partition("</table>")[0]
    assert [re.findall(r'<td class="n">\s*([\d.]+)', row) for row in sweeps.split("<tr>")[2:]] == [
        ["3", f"{0.80 * 180 / 256 + 0.10 * 100 / 256 + 0.05 * 20 / 256:.3f}", "2"],
        ["2", f"{0.81 * 200 / 256 + 0.13 * 20 / 256:.3f}", "1"],
    ]
    assert "not comparable" not in page
    joint = page.partition('id="joint"')[2].partition("</table>")[0]
    assert joint.count("<tr>") == 4
    everything = page.partition('id="all-fronts"')[2].partition("</table>")[0]
    assert everything.count("<tr>") == 6


def test_colours_are_sweeps_and_symbols_are_methods(pair: tuple[Ledger, Ledger]) -> None:
    page = page_of(*map(Snapshot.read, pair))
    traces = figure_of(page)["data"]
    one, two = (t for t in traces if t["mode"] == "markers" and not t.get("showlegend", True))
    assert (one["marker"]["color"], two["marker"]["color"]) == (PALETTE[0], PALETTE[1])
    assert (one["name"], two["name"]) == ("one", "two")
    assert one["marker"]["symbol"] == ["circle", "square", "triangle-up", "square-open"]
    assert two["marker"]["symbol"] == ["circle", "triangle-up", "diamond-open"]
    assert one["marker"]["size"][0] > one["marker"]["size"][3]
    (joint,) = (t for t in traces if t["name"] == "joint front")
    assert joint["x"] == [0.81, 0.90, 0.95]
    assert [t["name"] for t in figure_of(page, "growth")["data"]] == ["one", "two"]


def changed(**changes: Any) -> SweepRecord:
    return replace(ledgers.sweep_record(name="two"), **changes)


FAR = ledgers.cascade("pgd", "autoattack", threat={"norm": "linf", "epsilon": 4 / 255})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data_digest": "0123456789abcdef"}, "other images: d41d8cd98f00 and 0123456789ab"),
        ({"split_sizes": {"validation": 9}}, "other validation split: None and 9 images"),
        ({"objectives": ("clean_acc",)}, "other objectives: clean_acc, robust_acc and clean_acc"),
        ({"planned_stages": ledgers.cascade("pgd")}, "other attacks: pgd, autoattack and pgd"),
        ({"planned_stages": FAR}, 'pgd: threat.epsilon: "8/255" -> "4/255"'),
        ({"planned_stages": ledgers.cascade("pgd", "autoattack", images=9)}, "pgd: images: 256 -> 9"),
        ({"planned_stages": ledgers.cascade("pgd", "autoattack", config={})}, "pgd: config.steps: 20 -> (absent)"),
    ],
)
def test_what_makes_figures_mean_something_else_is_named(changes: dict[str, Any], line: str) -> None:
    found = incomparable(ledgers.sweep_record(name="one"), changed(**changes))
    assert f"one and two: {line}" in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"requested": 99, "document": {}, "environment": {}},
        {"objectives": ("robust_acc", "clean_acc")},
        {"planned_stages": ledgers.cascade("pgd", "autoattack", batch_size=7, keep_images=True)},
        {"planned_stages": (*ledgers.cascade("pgd", "autoattack"), ledgers.planned("FGSM4", 5, cumulative=False))},
    ],
)
def test_what_decides_no_accuracy_may_differ(changes: dict[str, Any]) -> None:
    assert incomparable(ledgers.sweep_record(name="one"), changed(**changes)) == []


def test_the_parts_of_an_attack_are_told_as_one() -> None:
    far = ledgers.parted(threat={"norm": "linf", "epsilon": 4 / 255})
    found = incomparable(changed(planned_stages=ledgers.parted()), changed(planned_stages=far))
    assert [line.split(": ")[1] for line in found] == ["pgd", "autoattack"]


def test_sweeps_that_are_not_comparable_are_shown_and_not_joined(pair: tuple[Ledger, Ledger]) -> None:
    one, two = map(Snapshot.read, pair)
    page = page_of(one, replace(two, sweep=replace(two.sweep, data_digest="0" * 32)))
    assert "These sweeps are not comparable." in page
    assert "other images" in page
    assert 'id="joint"' not in page
    traces = figure_of(page)["data"]
    assert "joint front" not in [t["name"] for t in traces]
    assert {"one", "two"} <= {t["name"] for t in traces}


def test_what_a_ledger_says_cannot_become_markup_and_nothing_is_fetched(pair: tuple[Ledger, Ledger]) -> None:
    one, two = map(Snapshot.read, pair)
    evil = "</script><img src=x onerror=alert(1)>"
    page = page_of(one, replace(two, sweep=replace(two.sweep, name=evil, data_digest=evil)))
    body, _, _ = page.partition("<script>")
    assert "<img" not in body
    hovers = [text for trace in figure_of(page)["data"] for text in trace.get("hovertext", ())]
    assert sum("&lt;img" in text for text in hovers) == 3
    assert not any("<img" in text for text in hovers)
    assert page.count("</script>") == 2
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=", page.partition("<script>")[0])


def test_the_page_goes_where_one_says_and_the_same_name_twice_is_one_sweep(
    pair: tuple[Ledger, Ledger], tmp_path: Path
) -> None:
    to, storage = tmp_path / "page.html", str(tmp_path / "runs")
    arguments = ["report", "two", "one", "two", "--storage", storage, "--out", str(to)]
    assert CliRunner().invoke(run_sweep.app, arguments).exit_code == 0
    assert "<h1>two + one</h1>" in to.read_text()
    alone = CliRunner().invoke(run_sweep.app, ["report", "one", "--storage", storage, "--out", str(to)])
    assert isinstance(alone.exception, ConfigError)


def test_too_long_a_name_asks_for_a_file(pair: tuple[Ledger, Ledger], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out FILE"):
        build_overlay([pair[0]] * 80, tmp_path)


def test_two_sweeps_of_a_thousand_trials_are_laid_over_each_other_in_seconds(unfinished: Ledger) -> None:
    few = Snapshot.read(unfinished)
    trials = tuple(replace(few.trials[number % 4], number=number) for number in range(1000))
    stages = {number: few.stages[number % 4] for number in range(1000)}
    many = replace(few, trials=trials, stages=stages)
    started = time.perf_counter()
    page = page_of(many, replace(many, sweep=replace(many.sweep, name="other")))
    assert time.perf_counter() - started < 15
    assert len(page.encode()) < 8e6


def test_one_that_has_nothing_yet_is_no_trouble(
    open_ledger: Callable[..., Ledger], pair: tuple[Ledger, Ledger]
) -> None:
    nothing = Snapshot.read(open_ledger())
    page = page_of(Snapshot.read(pair[0]), nothing)
    assert "0 of 8 trials finished" in page
    assert page.partition('id="joint"')[2].partition("</table>")[0].count("<tr>") == 4
