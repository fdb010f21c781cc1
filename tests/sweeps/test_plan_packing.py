"""What fits at once, as a person reads it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.described import read_nodes
from cluster.packing import Node
from cluster.resources import GB
from sweeps.config import parse_sweep
from sweeps.measured_memory import Need, Needs
from sweeps.memory_classes import classes_of
from sweeps.plan_packing import packing_rows


def shown(nodes: list[Node], **resources: Any) -> list[str]:
    config = parse_sweep({"data": {"name": "digits"}, "attacks": {}, "resources": resources})
    return [text for _, text in packing_rows(config, nodes)]


def test_devices_and_nodes_that_are_alike_share_a_row() -> None:
    lines = shown(read_nodes("3*(4x80GB,32cpu)"), gpus=0.5)
    where, _, what = lines[0].partition(": ")
    assert where == "3 nodes (12 × 80 GB, 96 CPUs)"
    assert what == "23 trainings at once, 1 CPU and 0.5 GPU; beside them 1 attack, 1 CPU and 0.25 GPU"
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:5]]
    assert cells == [
        ["node", "GPU", "on each", "left of each", "CPUs left"],
        ["node 1", "0", "attack 0.25, training 0.5", "0.25", "24 of 32"],
        ["1–3", "2 × training 0.5", "0"],
        ["node 2 to node 3", "0–3", "2 × training 0.5", "0", "24 of 32"],
    ]


def test_what_is_printed_fits_into_a_hundred_columns_beside_the_label() -> None:
    rows = shown(read_nodes("3*(4xa100:80GB,64cpu)+2*(8x24GB,32cpu)+16cpu"), memory_gb=9)
    assert max(len(row) for row in rows[1:6]) <= 80


def test_unequal_gpus_get_each_their_own_share() -> None:
    lines = shown(read_nodes("(2x80GB,32cpu)+(2x24GB,32cpu)"), memory_gb=12, evaluation={"memory_gb": 6})
    assert "15 trainings at once, 1 CPU and 0.15 of 80 GB, 0.5 of 24 GB" in lines[0]  # 5 beside an attack, 6, 2 and 2
    assert any("attack 0.25, 5 × training 0.15" in line for line in lines)
    assert any("2 × training 0.5" in line for line in lines)


def test_what_was_measured_is_laid_out_for_the_class_that_needs_most_with_a_line_for_each() -> None:
    methods = ["plain", {"jasmin": {"k": 0, "aggregation": "max"}}]
    config = parse_sweep({"data": {"name": "digits"}, "attacks": {}, "methods": methods})
    plain, jasmin = classes_of(config)
    needs = Needs(
        Need("training", of.label, of.parts, of.images, "80 GB", gb * GB, {}) for of, gb in ((plain, 8), (jasmin, 20))
    )
    lines = [line for _, line in packing_rows(config, read_nodes("2x80GB,32cpu"), needs)]
    assert "7 trainings at once, 1 CPU and 0.25 GPU" in lines[0]
    assert f"{plain.label}: 8.0 GB, 0.1 of 80 GB; 17 at once" in lines
    assert f"{jasmin.label}: 20.0 GB, 0.25 of 80 GB; 7 at once" in lines
    assert not any("no measurement" in line for line in lines)


def test_more_than_fits_waits_and_says_so() -> None:
    lines = shown(read_nodes("1x80GB,8cpu"), concurrent=5)
    assert "4 of the trainings asked for would wait: what is there is taken" in lines


def test_a_training_on_several_gpus_is_on_whole_ones() -> None:
    lines = shown(read_nodes("4x80GB,8cpu"), gpus=2)
    assert "1 training at once, 1 CPU and 2 GPU" in lines[0]
    assert any("1–2" in line and "training of 2 GPUs" in line for line in lines)
    assert any(" 3 " in line and "nothing" in line for line in lines)


def test_a_laptop_needs_one_line() -> None:
    lines = shown([Node("this machine", 2, (), started_here=True)])
    assert lines == ["this machine (2 CPUs): 2 trainings at once, 1 CPU; beside them 1 attack, 1 CPU"]


def test_cores_that_nobody_counted_are_not_said_to_be_left() -> None:
    lines = shown(read_nodes("2x80GB"))
    assert "CPU" not in lines[0].partition(":")[0]
    assert any(line.endswith("not counted") for line in lines)


@pytest.mark.parametrize(
    ("resources", "said"),
    [({"gpus": 2}, "a training needs 2 GPU"), ({"memory_gb": 99}, "resources.memory_gb: a training needs 99 GB")],
)
def test_what_cannot_run_there_is_said_and_nothing_is_laid_out(resources: dict[str, Any], said: str) -> None:
    (line,) = shown(read_nodes("1x80GB,4cpu"), **resources)
    assert line.startswith("not on node 1 (1 × 80 GB, 4 CPUs): ")
    assert said in line
