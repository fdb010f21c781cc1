"""The mirror on a real MLflow server, over HTTP: the same runs as in a database of its own, behind a password too."""

from __future__ import annotations

import base64
import shutil
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.tracking import Mirror, start_ui, stop_ui
from tests.sweeps import ledgers

USER, PASSWORD = "ann", "s3cret-of-ann"


class Remote(NamedTuple):
    """A server's files, and its process."""

    folder: Path
    address: str
    process: Any

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def again(self) -> Remote:
        """The same server in a new process, at the same address."""
        stop_ui(self.process)
        process, address = start_ui(f"sqlite:///{self.database}", int(self.address.rpartition(":")[2]))
        return self._replace(process=process, address=address)


@pytest.fixture(scope="module")
def remote(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Remote]]:
    """One server, in a list: a test may put another process there."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(_mlflow_template, folder / "mlflow.db")
    process, address = start_ui(f"sqlite:///{folder / 'mlflow.db'}")
    servers = [Remote(folder, address, process)]
    yield servers
    stop_ui(servers[0].process)


def rows(database: Path, *statements: str) -> list[list[tuple[Any, ...]]]:
    connection = sqlite3.connect(database)
    try:
        return [sorted(connection.execute(statement).fetchall(), key=repr) for statement in statements]
    finally:
        connection.close()


def runs_of(database: Path, artifacts: Path) -> dict[str, Any]:
    """All that the runs show, by the run's name; ids that the store has made up are spelled by those names."""
    runs, tags, params, metrics, inputs = rows(
        database,
        "SELECT run_uuid, name, status, start_time, end_time FROM runs",
        "SELECT run_uuid, key, value FROM tags",
        "SELECT run_uuid, key, value FROM params",
        "SELECT run_uuid, key, value, step, timestamp FROM metrics",
        "SELECT destination_id, d.name, digest, dataset_profile, t.value FROM inputs i JOIN input_tags t"
        " ON i.input_uuid = t.input_uuid JOIN datasets d ON i.source_id = d.dataset_uuid",
    )
    named = {run: name for run, name, *_ in runs}

    def spelled(value: str) -> str:
        for run, name in named.items():
            value = value.replace(run, name)
        return value

    def of(run: str, table: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [tuple(spelled(v) if isinstance(v, str) else v for v in row) for owner, *row in table if owner == run]

    found = {}
    for run, name, *facts in runs:
        files = {path.name: path.read_text() for path in (artifacts / run / "artifacts").iterdir()}
        found[name] = (facts, *(of(run, table) for table in (tags, params, metrics, inputs)), files)
    return found


def test_a_remote_server_gets_the_same_runs_and_survives_its_restart(
    unfinished: Ledger, folder: SweepFolder, store: str, remote: list[Remote], tmp_path: Path
) -> None:
    elsewhere = ledgers.folder_at(tmp_path / "copy")
    elsewhere.root.mkdir(parents=True)
    shutil.copy(folder.ledger, elsewhere.ledger)
    over_http = Ledger.at(elsewhere.ledger)
    with Lease(unfinished), Lease(over_http):
        Mirror(unfinished, folder, None, "paretune").sync()
        mirror = Mirror(over_http, elsewhere, remote[0].address, "paretune")
        mirror.sync()

        def both() -> tuple[dict[str, Any], dict[str, Any]]:
            (artifacts,) = remote[0].folder.glob("mlartifacts/*")
            local = runs_of(folder.storage / "mlflow.db", folder.default_artifacts)
            return local, runs_of(remote[0].database, artifacts)

        local, seen = both()
        assert len(seen) == 9
        assert seen == local
        mirror.sync()
        Mirror(over_http, elsewhere, remote[0].address, "paretune").sync()
        assert both()[1] == local, "another pass changes nothing"

        stop_ui(remote[0].process)
        for ledger in (unfinished, over_http):
            ledger.fail(5, "nan", "boom")
        with pytest.raises(Exception, match=r"refused|Max retries"):
            mirror.sync()
        remote[0] = remote[0].again()
        mirror.sync()
        Mirror(unfinished, folder, None, "paretune").sync()
        local, seen = both()
        assert seen["0005-plain"][0][0] == "FAILED"
        assert {name: found[0][0] for name, found in seen.items()} == {
            name: found[0][0] for name, found in local.items()
        }
    over_http.close()


@pytest.fixture
def gate(remote: list[Remote]) -> Iterator[str]:
    """The address of a gate that asks for USER and PASSWORD before it hands a request on to the server."""
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Gate(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            if self.headers.get("Authorization") != f"Basic {token}":
                self.answer(401, b"You are not authenticated.")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = urllib.request.Request(remote[0].address + self.path, body or None, method=self.command)
            request.add_header("Content-Type", self.headers.get("Content-Type", "application/json"))
            try:
                with urllib.request.urlopen(request) as answer:
                    self.answer(answer.status, answer.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_password_is_sent_and_never_written(
    finished: Ledger,
    folder: SweepFolder,
    gate: str,
    remote: list[Remote],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sweeps.report import build_report

    with Lease(finished):
        with pytest.raises(Exception, match="not authenticated"):
            Mirror(finished, folder, gate, "guarded").sync()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        Mirror(finished, folder, gate, "guarded").sync()
    assert finished.sweep().mlflow_uri == gate
    build_report(finished, folder)
    of_it = (
        "SELECT count(*) FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id WHERE e.name = 'guarded'"
    )
    (counted,) = rows(remote[0].database, of_it)
    assert counted == [(5,)]
    written = [path for top in (folder.storage, remote[0].folder) for path in top.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        content = path.read_bytes()
        assert PASSWORD.encode() not in content, path
        assert base64.b64encode(f"{USER}:{PASSWORD}".encode()) not in content, path
    assert PASSWORD not in caplog.text
