"""A whole sweep on two kinds of GPUs that Ray only counts: what was measured decides who runs where, and with how much.

The devices' memory and the measurements are made up, because there are none; Ray, Tune, the ledger and the packing are
the real ones.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.connect import prepare_environment
from cluster.packing import Node
from cluster.resources import GB
from run_sweep import app
from search_spaces.seeds import derive_seed
from sweeps.config import parse_sweep
from sweeps.creation import create_sweep
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.measured_memory import MEASURED, Need
from sweeps.probing import Question
from sweeps.records import Event
from sweeps.runner import drive

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    ),  # a driver's log ends with its process
]
QUICKSTART = Path(__file__).resolve().parents[2] / "sweeps" / "presets" / "quickstart.yaml"
MEMORY = {"A100": 80 * GB, "L4": 24 * GB}
NEEDS = {"plain": 18 * GB, "jasmin": 30 * GB, "attack": 4 * GB}
DOCUMENT = {
    "model": {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "data": {"name": "digits", "train_images": 100, "validation_images": 40, "test_images": 40},
    "training": {"epochs": 2, "batch_size": 50},
    "methods": ["plain", {"jasmin": {"k": 0, "aggregation": "max"}}],
    "attacks": {"epsilon": 0.05, "images": 20, "stages": [{"pgd": {"steps": 2}}], "test": None},
    "search": {"trials": 6, "allocation": "equal", "seed": derive_seed(1, "measured")},
    "resources": "auto",
    "tracking": {"enabled": False},
}


@pytest.fixture
def cluster() -> Iterator[str]:
    """A head without CPUs, a node with an A100 and one with an L4, as far as Ray knows."""
    prepare_environment()
    import ray
    from ray.cluster_utils import Cluster

    made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for kind in MEMORY:
        made.add_node(num_cpus=4, num_gpus=1, resources={f"accelerator_type:{kind}": 1})
    yield str(made.address)
    ray.shutdown()
    made.shutdown()


def with_memory(nodes: Sequence[Node], before: Sequence[Node] = ()) -> list[Node]:
    return [
        replace(
            node,
            devices=tuple(
                replace(d, kind=f"{d.accelerator} card", memory_bytes=MEMORY[d.accelerator]) for d in node.devices
            ),
        )
        for node in nodes
    ]


def measured(question: Question) -> tuple[Future[dict[str, Any]], Callable[[], None]]:
    needed = NEEDS[question.of.label.partition(",")[0] if question.purpose == "training" else "attack"]
    fits = needed <= MEMORY[question.device.accelerator]
    of = question.of
    need = Need(question.purpose, of.label, of.parts, of.images, question.device.kind, needed if fits else None, {})
    future: Future[dict[str, Any]] = Future()
    future.set_result(need.plain())
    return future, lambda: None


def test_what_was_measured_decides_where_trainings_run_and_with_how_much(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.machine.with_memory", with_memory)
    monkeypatch.setattr("sweeps.probing.measure.__defaults__", (measured,))
    config = parse_sweep(DOCUMENT)
    folder = SweepFolder(tmp_path, "measured")
    said = io.StringIO()
    console = Console(file=said, width=200)
    create_sweep(config, folder, lambda text: None)
    assert drive(folder, console, address=cluster).exit_code == 0, said.getvalue()
    ledger = Ledger.at(folder.ledger)
    try:
        trials = {trial.number: trial for trial in ledger.trials()}
        events = ledger.events()
        assert len(ledger.driver_events(MEASURED)) == 2 * (2 + 2)
    finally:
        ledger.close()
    assert len(trials) == 6
    assert {trial.state.value for trial in trials.values()} == {"finished"}
    allowed = {
        "plain": [{"CPU": 1.0, "GPU": 0.23, KIND + "A100": 0.001}, {"CPU": 1.0, "GPU": 0.75, KIND + "L4": 0.001}],
        "jasmin": [{"CPU": 1.0, "GPU": 0.38, KIND + "A100": 0.001}],
    }
    started = [event for event in events if "gets" in event.detail]
    assert len(started) == 6
    for event in started:
        assert event.detail["gets"] in allowed[trials[event.number or 0].label]
    of_process: dict[str, set[str]] = defaultdict(set)
    for event in started:
        for pid in re.findall(r"pid (\d+)", folder.trial_log(event.number or 0).read_text()):
            of_process[pid].add(str(event.detail["gets"]))
    assert of_process
    assert all(len(shares) == 1 for shares in of_process.values()), "a worker is reused within one share alone"
    assert most_at_once(events) <= 4, "an L4 holds one, and an A100 three beside the attacks"
    assert "plain, 8 px, 50 images, float32 needs 18.0 GB of A100 card, 22% of it" in said.getvalue()
    assert "jasmin, 8 px, 50 images, float32 does not fit on L4 card" in said.getvalue()


KIND = "accelerator_type:"


def most_at_once(events: Sequence[Event]) -> int:
    """Return how many trainings ran at the same time at most."""
    running: set[int] = set()
    most = 0
    for event in events:
        if "gets" in event.detail:
            running.add(event.number or 0)
        elif event.kind == "trained":
            running.discard(event.number or 0)
        most = max(most, len(running))
    return most


def test_a_plan_for_a_cluster_that_runs_shows_what_fits_on_its_nodes(cluster: str) -> None:
    done = CliRunner().invoke(app, ["plan", str(QUICKSTART), "--address", cluster], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    packing = " ".join(done.output.split()).partition("packing ")[2]
    nodes = re.match(r"2 nodes \((.*), 8 CPUs\): (.*); beside them 1 attack", packing)
    assert nodes is not None, packing
    assert sorted(nodes[1].split(", ")) == ["1 × A100", "1 × L4"]
    assert nodes[2] == "2 trainings at once, 1 CPU and 0.75 GPU"
