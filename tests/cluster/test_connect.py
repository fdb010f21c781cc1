from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.connect import joined_nodes, redirect_logging


@pytest.fixture
def loggers() -> Iterator[None]:
    names = ("ray", "optuna", "mlflow", "alembic", "paretune", "py.warnings")
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names}
    yield
    logging.captureWarnings(False)
    for handler in {h for name, (old, _) in before.items() for h in logging.getLogger(name).handlers if h not in old}:
        with contextlib.suppress(OSError):
            handler.close()
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).propagate = propagate


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_costs_lines_of_the_log_and_no_traceback(
    loggers: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "driver.log").symlink_to("/dev/full")
    redirect_logging(tmp_path / "driver.log")
    logging.getLogger("mlflow").error("the database is full")
    assert capsys.readouterr() == ("", "")


def test_what_libraries_say_goes_to_the_log(loggers: None, tmp_path: Path) -> None:
    redirect_logging(tmp_path / "driver.log")
    logging.getLogger("ray.tune").error("a worker died")
    assert "ERROR ray.tune: a worker died" in (tmp_path / "driver.log").read_text()


def test_the_nodes_of_a_cluster_are_those_that_live_each_with_its_kind_of_gpu() -> None:
    has = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "memory": 1e9}
    listed = [
        {"Alive": True, "NodeID": "a" * 56, "NodeManagerHostname": "one", "Resources": has},
        {"Alive": False, "NodeID": "b" * 56, "NodeManagerHostname": "two", "Resources": {}},
        {"Alive": True, "NodeID": "c" * 56, "NodeManagerHostname": "one", "Resources": {"memory": 1e9}},
    ]
    first, head = joined_nodes(listed)
    assert (first.name, first.cpus) == ("one aaaaaaaa", 8)
    assert [(d.node, d.index, d.kind, d.memory_bytes) for d in first.devices] == [
        ("one aaaaaaaa", 0, "A100", None),
        ("one aaaaaaaa", 1, "A100", None),
    ]
    assert (head.cpus, head.devices, head.started_here) == (0, (), False)
