"""The report of a sweep of 1,000 trials: how long it takes to build, how large it is, and how it feels in a browser.

    python -m benchmarks.report

Six methods, AutoAttack in its twelve parts after PGD, curves, failures: written into the ledger's tables at once,
because 1,000 lives of trials would take minutes and are measured elsewhere.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Row, measured, not_measured
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import LAUNCHED, PlannedStage, Split, StageRecord, SweepRecord
from sweeps.schema import CURVES, STAGES, TRIALS, as_json, packed

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m benchmarks.report"
TRIALS_IN_ALL, IMAGES, EPOCHS = 1000, 1000, 40
PARTS = ("apgd_ce", *(f"apgd_t_{i}" for i in range(9)), "fab_t", "square")
METHODS = ("plain", "jasmin", "adversarial", "trades", "safer", "msvp")
SECONDS, MEGABYTES = 15.0, 8.0
OPEN_S = 3.0
"""From the address to a drawn front: a page that takes longer is taken for a broken one (our choice)."""
SORT_MS = 200.0
"""From a click on a heading to the next frame: about what is still felt as an answer to the click (our choice)."""
FRAME_MS = 50.0
"""A frame while the page is scrolled from top to bottom and the pointer moves over the front: 20 in a second."""

AWAKE = [
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--disable-background-timer-throttling",
]
"""A page that the browser takes for hidden is given no frames, and waits for them forever."""
LONGEST_MS = 60_000
"""What a measurement may wait for; a page that is given no frames must not stop the others."""

WATCH = """(longest) => new Promise((done) => {
  setTimeout(() => done([longest]), longest);
  const spent = []; let last = performance.now(), at = 0;
  const step = () => requestAnimationFrame(() => {
    const now = performance.now(); spent.push(now - last); last = now;
    at += 1; if (at > 60) return done(spent);
    if (at <= 30) scrollTo(0, document.body.scrollHeight * at / 30);
    else {
      if (at === 31) scrollTo(0, document.getElementById("figure").offsetTop);
      const box = document.querySelector("#figure .nsewdrag").getBoundingClientRect(), share = (at - 31) / 30;
      const place = {bubbles: true, clientX: box.left + box.width * share, clientY: box.top + box.height * share};
      document.querySelector("#figure .nsewdrag").dispatchEvent(new MouseEvent("mousemove", place));
    }
    step();
  });
  step();
})"""
SORT = """([place, longest]) => new Promise((done) => {
  setTimeout(() => done(longest), longest);
  const heads = document.querySelectorAll("table.sortable th"), started = performance.now();
  heads[place].click();
  document.body.offsetHeight;
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
})"""


def rows() -> Iterator[Row]:
    """Build the report three times, then open it in Chromium where there is one."""
    with tempfile.TemporaryDirectory() as storage:
        folder = SweepFolder(Path(storage), "thousand")
        grow(folder)
        command = [sys.executable, str(ROOT / "run_sweep.py"), "report", folder.name, "--storage", storage]
        yield measured("report_1000_seconds", [_seconds(command) for _ in range(3)], "s", COMMAND, at_most=SECONDS)
        size = folder.report_html.stat().st_size / 1e6
        yield measured("report_1000_megabytes", [size], "MB", COMMAND, at_most=MEGABYTES)
        yield from _in_a_browser(folder.report_html)


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _in_a_browser(page: Path) -> Iterator[Row]:
    """Rows of a real window's times; without Chromium or Playwright they say so."""
    wanted = (("open", "s", OPEN_S), ("sort", "ms", SORT_MS), ("frame", "ms, the 95th percentile", FRAME_MS))
    browser = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        for name, unit, limit in wanted:
            yield not_measured(f"report_1000_{name}", "no chromium", unit, COMMAND, at_most=limit)
        return
    opened, sorts, frames = [], [], []
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser, args=AWAKE) as chromium:
        for _ in range(3):
            tab = chromium.new_page(viewport={"width": 1320, "height": 900})
            tab.bring_to_front()
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            tab.wait_for_selector("#figure .point")
            opened.append(time.perf_counter() - started)
            sorts += [tab.evaluate(SORT, [place, LONGEST_MS]) for place in (4, 5, 0)]
            frames.append(float(np.percentile(tab.evaluate(WATCH, LONGEST_MS), 95)))
            tab.close()
    for (name, unit, limit), values in zip(wanted, (opened, sorts, frames), strict=True):
        yield measured(f"report_1000_{name}", values, unit, COMMAND, at_most=limit)


def grow(folder: SweepFolder, trials: int = TRIALS_IN_ALL) -> None:
    """Write a finished sweep: one in 20 failed, and the dear parts have run where the front needs them."""
    rng = random.Random(0)
    folder.root.mkdir(parents=True)
    ledger = Ledger.at(folder.ledger)
    planned = (*_plan("validation"), *_plan("test"))
    ledger.create(_sweep(folder.name, trials, planned))
    found = [_trial(rng, number) for number in range(trials)]
    best = 0.0
    for trial in sorted((t for t in found if t["state"] == "finished"), key=lambda t: -t["clean_acc"]):
        trial["exact"] = trial["robust_acc"] > best  # as the cascade would settle them, from the right to the left
        best = max(best, trial["robust_acc"])
    stages = [stage for trial in found if trial["state"] == "finished" for stage in _stages(rng, trial, planned)]
    for trial in (t for t in found if t["exact"]):
        trial |= {"test_clean_acc": trial["clean_acc"] - 0.01, "test_robust_acc": trial["robust_acc"]}
    curves = [{"number": t["number"], "history": as_json(_history())} for t in found]
    with ledger._transaction("ledger.create") as connection:
        connection.execute(TRIALS.insert(), found)
        connection.execute(STAGES.insert(), [packed(stage) for stage in stages])
        connection.execute(CURVES.insert(), curves)
    ledger.close()


