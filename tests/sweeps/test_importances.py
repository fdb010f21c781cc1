"""Importances: a synthetic objective that depends on one parameter, beside what Optuna is asked."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.figures import INK
from sweeps.importance_bars import GREY, importance_figure
from sweeps.importances import CHANCE, FEWEST, Importances, importances, what_is_missing
from sweeps.ledger import Ledger
from sweeps.records import State, TrialRecord
from sweeps.snapshot import Snapshot
from tests.sweeps.ledgers import cascade, judged

RANGE = '{"name":"FloatDistribution","attributes":{"step":null,"low":0.0,"high":1.0,"log":false}}'
LABELS = '{"name":"CategoricalDistribution","attributes":{"choices":["jasmin","plain"]}}'


def drawn(few: Snapshot, number: int, label: str, clean: Any, robust: Any) -> TrialRecord:
    """A finished trial of two parameters; its accuracies are functions of them."""
    rng = random.Random(number)
    own = {f"{label}.weight": rng.random(), "training.learning_rate": rng.random()}
    params = {"method": label, **own}
    distributions = {"method": LABELS, **dict.fromkeys(own, RANGE)}
    values = {"clean_acc": clean(*own.values()), "robust_acc": robust(*own.values())}
    changes = {"params": params, "distributions": distributions, "state": State.FINISHED, "label": label, **values}
    return replace(few.trials[0], number=number, **changes)


@pytest.fixture
def synthetic(unfinished: Ledger) -> Snapshot:
    """Clean accuracy is the learning rate alone, robust accuracy the method's weight alone; two methods in turn."""
    few = Snapshot.read(unfinished)
    labels = ["jasmin", "plain"] * 20
    trials = [drawn(few, n, label, lambda w, r: r, lambda w, r: w) for n, label in enumerate(labels)]
    return replace(few, trials=tuple(trials), stages={}, front=())


def of(found: list[Importances], label: str, objective: str) -> Importances:
    return next(i for i in found if (i.label, i.objective) == (label, objective))


def test_the_one_parameter_that_decides_is_found(synthetic: Snapshot) -> None:
    found = importances(synthetic)
    for label in ("jasmin", "plain"):
        clean, robust = of(found, label, "clean_acc"), of(found, label, "robust_acc")
        assert next(iter(clean.shares)) == "training.learning_rate"
        assert next(iter(robust.shares)) == f"{label}.weight"
        for one in (clean, robust):
            first, *others = one.shares.values()
            assert first > 0.8
            assert max(others) < 0.1
            assert set(one.shares) == {f"{label}.weight", "training.learning_rate", CHANCE}
            assert one.trials == 20


def test_over_all_methods_stand_the_choice_and_what_they_share(synthetic: Snapshot) -> None:
    better = [replace(t, robust_acc=0.7 if t.label == "jasmin" else 0.2) for t in synthetic.trials]
    found = importances(replace(synthetic, trials=tuple(better)))
    robust = of(found, "", "robust_acc")
    assert set(robust.shares) == {"method", "training.learning_rate", CHANCE}
    assert robust.shares["method"] > 0.95
    assert next(iter(of(found, "", "clean_acc").shares)) == "training.learning_rate"
    assert found[0].label == ""
    assert not [i for i in found if i.label and i.objective == "robust_acc"]  # nothing differs among them


def test_noise_is_not_told_apart_from_chance(synthetic: Snapshot) -> None:
    rng = random.Random(0)
    noisy = [replace(t, clean_acc=rng.random()) for t in synthetic.trials]
    shares = of(importances(replace(synthetic, trials=tuple(noisy))), "", "clean_acc").shares
    assert max(shares[name] for name in shares if name != CHANCE) < 3 * shares[CHANCE]


def test_the_values_are_those_that_the_search_was_told(synthetic: Snapshot) -> None:
    first, second = cascade("pgd", "autoattack")
    stages = {
        t.number: (judged(first, round(256 * t.params["training.learning_rate"]), t.number),) for t in synthetic.trials
    }
    fallen = [replace(t, robust_acc=0.0 if t.number % 3 else 0.5) for t in synthetic.trials]
    sweep = replace(synthetic.sweep, planned_stages=(first, second))
    snapshot = replace(synthetic, sweep=sweep, stages=stages, trials=tuple(fallen))
    shares = of(importances(snapshot), "jasmin", "robust_acc").shares
    assert next(iter(shares)) == "training.learning_rate"
    assert shares["training.learning_rate"] > 0.8


def test_too_few_trials_are_named_and_not_drawn(synthetic: Snapshot) -> None:
    few = replace(synthetic, trials=synthetic.trials[: FEWEST - 1])
    assert importances(few) == []
    assert what_is_missing(few, []) == ["jasmin (6 finished)", "plain (5 finished)"]
    assert importance_figure(few, []) is None
    some = replace(synthetic, trials=synthetic.trials[: 2 * FEWEST - 1])
    found = importances(some)
    assert {i.label for i in found} == {"", "jasmin"}
    assert what_is_missing(some, found) == ["plain (11 finished)"]


def test_a_parameter_whose_domain_was_changed_on_the_way_is_left_out(synthetic: Snapshot) -> None:
    wider = json.dumps(json.loads(RANGE) | {"attributes": {"step": None, "low": 0.0, "high": 2.0, "log": False}})
    first = synthetic.trials[0]
    changed = replace(first, distributions={**first.distributions, "training.learning_rate": wider})
    found = importances(replace(synthetic, trials=(changed, *synthetic.trials[1:])))
    assert set(of(found, "jasmin", "robust_acc").shares) == {"jasmin.weight", CHANCE}
    assert set(of(found, "plain", "robust_acc").shares) == {"plain.weight", "training.learning_rate", CHANCE}


def test_the_bars_stand_in_one_order_and_chance_is_grey(synthetic: Snapshot) -> None:
    figure = importance_figure(synthetic, importances(synthetic))
    assert figure is not None
    names = figure["layout"]["yaxis"]["categoryarray"]
    assert names == figure["layout"]["yaxis2"]["categoryarray"]
    assert names[-3:] == ["all methods · (chance)", "all methods · method", "all methods · learning_rate"]
    for bars in figure["data"]:
        places = [names.index(name) for name in bars["y"]]
        assert places == sorted(places, reverse=True)
        grey = [colour == GREY for colour in bars["marker"]["color"]]
        assert grey == [name.endswith(CHANCE) for name in bars["y"]]
    assert figure["data"][0]["marker"]["color"][0] == INK
    assert [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "xaxis2")] == [
        "clean accuracy",
        "robust accuracy",
    ]


def test_a_report_loads_neither_torch_nor_ray_nor_mlflow(
    synthetic: Snapshot, unfinished: Ledger, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from sweeps.ledger import Ledger; from sweeps.snapshot import Snapshot\n"
        "from sweeps.report import render_html\n"
        "s = Snapshot.read(Ledger.at(Path(sys.argv[1]))); t = s.trials[2]\n"
        "many = [replace(t, number=n, clean_acc=n / 99) for n in range(20)]\n"
        "many += [replace(s.trials[1], number=n, clean_acc=n / 99) for n in range(20, 40)]\n"
        "render_html(replace(s, trials=tuple(many), stages={}, front=()), 'finished', 'ui')\n"
        "assert 'sklearn' in sys.modules, 'no importances were computed'\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'trainables'} & set(sys.modules)))\n"
    )
    ledger = tmp_path / "runs" / "digits" / "ledger.db"
    done = subprocess.run([sys.executable, "-c", code, str(ledger)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
