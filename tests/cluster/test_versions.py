"""Nodes that run something else are found and listed, on a real cluster with a changed copy of the project."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.every_node import can_work
from cluster.versions import OURS, SameEnvironment, carried, describe, differences, source_digest
from search_spaces.errors import MixedEnvironments
from tests.cluster.own_mounts import ROOT, node_with, require_mounts


def test_a_process_knows_what_it_runs(tmp_path: Path) -> None:
    import platform

    import numpy
    import ray
    import torch

    (tmp_path / "mine.py").write_text("x = 1\n")
    found = describe([str(tmp_path / "mine.py"), str(tmp_path / "gone.py")])
    assert found["python"] == platform.python_version()
    assert found["numpy"] == numpy.__version__
    assert found["ray"] == ray.__version__
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["project"] == source_digest()
    assert len(found[f"plugin {tmp_path / 'mine.py'}"]) == 12
    assert found[f"plugin {tmp_path / 'gone.py'}"] == "No such file or directory"


def test_the_digest_of_the_project_sees_a_changed_a_new_and_a_renamed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tiny_package_of_a_test"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")

    def digest() -> str:
        return source_digest([package.name])

    seen = [digest()]
    (package / "notes.txt").write_text("no code")
    assert digest() == seen[0]
    (package / "a.py").write_text("x = 2\n")
    seen.append(digest())
    (package / "b.py").write_text("")
    seen.append(digest())
    (package / "a.py").rename(package / "c.py")
    seen.append(digest())
    assert len(set(seen)) == 4


def test_what_differs_is_a_table_of_nodes_and_things() -> None:
    mine = {"python": "3.11.7", "torch": "2.15.0", "project": "aaa"}
    answers = {
        "n2 (2)": {"python": "3.11.7", "torch": "2.14.1", "project": "bbb"},
        "n1 (1)": dict(mine),
        "n3 (3)": "has not answered in 60 s",
    }
    assert differences(mine, answers) == [
        "node    what     there   here",
        "n2 (2)  torch    2.14.1  2.15.0",
        "n2 (2)  project  bbb     aaa",
        "n3 (3)  has not answered in 60 s",
    ]
    assert differences(mine, {"n1": dict(mine)}) == []
    assert differences(mine, {"n1": {**mine, "timm": "1"}}) == ["node  what  there  here", "n1    timm  1      none"]


def test_a_node_without_devices_is_not_asked() -> None:
    assert not can_work({"Resources": {"memory": 1.0, "node:head": 1.0}})
    assert can_work({"Resources": {"CPU": 1.0}})
    assert can_work({"Resources": {"GPU": 1.0}})


def test_what_is_carried_are_the_packages_and_nothing_else() -> None:
    environment = carried()
    assert environment["py_modules"] == [str(ROOT / name) for name in OURS]
    assert environment["excludes"] == ["**/__pycache__"]


def test_workers_of_a_cluster_get_the_allocator_that_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert carried()["env_vars"] == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    assert carried()["env_vars"] == {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cluster of a head, which this process has joined, and a node that has another copy of the project mounted over
    the project's own folders; the copy."""
    import ray
    from ray.cluster_utils import Cluster

    require_mounts("true")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in OURS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    mounts = " && ".join(f"mount --bind {tmp_path / name} {ROOT / name}" for name in OURS)
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="WARNING")
        with node_with(mounts, nodes.address, of=2):
            yield tmp_path
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_with_other_code_or_without_a_plugin_is_refused_by_name(changed: Path) -> None:
    SameEnvironment().require()  # an exact copy
    plugin = changed / "plugin.py"
    plugin.write_text("x = 1\n")
    same = SameEnvironment([str(plugin)])
    same.require()
    same.look()
    code = changed / "trainables" / "training.py"
    code.write_text(code.read_text() + "\n# changed\n")
    with pytest.raises(
        MixedEnvironments, match=r"node +what +there +here\n.*\) +project +\w{12} +\w{12}\n.*Install the"
    ):
        SameEnvironment().require()
    with pytest.raises(MixedEnvironments, match=r"has not answered in 0 s"):
        SameEnvironment(patience_s=0.0).require()