def _plan(split: Split) -> Iterator[PlannedStage]:
    labels = ("pgd", *(f"autoattack.{part}" for part in PARTS))
    for position, label in enumerate(labels):
        column, _, part = label.partition(".")
        yield PlannedStage(
            split=split,
            position=position,
            plan=LAUNCHED,
            column=column,
            label=label,
            attack=part or column,
            config={"steps": 100},
            threat={"norm": "linf", "epsilon": 8 / 255},
            cumulative=True,
            images=IMAGES,
            batch_size=256,
            seed=0,
            passes=(3, 300),
        )


def _trial(rng: random.Random, number: int) -> dict[str, Any]:
    """A row of TRIALS: three parameters of its method and two that all share."""
    label, strength = rng.choice(METHODS), rng.random()
    clean = min(0.99, 0.97 - 0.25 * strength**2 - 0.05 * rng.random())
    robust = (0.0 if label == "plain" else 0.5 * strength) + 0.15 * rng.random()
    numbers = {"training.learning_rate": 10 ** rng.uniform(-4, -2), "training.weight_decay": rng.uniform(0, 0.1)}
    kinds = {"training.learning_rate": _float(1e-4, 1e-2, True), "training.weight_decay": _float(0, 0.1, False)}
    if label != "plain":
        numbers |= {f"{label}.weight": 10 ** (-4 + 3 * strength), f"{label}.k": rng.choice([0, 1, 2, 4])}
        kinds |= {f"{label}.weight": _float(1e-4, 1e-1, True), f"{label}.k": _choice([0, 1, 2, 4])}
    params = {"method": label, **numbers}
    failed = number % 20 == 19
    return {
        "number": number,
        "state": "failed" if failed else "finished",
        "label": label,
        "config": as_json({"model": {"name": "vit_small_patch16_224"}, "methods": {label: {}}, "training": numbers}),
        "params": as_json(params),
        "distributions": as_json({"method": _choice(list(METHODS)), **kinds}),
        "seed": number,
        "created_at": 1_790_000_000.0 + number,
        "updated_at": 1_790_000_000.0 + number,
        "started_at": 1_790_000_000.0 + number,
        "ended_at": 1_790_000_600.0 + number,
        "revision": number,
        "epochs": EPOCHS,
        "clean_acc": None if failed else round(clean, 3),
        "robust_acc": None if failed else round(robust * IMAGES) / IMAGES,
        "exact": False,
        "test_clean_acc": None,
        "test_robust_acc": None,
        "train_seconds": 600.0 + number,
        "error_kind": "nan" if failed else None,
        "error": f"Traceback ...\nLossDiverged: the loss of step {number % 7} is nan" if failed else None,
    }


def _stages(rng: random.Random, trial: dict[str, Any], planned: tuple[PlannedStage, ...]) -> Iterator[StageRecord]:
    """All parts on both splits of an exact trial, PGD alone of another."""
    order = list(range(IMAGES))
    rng.shuffle(order)
    standing = np.zeros(IMAGES, dtype=bool)
    standing[order[: round(trial["robust_acc"] * IMAGES)]] = True
    for stage in planned:
        if not trial["exact"] and (stage.position or stage.split == "test"):
            continue
        record = StageRecord(
            number=trial["number"],
            split=stage.split,
            position=stage.position,
            attack=stage.label,
            config={**stage.config, **stage.threat},
            digest=f"{trial['number']:06d}{stage.position:04d}",
            state="done",
            started_at=trial["ended_at"],
        )
        yield replace(
            record,
            images=IMAGES,
            clean_correct=IMAGES,
            survivors=int(standing.sum()),
            verdicts=standing,
            forwards=100_000,
            backwards=50_000,
            seconds=20.0,
            column=stage.column,
            facts={"attacked": 900.0, "budget": 300_000.0, "mismatches": 0.0, "flat": 0.0},
        )


def _history() -> list[dict[str, float]]:
    return [{"train/loss": 2.0 / (e + 1), "val/clean_acc": 1 - 1.0 / (e + 2)} for e in range(EPOCHS)]


def _float(low: float, high: float, log: bool) -> str:
    return as_json({"name": "FloatDistribution", "attributes": {"step": None, "low": low, "high": high, "log": log}})


def _choice(values: list[Any]) -> str:
    return as_json({"name": "CategoricalDistribution", "attributes": {"choices": values}})


def _sweep(name: str, trials: int, planned: tuple[PlannedStage, ...]) -> SweepRecord:
    return SweepRecord(
        id=name,
        name=name,
        created_at=1_790_000_000.0,
        requested=trials,
        document={"name": name},
        objectives=("clean_acc", "robust_acc"),
        planned_stages=planned,
        environment={},
        data_digest="",
        completed_at=1_790_001_000.0,
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(list(rows()), indent=2, ensure_ascii=False) + "\n")
