from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.connect import redirect_logging


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
