"""Two trials side by side: every difference once, and nothing that is the same."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sweeps.compared import configuration_table, differing, outcome_table
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot, flatten
from tests.sweeps.test_terminal import printed

values = st.one_of(st.none(), st.booleans(), st.integers(0, 2), st.floats(0, 1), st.just([1, 2]))
configs = st.dictionaries(st.sampled_from("abc"), st.one_of(values, st.dictionaries(st.sampled_from("xy"), values)))


@given(configs, configs)
def test_a_row_is_a_value_that_differs_and_every_one_has_a_row(a: dict[str, object], b: dict[str, object]) -> None:
    one, other, missing = flatten(a), flatten(b), object()

    def same(name: str) -> bool:
        mine, theirs = one.get(name, missing), other.get(name, missing)
        return mine == theirs and isinstance(mine, bool) == isinstance(theirs, bool)

    assert sorted(name for name, *_ in differing(a, b)) == sorted(n for n in {*one, *other} if not same(n))
    assert differing(a, a) == []


def test_a_method_that_only_one_has_is_named_before_its_fields() -> None:
    a = {"training": {"epochs": 3, "clip_norm": None}, "methods": {}}
    b = {"training": {"epochs": 5, "clip_norm": 1.0}, "methods": {"jasmin": {"k": 3, "weight": 0.00123}, "plain": {}}}
    assert differing(a, b) == [
        ("methods.jasmin", "–", "yes"),
        ("methods.plain", "–", "yes"),
        ("training.epochs", "3", "5"),
        ("training.clip_norm", "null", "1"),
        ("methods.jasmin.k", "–", "3"),
        ("methods.jasmin.weight", "–", "0.00123"),
    ]


def test_the_tables_fit_and_say_what_became_of_both(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    one, two, _ = snapshot.trials[1:4]
    shown = printed(configuration_table(one, two), width=100)
    assert shown.startswith("What differs")
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[1:] if line.strip()}
    assert rows["methods.jasmin"] == ["yes", "–"]
    assert rows["methods.adversarial"] == ["–", "yes"]
    assert rows["methods.adversarial.steps"][0] == "–"
    assert rows["seed"] == ["1", "2"]
    assert not any(name.startswith(("model.", "data.")) for name in rows)
    shown = printed(outcome_table(snapshot, one, two), width=100)
    assert "robust accuracy [95 %]  0.391 [0.333, 0.452]" in shown
    assert "test robust accuracy    –" in shown
    assert "training                13.5 s" in shown
    assert "attacks                 35 s                  70 s" in shown


def test_replicates_differ_in_their_seeds_alone(unfinished: Ledger) -> None:
    trial = Snapshot.read(unfinished).trials[0]
    assert "they are replicates" in printed(configuration_table(trial, replace(trial, seed=9, number=9)))
    assert "same configuration, same seed" in printed(configuration_table(trial, replace(trial, number=9)))


def test_an_attack_that_only_one_has_met_is_shown_without_a_test(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    shown = printed(outcome_table(snapshot, snapshot.trials[2], snapshot.trials[3]), width=100)
    row = next(line for line in shown.splitlines() if line.startswith("validation.autoattack"))
    assert row.split() == ["validation.autoattack", "0.703", "–"]
