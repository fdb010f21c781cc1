"""Nodes that share the sweep's folder and one that does not, on a real cluster of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.shared_objects import require_storage
from cluster.shared_storage import CHALLENGE, SharedStorage, answer_probe
from search_spaces.errors import StorageNotShared
from tests.cluster.own_mounts import ROOT, node_with, require_mounts


def test_a_node_answers_with_the_word_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / CHALLENGE).write_text("word")
    assert answer_probe(str(tmp_path), "n1") == ""
    assert (tmp_path / "n1").read_text() == "word"
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHALLENGE, "n1"]


def test_a_node_that_sees_nothing_says_so(tmp_path: Path) -> None:
    answer = answer_probe(str(tmp_path / "elsewhere"), "n1")
    assert answer == "cannot read what the driver wrote there (No such file or directory)"
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / CHALLENGE).write_text("word")
    (tmp_path / ".n1.tmp").mkdir()  # no file can have this name
    assert answer_probe(str(tmp_path), "n1").startswith("can read it and not write there (Is a directory")


def test_without_a_first_question_nobody_is_asked(tmp_path: Path) -> None:
    SharedStorage(tmp_path).look()  # no Ray here: asking would be an error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two nodes; this process has joined it."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="WARNING")
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def apart(cluster: str, tmp_path: Path) -> Iterator[Path]:
    """A folder that a third node, in a name space of its own, has something else mounted over."""
    folder = tmp_path / "runs"
    folder.mkdir()
    mounts = f"mount -t tmpfs none {folder}"
    require_mounts(mounts)
    with node_with(mounts, cluster, of=3):
        yield folder


@pytest.mark.ray
@pytest.mark.slow
def test_the_node_that_does_not_share_the_folder_is_refused_by_name(apart: Path, tmp_path: Path) -> None:
    require_storage(tmp_path, None)  # what is mounted over is below
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    with pytest.raises(StorageNotShared, match=r"node .* does not share .*runs: it cannot read what the driver wrote"):
        require_storage(apart, None)
    assert list(apart.iterdir()) == []


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_that_share_the_folder_pass_and_a_silent_one_does_not_hang(cluster: str, tmp_path: Path) -> None:
    probe = SharedStorage(tmp_path)
    probe.require()
    probe.look()
    probe.close()
    assert list(tmp_path.iterdir()) == []
    began = time.monotonic()
    with pytest.raises(StorageNotShared, match=r"has not answered in 0 s.*choose one with --storage"):
        SharedStorage(tmp_path, patience_s=0.0).require()
    assert time.monotonic() - began < 10
