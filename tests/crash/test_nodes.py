"""Nodes of a cluster that die like machines, and come: what that costs, and that a sweep goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeps.records import State
from tests.crash.evidence import assert_judged_once, assert_nothing_twice
from tests.crash.nodes import EPOCHS, Nodes, Sweep, at_work
from tests.crash.storm import assert_equal_to_reruns

pytestmark = pytest.mark.ray

TRAINS = "Trainable"
"""In the title of a worker that trains; Ray's own name for it depends on what it does."""
Start = Callable[..., tuple[Nodes, Sweep]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Make a cluster and launch a sweep on it; both are put away at the end."""
    made: list[tuple[Nodes, Sweep]] = []

    def begin(*settings: str, pace_s: float, nodes: int = 3, gpus: int = 2) -> tuple[Nodes, Sweep]:
        cluster = Nodes(tmp_path / "notes", pace_s, nodes, gpus)
        made.append((cluster, Sweep(tmp_path, cluster.address, *settings)))
        return made[-1]

    yield begin
    for cluster, sweep in made:
        sweep.stop()
        cluster.close()


def assert_whole(sweep: Sweep, trials: int) -> None:
    """The sweep has ended by itself, nothing was done twice, and every trial is what it is without any loss."""
    assert sweep.driver.wait() == 0, sweep.driver.text()
    with sweep.ledger() as ledger:
        found = ledger.trials()
        assert [t.number for t in found] == list(range(trials))
        assert {t.state for t in found} == {State.FINISHED}
        assert_nothing_twice(ledger, sweep.folder)
        assert_judged_once(sweep.folder)
        assert_equal_to_reruns(ledger)


@pytest.mark.slow
def test_a_node_that_dies_costs_the_epochs_under_way_on_it_and_one_that_joins_is_used(start: Start) -> None:
    nodes, sweep = start("search.trials=3", pace_s=0.3, nodes=2, gpus=1)
    sweep.until(lambda: any(2 <= done < EPOCHS - 1 for done in sweep.epochs()))
    lost = max(nodes.there, key=lambda node: nodes.begun("epochs", node))
    nodes.kill(lost)
    new = nodes.add()
    sweep.until(lambda: nodes.begun("epochs", new) + nodes.begun("units", new) > 0)
    assert_whole(sweep, 3)
    assert nodes.begun("epochs") <= 3 * EPOCHS + 1
    assert list(sweep.failed_as().values()) in ([], [{"node": 1}])
    assert "lost node" in sweep.driver.text()
    assert "joined by node" in sweep.driver.text()


@pytest.mark.slow
def test_three_nodes_with_two_gpus_each_lose_one_and_its_trainings_go_on_elsewhere(start: Start) -> None:
    nodes, sweep = start("search.trials=8", pace_s=1.0)
    sweep.until(lambda: sum(sweep.epochs()) >= 10)
    lost = max(nodes.there, key=lambda node: len(at_work(node, TRAINS)))
    nodes.kill(lost)
    assert_whole(sweep, 8)
    assert nodes.begun("epochs") <= 8 * EPOCHS + 2
    assert all(failed == {"node": 1} for failed in sweep.failed_as().values())
    assert len(sweep.failed_as()) <= 2


@pytest.mark.slow
def test_a_node_that_dies_under_an_attack_costs_the_units_under_way(start: Start) -> None:
    nodes, sweep = start("search.trials=3", pace_s=1.5, nodes=2, gpus=1)
    sweep.until(lambda: any(at_work(node, "judge_shard") and nodes.begun("units", node) for node in nodes.there))
    lost = next(node for node in nodes.there if at_work(node, "judge_shard"))
    under_way = len(at_work(lost, "judge_shard"))
    nodes.kill(lost)
    nodes.add()
    assert_whole(sweep, 3)
    assert nodes.begun("units") <= sweep.attacked_units() + under_way
    assert under_way <= 2


@pytest.mark.slow
def test_nodes_that_join_get_trainings_without_a_restart(start: Start) -> None:
    nodes, sweep = start("search.trials=6", pace_s=1.0, nodes=1, gpus=1)
    sweep.until(lambda: sum(sweep.epochs()) >= 1)
    new = nodes.add(2)
    sweep.until(lambda: "2 trainings at once" in sweep.driver.text() or "3 trainings at once" in sweep.driver.text())
    sweep.until(lambda: nodes.begun("epochs", new) > 0)
    assert_whole(sweep, 6)
    assert nodes.begun("epochs") == 6 * EPOCHS
    assert sweep.failed_as() == {}


@pytest.mark.slow
def test_without_any_node_the_driver_waits_and_says_so_and_goes_on_when_one_comes(start: Start) -> None:
    nodes, sweep = start("search.trials=3", pace_s=0.5, nodes=1, gpus=1)
    sweep.until(lambda: sum(sweep.epochs()) >= 2)
    nodes.kill(nodes.there[0])
    sweep.until(lambda: "no node can take a training: waiting" in sweep.driver.text())
    time.sleep(10)
    nodes.add()
    assert_whole(sweep, 3)
    assert sweep.driver.text().count("waiting") == 1
    assert nodes.begun("epochs") <= 3 * EPOCHS + 1


@pytest.mark.slow
def test_a_lost_head_ends_the_driver_with_a_sentence_and_resume_finishes_on_another_cluster(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "12")
    nodes, sweep = start("search.trials=2", pace_s=0.5, nodes=1, gpus=2)
    sweep.until(lambda: sum(sweep.epochs()) >= 2)
    nodes.kill_head()
    assert sweep.driver.wait(30) == 3, sweep.driver.text()
    assert "the head of the cluster" in sweep.driver.text()
    assert "resume" in sweep.driver.text()
    nodes.close()
    again = Nodes(tmp_path / "again", 0, 1, 2)
    try:
        sweep.resume(again.address)
        assert_whole(sweep, 2)
        assert sweep.failed_as() == {}
    finally:
        again.close()


@pytest.mark.slow
def test_what_asks_for_a_gpu_goes_only_where_one_is(start: Start) -> None:
    nodes, sweep = start("search.trials=2", "resources.evaluation.gpus=1", pace_s=0, nodes=1, gpus=2)
    without = nodes.add(0)
    assert_whole(sweep, 2)
    assert nodes.begun("epochs", without) == nodes.begun("units", without) == 0
    assert nodes.begun("epochs", nodes.there[0]) == 2 * EPOCHS
