"""A tracking server that is away: no trial waits, the driver says so, and `sync` completes MLflow afterwards."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.ledger import Ledger
from sweeps.records import State
from tests.crash.drivers import Driver, launch, ledger_says, open_ledger
from tests.crash.servers import Server
from tests.crash.test_lease import rows_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRIALS = 3
SHORT = (f"search.trials={TRIALS}", "attacks.test=null", "attacks.stages=[fgsm]")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    place = tmp_path / "server"
    place.mkdir()
    made = Server(place / "mlflow.db")
    yield made
    made.close()


def closed(count: int) -> Callable[[Ledger], bool]:
    return lambda ledger: len(ledger.trials([State.FINISHED])) >= count


@pytest.mark.parametrize("away", ["at the start", "in the middle", "at the end", "hanging"])
def test_a_sweep_does_not_miss_its_server_and_sync_completes_it_once(tmp_path: Path, server: Server, away: str) -> None:
    with contextlib.ExitStack() as meanwhile:
        if away == "hanging":  # takes connections and never answers
            meanwhile.enter_context(socket.create_server(("127.0.0.1", server.port)))
        elif away != "at the start":
            server.start()
        driver = launch(tmp_path, *SHORT, f"tracking.uri={server.address}")
        if away in ("in the middle", "at the end"):
            count = 1 if away == "in the middle" else TRIALS
            driver.wait_until(ledger_says(tmp_path, closed(count)))
            server.kill()
        assert driver.wait() == 0, driver.text()
    told = re.search(r"MLflow is behind: `python run_sweep\.py (.*)` completes it later\.", driver.text())
    assert told is not None, driver.text()
    assert_nothing_waited(tmp_path)
    refused = sync(tmp_path)
    assert refused.wait() == 2, refused.text()
    assert "MLflow is not up to date" in refused.text()
    assert "Traceback" not in refused.text()
    server.start()
    done = Driver(tmp_path, *told[1].split())
    assert done.wait() == 0, done.text()
    assert_complete(tmp_path, server)
    before = rows_of(server.database)
    again = sync(tmp_path)
    assert again.wait() == 0, again.text()
    assert rows_of(server.database) == before


def sync(storage: Path) -> Driver:
    return Driver(storage, "sync", "s", "--storage", ".")


def assert_nothing_waited(storage: Path) -> None:
    """One call to a server that hangs takes 5 s and a trial would make several; none took that long for an epoch."""
    ledger = open_ledger(storage)
    events = [event.at for event in ledger.events() if event.kind == "epochs"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(events)]
    assert sorted(gaps)[len(gaps) // 2] < 5
    ledger.close()


def assert_complete(storage: Path, server: Server) -> None:
    """One finished parent, one finished run for each trial, with the ledger's figures."""
    ledger = open_ledger(storage)
    with sqlite3.connect(server.database) as connection:
        status = dict(connection.execute("SELECT run_uuid, status FROM runs"))
        numbers = dict(connection.execute("SELECT value, run_uuid FROM tags WHERE key = 'trial.number'"))
        roles = Counter(value for (value,) in connection.execute("SELECT value FROM tags WHERE key = 'sweep.role'"))
        figures: dict[Any, float] = {
            (run, key): value
            for run, key, value in connection.execute("SELECT run_uuid, key, value FROM latest_metrics")
        }
    connection.close()
    assert roles == {"sweep": 1, "trial": TRIALS}
    assert set(status.values()) == {"FINISHED"}
    for trial in ledger.trials():
        run = numbers[str(trial.number)]
        assert run == trial.mlflow_run_id
        assert figures[run, "clean_acc"] == trial.clean_acc
        assert figures[run, "robust_acc"] == trial.robust_acc
    ledger.close()
