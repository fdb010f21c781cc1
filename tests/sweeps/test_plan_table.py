"""The table of one plan: its trials, its columns, and nothing of any other plan."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.plan_table import plan_table
from sweeps.snapshot import Snapshot
from tests.sweeps import ledgers

PLAN = (
    ledgers.planned("pgd", 2, plan="more"),
    ledgers.planned("FGSM4", 3, plan="more", cumulative=False, threat={"norm": "linf", "epsilon": 4 / 255}),
    ledgers.planned("pgd", 2, "test", plan="more"),
)


def shown(ledger: Ledger, numbers: list[int], plan: str = "more") -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(plan_table(Snapshot.read(ledger), plan, numbers))
    return stream.getvalue()


def judge(ledger: Ledger, number: int, counts: tuple[int, ...]) -> None:
    for stage, left in zip(PLAN, counts, strict=False):
        record = ledgers.judged(stage, left, number)
        ledger.start_stage(replace(record, state="running"))
        ledger.finish_stage(record, exact=False)


def test_a_row_for_each_trial_and_a_column_for_each_attack_with_its_interval(
    open_ledger: Callable[..., Ledger], folder: SweepFolder
) -> None:
    ledger = open_ledger(ledgers.finished)
    with Lease(ledger):
        ledger.add_plan("more", PLAN)
        judge(ledger, 0, (64, 128, 32))
        judge(ledger, 1, (192,))
        judge(ledger, 2, (0,))
    text = shown(ledger, [0, 1])
    lines = text.splitlines()
    assert lines[0].strip() == "Plan more"
    for words in ("pgd", "FGSM4, ε = 4/255", "test pgd"):
        assert words in text
    assert "autoattack" not in text  # of the launched plan
    (first,) = (line for line in lines if " plain " in line)
    assert first.split() == ["0", "plain", "0.950", "0.250", "0.500", "0.125"]
    assert "[0.201, 0.306]" in lines[lines.index(first) + 1]  # Wilson's for 64 of 256
    (second,) = (line for line in lines if line.split()[:1] == ["1"])
    assert second.split()[2:] == ["0.900", "0.750", "–", "–"]
    assert not any(line.split()[:1] == ["2"] for line in lines)


def test_without_a_trial_there_are_only_the_heads(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(ledgers.finished)
    with Lease(ledger):
        ledger.add_plan("more", PLAN)
    assert "FGSM4" in shown(ledger, [])
    assert "plain" not in shown(ledger, [])
