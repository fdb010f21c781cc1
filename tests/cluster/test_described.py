from __future__ import annotations

import math
from pathlib import Path

import pytest

from cluster.described import kind_of, nodes_of, read_nodes
from cluster.packing import Node
from cluster.resources import GB
from search_spaces.errors import ConfigError
from sweeps.yaml_source import read_document

PRESETS = Path(__file__).resolve().parents[2] / "cluster" / "presets"


def sizes(nodes: list[Node]) -> list[tuple[str, float, int]]:
    return [(node.name, node.cpus, len(node.devices)) for node in nodes]


def test_one_machine_with_four_gpus_is_four_words_short() -> None:
    (node,) = read_nodes("4x80GB")
    assert (node.name, node.cpus) == ("node 1", math.inf)
    assert [(d.node, d.index, d.kind, d.memory_bytes) for d in node.devices] == [
        ("node 1", index, "80 GB", 80 * GB) for index in range(4)
    ]


def test_machines_of_two_sizes_are_counted_through() -> None:
    nodes = read_nodes(" 2 * (8x24gb, 64CPU) + 16cpu ")
    assert sizes(nodes) == [("node 1", 64, 8), ("node 2", 64, 8), ("node 3", 16, 0)]
    assert not any(node.started_here for node in nodes)


@pytest.mark.parametrize(
    ("text", "kinds", "memory"),
    [
        ("1xa100:80GB", ["a100 80 GB"], 80 * GB),
        ("1xa100", ["a100"], None),
        ("2gpus", ["GPU", "GPU"], None),
        ("1xrtx4090:24GB,1xrtx4090:24GB", ["rtx4090 24 GB"] * 2, 24 * GB),
    ],
)
def test_a_kind_has_a_name_a_memory_or_neither(text: str, kinds: list[str], memory: int | None) -> None:
    (node,) = read_nodes(text)
    assert [device.kind for device in node.devices] == kinds
    assert {device.memory_bytes for device in node.devices} == {memory}
    assert [device.index for device in node.devices] == list(range(len(kinds)))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "found ''"),
        ("4x80", "found '4x80'"),
        ("4x", "found '4x'"),
        ("4x80GB,", "found '' in '4x80GB,'"),
        ("2*(8x24GB", "found '2*(8x24GB'"),
        ("8x24GB+", "found '' in '8x24GB+'"),
        ("0*(8x24GB)", "expected 1 to 1000 nodes"),
        ("999*(1cpu)+2*(1cpu)", "expected 1 to 1000 nodes; found '2*(1cpu)'"),
        ("65x24GB", "at most 64 GPUs"),
        ("8cpu,8cpu", "cpu may be given once"),
        ("0x24GB", "a node needs a GPU or a cpu"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_nodes(text)
    (problem,) = caught.value.problems
    assert part in problem.message
    assert problem.source == "--on"
    assert "4x80GB" in problem.hint


@pytest.mark.parametrize(
    ("preset", "nodes"), [("slurm", (2, 32, 4)), ("ray", (3, 16, 2)), ("aws", (8, 16, 1)), ("kuberay", (8, 8, 1))]
)
def test_settings_of_a_start_describe_their_nodes(preset: str, nodes: tuple[int, int, int]) -> None:
    count, cpus, gpus = nodes
    found, problems = nodes_of(read_document(PRESETS / f"{preset}.yaml")[0])
    assert problems == []
    assert sizes(found) == [(f"node {number}", cpus, gpus) for number in range(1, count + 1)]


def test_a_head_that_takes_no_trials_is_not_counted() -> None:
    nodes = {"count": 3, "cpus": 8, "gpus": 2, "gpu_type": "a100", "gpu_memory_gb": 40, "head_takes_trials": False}
    found, problems = nodes_of({"nodes": nodes, "slurm": {}})
    assert (len(found), problems) == (2, [])
    assert {(d.kind, d.memory_bytes) for node in found for d in node.devices} == {("a100 40 GB", 40 * GB)}


def test_mistakes_in_settings_are_all_said() -> None:
    found, problems = nodes_of({"nodes": {"cpus": 0, "gpu": 2}})
    assert found == []
    assert {problem.path for problem in problems} == {("nodes", "cpus"), ("nodes", "gpu")}


def test_a_kind_of_which_nothing_is_known_is_a_gpu() -> None:
    assert kind_of(None, None) == "GPU"
