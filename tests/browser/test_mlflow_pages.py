"""What a person sees on MLflow's pages of a sweep."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from sweeps.tracking_ui import pareto_view
from tests.browser.conftest import Site
from tests.sweeps import ledgers

FAILURE = "Something went wrong"
DRAWN = "() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.data)"
LINES = ".parcoords"
"""A chart of parallel coordinates on the runs page."""


def text_of(page: Any) -> str:
    return str(page.inner_text("body"))


def see(page: Any, address: str, text: str) -> None:
    """Open a page and wait until it shows a text."""
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_text(text).first.wait_for()


def scatter(page: Any) -> dict[str, Any]:
    """The traces of the page's first picture, once it is drawn."""
    page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for(state="attached")
    (trace,) = page.evaluate(DRAWN)[0]
    return dict(trace)


def test_the_pareto_view_shows_every_trial_in_the_colour_of_its_method(page: Any, site: Site) -> None:
    see(page, site.pages["Pareto view"], "Front and all other trials")
    trace = scatter(page)
    finished = [t for t in site.snapshot.trials if t.clean_acc is not None]
    points = sorted(zip(trace["x"], trace["y"], trace["marker"]["color"], strict=True))
    assert points == sorted((t.clean_acc, t.robust_acc, site.snapshot.colours[t.label]) for t in finished)
    assert len(points) == 11
    seen = text_of(page)
    assert "clean_acc vs. robust_acc" in seen
    assert "12 matching runs" in seen
    assert "Pareto front of digits" in seen
    assert FAILURE not in seen


def test_the_pareto_view_has_parallel_coordinates_for_each_method(page: Any, site: Site) -> None:
    see(page, site.pages["Pareto view"], "Parameters by method")
    page.locator(LINES).nth(1).wait_for()
    drawn = [chart.text_content() for chart in page.locator(LINES).all()]
    for mine, others, text in zip(("jasmin.k", "adversarial.steps"), ("adversarial", "jasmin"), drawn, strict=True):
        assert mine in text
        assert others not in text
        assert "clean_acc" in text
        assert "robust_acc" in text
    assert FAILURE not in text_of(page)


def test_the_table_has_the_objectives_and_the_parameters(page: Any, site: Site) -> None:
    see(page, site.pages["table"], "0011-jasmin")
    seen = text_of(page)
    for name in ("clean_acc", "robust_acc", "test_clean_acc", "test_robust_acc", "12 matching runs"):
        assert name in seen
    assert FAILURE not in seen


def test_the_front_can_be_compared(page: Any, site: Site) -> None:
    front = site.snapshot.front
    see(page, site.pages["compare the front"], f"Comparing {len(front)} Runs from 1 Experiment")
    page.locator(".js-plotly-plot .parcoords").first.wait_for(state="attached")
    for trial in front:
        page.get_by_text(f"{trial.number:04d}-{trial.label}").first.wait_for()
    (lines,) = page.evaluate(DRAWN)[0]
    assert [axis["label"] for axis in lines["dimensions"]][-1] == "clean_acc"
    assert {len(axis["values"]) for axis in lines["dimensions"]} == {len(front)}
    page.get_by_text("Artifacts", exact=True).last.scroll_into_view_if_needed()
    page.get_by_text("attacks.json").first.wait_for()
    assert FAILURE not in text_of(page)


def test_the_page_of_a_trial_has_its_figures_its_attacks_and_its_data(page: Any, site: Site) -> None:
    trial = site.snapshot.front[0]
    see(page, site.trial(trial.number), "digits/training (d41d8cd98f00b204)")
    page.get_by_text("Show more").first.click()
    page.get_by_text("95 % interval").wait_for()
    seen = text_of(page)
    assert seen.index("clean_acc") < seen.index("autoattack_acc") < seen.index("cost/train_s")
    for cell in site.snapshot.cells(trial):
        assert f"{cell.survivors} of {cell.images}" in seen
    for label in ("trial.pareto", "model.name", "vit_tiny_patch16_224", "sweep digits"):
        assert label in seen
    assert FAILURE not in seen


def test_the_page_of_a_trial_has_its_curves(page: Any, site: Site) -> None:
    see(page, site.trial(site.snapshot.front[0].number, "/model-metrics"), "train")
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    page.wait_for_function(f"() => ({DRAWN})().flat().some(trace => (trace.x || []).length === 3)")
    epochs, losses = next((t["x"], t["y"]) for plot in page.evaluate(DRAWN) for t in plot if len(t["x"]) == 3)
    assert (epochs, losses) == ([1, 2, 3], [e["train/loss"] for e in ledgers.history(3)])
    assert FAILURE not in text_of(page)


def test_the_attacks_of_a_trial_open_as_a_file(page: Any, site: Site) -> None:
    trial = site.snapshot.front[0]
    see(page, site.trial(trial.number, "/artifacts/attacks.json"), '"survivors"')
    seen = text_of(page)
    assert "trial.json" in seen
    assert f'"attack": {json.dumps(site.snapshot.stages_of(trial)[0].attack)}' in seen
    assert FAILURE not in seen


def test_a_failed_trial_says_why(page: Any, site: Site) -> None:
    see(page, site.trial(11), "Failed")
    assert "LossDiverged" in text_of(page)


def test_the_links_in_the_note_of_the_sweep_lead_on(page: Any, site: Site) -> None:
    see(page, site.pages["sweep"], "11 of 12 trials finished")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Pareto view").click()
    opened.value.get_by_text("Front and all other trials").wait_for()
    assert len(scatter(opened.value)["x"]) == 11


def test_plain_links_still_list_the_trials_when_mlflow_does_not_know_the_view(page: Any, site: Site) -> None:
    database = site.folder.storage / "mlflow.db"
    tag, view = pareto_view(site.snapshot)
    try:
        put_tag(database, tag, json.dumps({"version": 99, "state": "of another format"}))
        see(page, site.pages["trials"], "0011-jasmin")
        seen = text_of(page)
        assert "12 matching runs" in seen
        assert all(f"{t.number:04d}-{t.label}" in seen for t in site.snapshot.trials)
        assert FAILURE not in seen
        page.goto("about:blank")
        see(page, site.pages["compare the front"], "Runs from 1 Experiment")
        assert FAILURE not in text_of(page)
    finally:
        put_tag(database, tag, view)


def put_tag(database: Path, tag: str, value: str) -> None:
    with sqlite3.connect(database) as connection:
        changed = connection.execute("UPDATE experiment_tags SET value = ? WHERE key = ?", (value, tag))
        assert changed.rowcount == 1
    connection.close()
