"""A paper's figures beside ours: read strictly, shown where they mean the same, and of no weight otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import ConfigError, Problem
from sweeps.changes import plan_change
from sweeps.config import configuration_diff, parse_sweep
from sweeps.export import export_json
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.published import Bounded, compare_published, published_rows
from sweeps.published_tables import public_published
from sweeps.report import build_report, render_html
from sweeps.report_markdown import render_markdown
from sweeps.scale import shrink
from sweeps.snapshot import Snapshot
from sweeps.steering import read_known
from sweeps.summary import wilson
from sweeps.yaml_source import read_document
from tests.sweeps import ledgers
from tests.sweeps.driving import DOCUMENT, create, driving

PRESETS = Path(__file__).parents[2] / "sweeps" / "presets"
SOURCE = "Somebody 2025, table 1"
PLAIN: dict[str, Any] = {"method": "plain", "training.learning_rate": "1/1000"}
JASMIN: dict[str, Any] = {"method": "jasmin", "training.learning_rate": 0.001, "jasmin.k": 0, "jasmin.weight": "1e-3"}
FLOAT = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-4, "high": 1e-2, "log": true}}'
CHOICE = '{"name": "CategoricalDistribution", "attributes": {"choices": ["plain", "jasmin"]}}'
ATTACKS = {"epsilon": "2/255", "stages": ["fgsm", "autoattack"], "columns": {"PGD4": {"pgd": {}, "epsilon": "4/255"}}}


def document(known: list[dict[str, Any]], **search: Any) -> dict[str, Any]:
    return {
        "model": {"name": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 4},
        "training": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "methods": ["plain", {"jasmin": {"k": [0, 2], "aggregation": "max"}}],
        "attacks": ATTACKS,
        "search": {"known": known, "published_in": SOURCE, **search},
    }


def problems_of(known: list[dict[str, Any]], **search: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(document(known, **search))
    return caught.value.problems


def test_figures_are_named_after_the_clean_accuracy_and_the_plans_attacks() -> None:
    figures = {"clean_acc": 0.98, "fgsm": 0.5, "autoattack": 0, "PGD4": 1}
    config = parse_sweep(document([{**PLAIN, "published": figures}]))
    assert config.search.known[0]["published"] == figures
    (problem,) = problems_of([{**PLAIN, "published": {"PGD2": 0.5}}, {**JASMIN, "published": {"PGD2": 0.4}}])
    assert problem.path == ("search", "known", 0, "published", "PGD2")
    assert "allowed: clean_acc, fgsm, autoattack, PGD4" in problem.message
    assert "Did you mean 'PGD4'?" in problem.hint


@pytest.mark.parametrize(
    ("value", "says"), [(98.5, "0.985 for 98.5 %"), (-0.1, "0 to 1"), ("high", "'high'"), (True, "0")]
)
def test_a_figure_is_a_fraction(value: Any, says: str) -> None:
    (problem,) = problems_of([{**PLAIN, "published": {"clean_acc": value}}])
    assert problem.path == ("search", "known", 0, "published", "clean_acc")
    assert says in str(problem)


def test_figures_need_a_source_and_a_whole_configuration() -> None:
    figures = {"clean_acc": 0.98}
    (problem,) = problems_of([{**PLAIN, "published": figures}], published_in=None)
    assert problem.path == ("search", "published_in")
    (problem,) = problems_of([{"method": "jasmin", "jasmin.k": 0, "published": figures}])
    assert "leaves training.learning_rate, jasmin.weight open" in problem.message
    for nothing in ({}, 0.98, None):
        (problem,) = problems_of([{**PLAIN, "published": nothing}])
        assert "figures by name" in problem.message


def test_figures_change_neither_a_trial_nor_what_a_sweep_may_be_resumed_with() -> None:
    bare, told = parse_sweep(document([PLAIN])), parse_sweep(document([{**PLAIN, "published": {"clean_acc": 0.9}}]))
    assert bare.known_params(0) == told.known_params(0)
    assert configuration_diff(bare.comparable(), told.comparable()) == []
    assert parse_sweep(told.document).document == told.document


def test_resume_with_a_file_that_has_figures_records_them(tmp_path: Path) -> None:
    row = {"method": "plain", "training.learning_rate": 2e-3}
    known = [{**row, "published": {"clean_acc": 0.9}}]
    given = {**DOCUMENT, "search": {**DOCUMENT["search"], "known": known, "published_in": SOURCE}}
    with driving(create(tmp_path, search={**DOCUMENT["search"], "known": [row]})) as driven:
        change = plan_change(driven.ledger.sweep(), parse_sweep(given), "new.yaml")
        assert change is not None
        assert all(line.startswith("search.published") for line in change.lines)
        change.record(driven.ledger)
        assert driven.ledger.sweep().document["search"]["known"] == known
        assert plan_change(driven.ledger.sweep(), parse_sweep(given), "new.yaml") is None


def test_a_smoke_run_has_no_figures_because_its_model_is_another_one() -> None:
    given = document([{**PLAIN, "published": {"clean_acc": 0.98}}, {**JASMIN, "published": {"clean_acc": 0.97}}])
    small = shrink(given, "smoke", "file")
    assert "published" not in json.dumps(small)
    assert [entry["method"] for entry in parse_sweep(small).search.known] == ["plain", "jasmin"]


def test_extend_refuses_figures_that_nothing_would_show(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("- {method: plain, training.learning_rate: 2e-3, published: {clean_acc: 0.9}}\n")
    with pytest.raises(ConfigError, match=r"more\.yaml:1: \[0\]\.published"):
        read_known(file, parse_sweep(document([PLAIN])))


def swept(open_ledger: Callable[..., Ledger], known: list[dict[str, Any]]) -> Snapshot:
    """Trials 0 (plain) and 1 (jasmin) are the rows of `known`, 2 repeats 1, 3 has another weight; PGD, AutoAttack."""
    ledger = open_ledger(split_sizes={"validation": 500}, document={"search": {"known": known, "published_in": SOURCE}})
    params: dict[str, Any] = {"training.learning_rate": 1e-3, "jasmin.k": 0, "jasmin.weight": 1e-3}
    with Lease(ledger):
        for number, clean, pgd, auto in ((0, 0.9, 100, 20), (1, 0.8, 150, 60), (2, 0.82, 160, None), (3, 0.7, 90, 9)):
            ledgers.finish(ledger, number, "jasmin" if number else "plain", clean, pgd, auto)
    snapshot = Snapshot.read(ledger)
    drawn = [{"method": "plain", "training.learning_rate": 1e-3}, *({"method": "jasmin", **params},) * 3]
    drawn[3] = {**drawn[3], "jasmin.weight": 2e-3}
    kinds = dict.fromkeys(params, FLOAT) | {"method": CHOICE, "jasmin.k": CHOICE.replace('"plain", "jasmin"', "0, 2")}
    given = [
        replace(t, params=p, distributions={name: kinds[name] for name in p})
        for t, p in zip(snapshot.trials, drawn, strict=True)
    ]
    return replace(snapshot, trials=tuple(given))


def rows() -> list[dict[str, Any]]:
    return [
        {**PLAIN, "published": {"clean_acc": 0.95, "pgd": 0.3, "autoattack": 0.05}},
        {**JASMIN, "published": {"clean_acc": 0.94, "pgd": 0.35, "autoattack": 0.1}},
    ]


def test_every_trial_of_a_published_configuration_stands_beside_it(open_ledger: Callable[..., Ledger]) -> None:
    found = compare_published(swept(open_ledger, rows()))
    assert [c.trial.number for c in found] == [0, 1, 2]
    figure = found[1].figures["pgd"]
    assert (figure.published, figure.ours, figure.exact) == (0.35, 150 / 256, True)
    assert figure.interval == wilson(150, 256)
    assert found[1].figures["clean_acc"].interval == wilson(400, 500)
    assert figure.difference is not None
    assert figure.difference.value == pytest.approx(150 / 256 - 0.35)


def test_gains_are_over_plain_in_the_paper_and_here(open_ledger: Callable[..., Ledger]) -> None:
    plain, jasmin, bound = compare_published(swept(open_ledger, rows()))
    assert {(f.published_gain, f.gain) for f in plain.figures.values()} == {(None, None)}
    figure = jasmin.figures["autoattack"]
    assert figure.published_gain == pytest.approx(0.05)
    assert figure.gain == Bounded(pytest.approx(40 / 256), "")
    assert bound.figures["autoattack"].ours is None  # its dear attack was spared
    assert bound.figures["pgd"].gain == Bounded(pytest.approx(60 / 256), "")


@pytest.mark.parametrize(
    ("exact", "base_exact", "sign"), [(True, True, ""), (False, True, "≤"), (True, False, "≥"), (False, False, None)]
)
def test_a_gain_says_when_one_side_is_a_bound_and_nothing_when_both_are(
    unfinished: Ledger, exact: bool, base_exact: bool, sign: str | None
) -> None:
    few = Snapshot.read(unfinished)
    plan = ledgers.parted()
    parts = {0: 7 if base_exact else 3, 1: 7 if exact else 3}
    stages = {n: tuple(ledgers.judged(s, 90 + 10 * n, n) for s in plan[:count]) for n, count in parts.items()}
    params = ({"method": "plain", "training.learning_rate": 1e-3}, {"method": "jasmin", **JASMIN})
    trials = tuple(replace(t, params=p) for t, p in zip(few.trials, params, strict=False))
    sweep = replace(few.sweep, planned_stages=plan, document={"search": {"known": rows(), "published_in": SOURCE}})
    _, found = compare_published(replace(few, sweep=sweep, trials=trials, stages=stages))
    gain = found.figures["autoattack"].gain
    assert (None if gain is None else gain.sign) == sign


def test_a_configuration_that_leaves_open_what_a_trial_drew_is_not_the_trials(
    open_ledger: Callable[..., Ledger],
) -> None:
    known = [{"method": "jasmin", "jasmin.k": 0, "published": {"clean_acc": 0.9}}]
    assert compare_published(swept(open_ledger, known)) == []


@pytest.mark.parametrize(("name", "most_robust"), [("jasmin_cifar10", 0.0504), ("jasmin_cifar100", 0.0419)])
def test_jasmins_presets_have_every_row_of_the_papers_tables(name: str, most_robust: float) -> None:
    found = published_rows(read_document(PRESETS / f"{name}.yaml")[0])
    assert len(found) == 31
    columns = {"clean_acc", "FGSM2", "FGSM4", "PGD2", "PGD4", "autoattack"}
    assert {frozenset(row.figures) for row in found} == {frozenset(columns)}
    assert max(row.figures["autoattack"] for row in found) == most_robust
    for row in found:  # a larger ball, a stronger attack: a figure in the wrong place would break the order
        order = ("clean_acc", "FGSM2", "FGSM4", "PGD2", "PGD4", "autoattack")
        assert sorted(order, key=lambda name: -row.figures[name]) == list(order)


def test_the_report_the_table_and_the_export_say_the_same(open_ledger: Callable[..., Ledger]) -> None:
    snapshot = swept(open_ledger, rows())
    page, markdown = render_html(snapshot, "finished", "ui"), render_markdown(snapshot, "finished")
    section = page.partition('id="published"')[2].partition("<h2")[0]
    low, high = wilson(150, 256)
    for text in (SOURCE, "0.3500", f"0.586 [{low:.3f}, {high:.3f}]", "+0.236", "+0.0500", "compare methods"):
        assert text in section
        assert text in markdown
    assert re.findall(r'href="#trial-(\d)"', section) == ["0", "1", "2", "1", "2"]
    heads = [line for line in markdown.splitlines() if line.startswith("| trial | method | searched | clean, ")]
    assert len(heads) == 2


def test_without_figures_there_is_no_section(unfinished: Ledger, folder: Any) -> None:
    for path in build_report(unfinished, folder):
        assert "Beside the published" not in path.read_text()
    assert export_json(unfinished)["published"] is None


def test_the_export_has_figures_for_programs(open_ledger: Callable[..., Ledger]) -> None:
    snapshot = swept(open_ledger, rows())
    found = public_published(snapshot)
    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    figure = found["trials"][1]["figures"]["autoattack"]
    assert figure["gain"] == {"value": pytest.approx(40 / 256), "is": "exact"}
    assert (figure["published"], figure["ours"], figure["exact"]) == (0.1, 60 / 256, True)
    assert [t["number"] for t in found["trials"]] == [0, 1, 2]
