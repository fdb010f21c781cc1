from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from sweeps.figures import front_figure
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.report import build_report, render_html
from sweeps.report_markdown import render_markdown
from sweeps.report_rows import cost_rows
from sweeps.snapshot import PALETTE, Snapshot, duration, shorten, without_passwords
from sweeps.summary import wilson
from tests.sweeps import ledgers

FAR = {"norm": "linf", "epsilon": 4 / 255}
EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>|'


class Page(HTMLParser):
    """Counts elements and remembers attributes that would fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]


def page_of(ledger: Ledger) -> str:
    return render_html(Snapshot.read(ledger), "finished", "ui")


def figure_of(page: str) -> dict[str, Any]:
    found = re.search(r"^const figure = (.*);$", page, re.MULTILINE)
    assert found
    figure: dict[str, Any] = json.loads(found.group(1))
    return figure


def test_the_report_has_every_trial_its_attacks_and_the_failures(unfinished: Ledger, folder: SweepFolder) -> None:
    page, markdown = (path.read_text() for path in build_report(unfinished, folder))
    for number in range(8):
        assert f'id="trial-{number}"' in page
        assert f"\n| {number} | " in markdown
    assert page.count('<tr id="trial-') == 8
    assert "0.781 [0.727, 0.828] 200/256" in page  # PGD on trial 2
    assert "0.664 [0.604, 0.719] 170/256" in page  # AutoAttack on its test images
    assert escape(ledgers.TRACEBACK) in page
    assert "square: loss did not fall" in page
    assert "0123abcd" in page
    assert "linf, ε = 8/255) on 256 validation images" in page
    assert "0.703 [0.644, 0.756]" in markdown


def test_the_report_opens_offline(unfinished: Ledger) -> None:
    page = page_of(unfinished)
    assert Page(page).fetched == []
    assert "@import" not in page.partition("<script>")[0]
    assert "Plotly.newPlot" in page


def test_what_the_ledger_says_cannot_become_markup(open_ledger: Callable[..., Ledger]) -> None:
    evil, part = (
        replace(ledgers.planned("pgd", place), plan=EVIL, column=EVIL, label=f"{EVIL}.{place}") for place in (1, 2)
    )
    plan = (*ledgers.cascade("pgd"), evil, part)
    ledger = open_ledger(document={"name": EVIL}, environment={EVIL: EVIL}, planned_stages=plan)
    with Lease(ledger):
        for number in (0, 1):
            ledgers.propose(ledger, number, EVIL)
        ledgers.train(ledger, 0, 0.9)
        ledgers.attack(ledger, 0, 100, exact=True)
        flat = {"flat": 9.0, "attacked": 10.0}
        told = ledgers.judged(evil, 50, facts=flat, warnings=(EVIL,), error=EVIL)
        ledger.start_stage(replace(told, state="running"))
        ledger.finish_stage(told, exact=True)
        ledger.fail(1, EVIL, EVIL)
    page = page_of(ledger)
    plain = Page(page).tags
    assert "img" not in plain
    assert plain.count("script") == 3
    assert str(escape(f"at the start of {EVIL}.1.")) in page
    hover = next(t for t in figure_of(page)["data"] if t["name"] == EVIL)["hovertext"][0]
    assert "<script>" not in hover
    assert "&#124;" in render_markdown(Snapshot.read(ledger), "running")


def test_passwords_are_not_shown(open_ledger: Callable[..., Ledger]) -> None:
    assert without_passwords("postgresql://ann:s3cret@db/x") == "postgresql://ann:***@db/x"
    assert without_passwords("http://host:5000/a@b") == "http://host:5000/a@b"
    ledger = open_ledger(document={"tracking": {"uri": "https://ann:s3cret@mlflow.example"}})
    assert "s3cret" not in page_of(ledger)


@pytest.mark.parametrize("objectives", [("clean_acc", "robust_acc"), ("clean_acc",), ("robust_acc",)])
def test_one_objective_is_enough(open_ledger: Callable[..., Ledger], objectives: tuple[str, ...]) -> None:
    ledger = open_ledger(ledgers.unfinished, objectives=objectives)
    page = page_of(ledger)
    assert page.count('class="front"') == (3 if len(objectives) == 2 else 1)
    assert figure_of(page)["layout"]["yaxis"]["title"]["text"] == "robust accuracy (validation)"


def test_without_attacks_clean_accuracy_goes_against_the_trials_number(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(objectives=("clean_acc",), planned_stages=())
    with Lease(ledger):
        for number, clean in enumerate((0.8, 0.9)):
            ledgers.propose(ledger, number, "plain")
            ledgers.train(ledger, number, clean)
            ledger.finish_without_attack(number)
    figure = figure_of(page_of(ledger))
    assert [trace["y"] for trace in figure["data"]] == [[0.8], [0.9]]
    assert figure["layout"]["xaxis"]["title"]["text"] == "trial"


def test_a_sweep_without_a_finished_trial_has_a_report(open_ledger: Callable[..., Ledger], folder: SweepFolder) -> None:
    ledger = open_ledger()
    assert "No trial has all its values yet." in page_of(ledger)
    with Lease(ledger):
        ledgers.propose(ledger, 0)
        ledger.fail(0, "nan", "boom")
    page, _ = build_report(ledger, folder)
    assert "nan: boom" in page.read_text()
    assert "Plotly" not in page.read_text()


def planned_anew(unfinished: Ledger) -> Snapshot:
    """The unfinished sweep with AutoAttack in parts, a column at another ε, and another plan's PGD.

    Trial 0 has everything, trial 1 stopped amid AutoAttack, trial 2 was broken by PGD alone; FGSM4 contradicts trial 0.
    """
    few = Snapshot.read(unfinished)
    alone = ledgers.planned("FGSM4", 7, attack="fgsm", cumulative=False, threat=FAR)
    other = ledgers.planned("pgd", 8, plan="paper", threat=FAR, passes=(3, 99))
    plan = (*ledgers.parted(), alone, other)
    stages = {
        0: tuple(ledgers.judged(s, 100 - 5 * i, facts={"budget": 9000.0}) for i, s in enumerate(plan[:7])),
        1: tuple(ledgers.judged(s, 90, 1) for s in plan[:4]),
        2: (ledgers.judged(plan[0], 0, 2),),
    }
    stages[0] += (ledgers.judged(alone, 30, facts={"flat": 9.0, "attacked": 90.0}), ledgers.judged(other, 25))
    trials = list(few.trials)
    trials[0] = replace(trials[0], robust_acc=70 / 256)
    trials[1] = replace(trials[1], robust_acc=90 / 256, exact=False)
    trials[2] = replace(trials[2], robust_acc=0.0)
    sweep = replace(few.sweep, planned_stages=plan)
    return replace(few, sweep=sweep, trials=tuple(trials), stages=stages)


def test_every_column_says_whether_it_is_exact_a_bound_or_not_there(unfinished: Ledger) -> None:
    snapshot = planned_anew(unfinished)
    page, markdown = render_html(snapshot, "finished", "ui"), render_markdown(snapshot, "finished")
    heads = re.findall(r"<th>([^<]*)", page.partition('id="trials"')[2])
    assert heads[4:8] == ["pgd", "autoattack", "FGSM4, ε = 4/255", "paper: pgd, ε = 4/255"]
    for survivors in (70, 30, 0):
        low, high = wilson(survivors, 256)
        exact = f"{survivors / 256:.3f} [{low:.3f}, {high:.3f}] {survivors}/256"
        assert f">{exact}<" in page
        assert f"| {exact} |" in markdown
    bound = "≤ 0.352 [0.296, 0.412] 90/256, 3 of 6 parts"
    assert f'class="bound" data-value="0.351562">{bound}<' in page
    assert f"| {bound} |" in markdown
    assert '<td class="n" data-value="0.3515625">≤ 0.352<' in page
    assert "| ≤ 0.352 [0.296, 0.412] | bound |" in markdown
    assert "Attacks: pgd → autoattack (6 parts) (linf, ε = 8/255) on 256 validation images." in page


def test_the_parts_are_a_table_of_their_own(unfinished: Ledger) -> None:
    page = render_html(planned_anew(unfinished), "finished", "ui")
    parts = page.partition('id="parts"')[2].partition("</table>")[0]
    assert re.findall(r"<th[^>]*>(autoattack[^<]*)", parts) == [f"autoattack.{p}" for p in ledgers.PARTS]
    rows = [re.findall(r'<td class="n">([^<]*)', row) for row in parts.split("<tr>")[2:]]
    assert rows == [["0", "95", "90", "85", "80", "75", "70"], ["1", "90", "90", "90", "–", "–", "–"]]
    assert 'id="parts"' not in page_of(unfinished)


def test_flags_are_told_with_links_and_marked_in_the_tables(unfinished: Ledger) -> None:
    snapshot = planned_anew(unfinished)
    page, markdown = render_html(snapshot, "finished", "ui"), render_markdown(snapshot, "finished")
    sentence = "9 of 90 validation images (10.0%) have a gradient of exactly zero at the start of FGSM4."
    assert f'<li>trial <a href="#trial-0">0</a>: {sentence}</li>' in page
    assert f"\n  - trial 0: {sentence}\n" in markdown
    row = page.partition('<tr id="trial-0"')[2].partition("</tr>")[0]
    assert 'href="#warnings"' in row
    assert "⚠" not in page.partition('<tr id="trial-1"')[2].partition("</tr>")[0]
    assert "<b>1</b><span>with flags" in page
    assert 'class="flag"' not in page_of(unfinished)


def test_passes_spent_and_saved_are_told_for_each_trial_and_in_sum(unfinished: Ledger) -> None:
    page = render_html(planned_anew(unfinished), "finished", "ui")
    row = page.partition('<tr id="trial-0"')[2].partition("</tr>")[0]
    assert '<td class="n" data-value="18000">18,000<td class="n" data-value="49000">49,000' in row
    row = page.partition('<tr id="trial-1"')[2].partition("</tr>")[0]
    assert '<td class="n" data-value="8000">8,000<td class="n" data-value="270000">≤ 270,000' in row
    cost = page.partition('<h2 id="cost">')[2]
    for name, value in (("early exit", "49,000"), ("pruning", "at most 270,000, some of it still to run")):
        assert f'<tr><td>saved by {name}<td class="wrap">{value}</tr>' in cost
    assert f'<td class="wrap">at least {28000 / (28000 + 49000 + 270000):.1%} of what' in cost


def test_a_front_that_may_still_change_says_so(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        ledgers.finish(ledger, 0, "plain", 0.9, 100, 90)
        assert "Not settled yet" not in page_of(ledger)
        ledgers.finish(ledger, 1, "plain", 0.95, 100, None)
        assert "Not settled yet" in page_of(ledger)
        ledgers.finish(ledger, 2, "plain", 0.8, 80, None)  # dominated whatever happens
        ledgers.attack(ledger, 1, 50, position=1, exact=True)
        assert "Not settled yet" not in page_of(ledger)


def test_points_are_hollow_for_bounds_and_large_on_the_front(unfinished: Ledger) -> None:
    figure = front_figure(Snapshot.read(unfinished))
    assert figure is not None
    own, (border, *traces) = figure["data"][:3], figure["data"][3:]
    assert [(line["name"], line["x"]) for line in own] == [
        ("front of plain", [0.95]),
        ("front of jasmin", [0.78, 0.90]),
        ("front of adversarial", [0.80]),
    ]
    assert [line["line"]["dash"] for line in own] == ["solid", "dot", "solid"]  # trial 3 is a bound
    (button,) = figure["layout"]["updatemenus"][0]["buttons"]
    assert button["args"] == [{"visible": False}, [0, 1, 2]]
    assert (border["x"], border["line"]["shape"]) == ([0.80, 0.90, 0.95], "vh")
    by_trial = {trace["customdata"][0]: trace for trace in traces}
    assert by_trial[3]["marker"]["symbol"] == "circle-open"
    assert by_trial[2]["marker"]["size"] > by_trial[3]["marker"]["size"]
    assert by_trial[1]["marker"]["color"] == by_trial[3]["marker"]["color"] == PALETTE[1]
    shown = [trace["name"] for trace in traces if trace["showlegend"]]
    assert sorted(shown) == ["adversarial", "jasmin", "plain"]
    for fact in ("trial 3", "jasmin", "k=", "clean 0.780", "robust ≤ 0.586 [0.525, 0.645] bound"):
        assert fact in by_trial[3]["hovertext"][0]


def test_a_method_keeps_its_colour_while_the_sweep_grows(unfinished: Ledger) -> None:
    whole = Snapshot.read(unfinished)
    for count in range(1, 9):
        part = replace(whole, trials=whole.trials[:count])
        assert part.colours.items() <= whole.colours.items()


def test_short_names_are_unambiguous() -> None:
    names = ["jasmin.k", "training.learning_rate", "a+b.a.weight", "a+b.b.weight", "k2"]
    assert list(shorten(names).values()) == ["k", "learning_rate", "a.weight", "b.weight", "k2"]
    assert shorten(["x.k", "k"]) == {"x.k": "x.k", "k": "k"}


def test_failures_with_the_same_last_line_are_told_once(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with Lease(ledger):
        for number in range(3):
            ledgers.propose(ledger, number)
            ledger.fail(number, "exception", f"in trial {number}\nCUDA out of memory")
    page = page_of(ledger)
    assert page.count("<details>") == 2  # this one and the configuration
    assert "in trial 0" in page
    assert ">2</a></summary>" in page


def test_a_thousand_trials_with_twelve_columns_are_reported_in_seconds(unfinished: Ledger) -> None:
    few = Snapshot.read(unfinished)
    alone = [ledgers.planned(f"FGSM{i}", 7 + i, cumulative=False, threat=FAR) for i in range(10)]
    plan = (*ledgers.parted(), *alone)
    trials, stages = [], {}
    for number in range(1000):
        trials.append(replace(few.trials[number % 4], number=number))
        survivors = [100 - i for i in range(7)] + [200 - 20 * (number % 9)] * 10
        stages[number] = tuple(ledgers.judged(s, n, number) for s, n in zip(plan, survivors, strict=True))
    many = replace(few, sweep=replace(few.sweep, planned_stages=plan), trials=tuple(trials), stages=stages)
    started = time.perf_counter()
    page = render_html(many, "finished", "ui")
    assert time.perf_counter() - started < 15
    assert len(page.encode()) < 8e6
    assert page.count('<tr id="trial-') == 1000
    assert page.count("94/256<") >= 1000


def test_a_report_is_replaced_as_a_whole(
    unfinished: Ledger, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, _ = build_report(unfinished, folder)
    before = page.read_text()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_report(unfinished, folder)
    assert page.read_text() == before


@pytest.mark.slow
def test_a_browser_draws_the_front_and_sorts_the_table(unfinished: Ledger, folder: SweepFolder, tmp_path: Path) -> None:
    browser = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs chromium")
    path, _ = build_report(unfinished, folder)
    click = '<script>document.querySelectorAll("table.sortable th")[4].click()</script></html>'
    path.write_text(path.read_text().replace("</html>", click))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *flags, "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert dom.count('class="point plotly-customdata"') == 4
    rows = re.findall(r'<tr id="trial-(\d)"', dom)
    assert rows[:5] == ["0", "1", "7", "2", "3"]  # by falling clean accuracy, what is not measured last


def test_what_is_told_of_a_point_names_every_attack_with_its_interval(unfinished: Ledger) -> None:
    figure = front_figure(planned_anew(unfinished))
    assert figure is not None
    points = [trace for trace in figure["data"] if "customdata" in trace]
    hovers = {n: text for t in points for n, text in zip(t["customdata"], t["hovertext"], strict=True)}
    low, high = wilson(70, 256)
    assert f"<i>autoattack</i> 0.273 [{low:.3f}, {high:.3f}] 70/256 exact" in hovers[0]
    assert "<i>FGSM4, ε = 4/255</i> 0.117 [" in hovers[0]
    assert "<i>autoattack</i> ≤ 0.352 [0.296, 0.412] 90/256, 3 of 6 parts bound" in hovers[1]
    assert "FGSM4" not in hovers[1]


def test_a_long_table_is_laid_out_in_part_and_a_short_one_as_a_whole(unfinished: Ledger) -> None:
    few = Snapshot.read(unfinished)
    assert '<section class="short">' not in render_html(few, "finished", "ui")
    trials = tuple(replace(few.trials[n % 4], number=n) for n in range(101))
    stages = {n: few.stages.get(n % 4, ()) for n in range(101)}
    page = render_html(replace(few, trials=trials, stages=stages), "finished", "ui")
    assert '<section class="short">' in page
    assert "show all 101 trials" in page
    assert page.count('<tr id="trial-') == 101


def test_the_other_figures_are_data_for_places_that_exist(unfinished: Ledger) -> None:
    page = page_of(unfinished)
    found = re.search(r"^const later = (.*);$", page, re.MULTILINE)
    assert found
    later = json.loads(found.group(1))
    assert set(later) == {"growth-figure", "lines-0"}
    for name in later:
        assert page.count(f'id="{name}"') == 1
    assert "a forest needs 12 finished trials" in page


CPU = {"trial_cpus": 2.0, "trial_gpus": 0.0, "evaluation_cpus": 1.0, "evaluation_gpus": 0.0}
GPU = {"trial_cpus": 1.0, "trial_gpus": 0.5, "evaluation_cpus": 1.0, "evaluation_gpus": 0.25}


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ((), "not recorded"),
        ((CPU,), "each training on 2 CPU, each attack on 1 CPU: 4.8 min of one CPU"),
        ((GPU, GPU), "each attack on 1 CPU and 0.25 GPU: 2.8 min of one CPU, 72.5 s of one GPU"),
        ((CPU, GPU), "each training on 1 CPU and 0.5 GPU, each attack on 1 CPU and 0.25 GPU, by driver"),
    ],
)
def test_the_cost_says_what_the_seconds_are_of(
    unfinished: Ledger, resources: tuple[dict[str, float], ...], told: str
) -> None:
    few = replace(Snapshot.read(unfinished), resources=resources)
    trials = tuple(replace(t, train_seconds=120.0 if t.number == 0 else None) for t in few.trials)
    seconds = {t.number: 50.0 if t.number == 0 else 0.0 for t in trials}
    few = replace(few, trials=trials)
    few.__dict__["attack_seconds"] = seconds
    assert told in dict(cost_rows(few))["ran on"]


def test_a_driver_notes_what_one_training_and_one_attack_get(unfinished: Ledger) -> None:
    with Lease(unfinished):
        unfinished.note_driver("resources", GPU)
    assert Snapshot.read(unfinished).resources == (GPU,)


def test_the_seconds_of_gpus_are_counted_by_what_each_training_got(unfinished: Ledger) -> None:
    usual = Snapshot.read(unfinished)
    first, second = [t for t in usual.trials if t.train_seconds][:2]
    granted = {first.number: {"CPU": 1.0, "GPU": 0.5}, second.number: {"CPU": 2.0, "GPU": 0.1}}
    few = replace(
        usual, trials=(first, second), parents=(), stages={}, resources=({**GPU, "trial_cpus": 1.0},), granted=granted
    )
    told = dict(cost_rows(few))["ran on"]
    assert "each training on 1 CPU and 0.1 to 0.5 GPU" in told
    seconds = 0.5 * (first.train_seconds or 0) + 0.1 * (second.train_seconds or 0)
    assert f"{duration(seconds)} of one GPU" in told
