"""Every durable write × {before, torn, after}: killed there and run again, a sweep ends as if it had not been."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.object_store import ObjectStore
from search_spaces.faults import MODES, WRITES
from sweeps.export import export_json
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.mirrored import curves, finals, params_of, run_status, tags_of
from sweeps.records import CLOSED
from sweeps.snapshot import Snapshot
from sweeps.summary import status
from tests.crash.inline import NAME, ROOT, STATEMENT, Nursery, journal
from tests.object_server import KEYS, new_place, object_server

__all__ = ["object_server"]

ENUMERATED = ("whole", "bare", "remote")
"""Lives that reach every point between them."""
POINTS = tuple(f"{name}:{mode}" for name in WRITES for mode in MODES)
OF_OBJECTS = ("objects.", "sweep.objects")
"""What points begin with that only a sweep in an object store has."""
WITH_OBJECTS = (*OF_OBJECTS, "checkpoint.", "verdict.")
"""And those whose files are there in copies."""
PAGE = ROOT / "docs" / "resume.md"
HALF_BATCHES = ("store._log_metrics", "store._set_tags")
"""Within MLflow's own writing of a batch: its parameters have arrived, its metrics too."""
COMPUTED = ("epoch", "unit")
"""What a line of the journal begins with that tells of work."""
COMPUTED_AGAIN = {
    f"{name}:{mode}": what
    for name, what in (("checkpoint.epoch", "epoch"), ("verdict.unit", "unit"))
    for mode in ("before", "torn")
}
"""Where a kill loses what has just been computed: the current epoch, or the current unit of an attack."""


@dataclass(frozen=True)
class Life:
    """A sweep that nothing has disturbed."""

    storage: Path
    points: tuple[str, ...]
    """All that were reached, in order."""
    strays: tuple[str, ...]
    """Writes outside a point."""
    results: Mapping[str, Any]


@pytest.fixture(scope="module")
def lives(nursery: Nursery, object_server: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Life]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        nursery.objects = new_place(object_server)
        yield {life: watched(nursery, tmp_path_factory.mktemp(life), life) for life in ENUMERATED}


def watched(nursery: Nursery, storage: Path, life: str) -> Life:
    assert nursery.run(storage, life=life, watched=True) == 0, nursery.last_words()
    seen = json.loads((storage / "watch.json").read_text())
    return Life(storage, tuple(seen["points"]), tuple(seen["strays"]), results(storage))


def results(storage: Path) -> dict[str, Any]:
    """What must not depend on interruptions: all that the ledger holds but times, attempts, costs in seconds and ids.

    A stopped trial's epochs are those that it had reported by then. Where the objects are is each sweep's own.
    """
    ledger = Ledger.at(SweepFolder(storage, NAME).ledger)
    try:
        sweep = ledger.sweep()
        keys = ("number", "state", "label", "config", "params", "seed", "clean_acc", "robust_acc", "exact")
        keys += ("test_clean_acc", "test_robust_acc", "failures", "error_kind")
        trials = [{key: getattr(t, key) for key in keys} for t in ledger.trials()]
        for trial, record in zip(trials, ledger.trials(), strict=True):
            trial |= {"weights": record.weights_digest, "epochs": None if record.state == "stopped" else record.epochs}
        stages = [
            (s.number, s.plan, s.split, s.attack, s.state, s.digest, s.survivors, s.forwards, s.backwards, s.tries)
            for s in ledger.stages()
        ]
        verdicts = [None if s.verdicts is None else s.verdicts.tolist() for s in ledger.stages()]
        document = {name: value for name, value in sweep.document.items() if name != "storage"}
        history = [without_times(ledger.history(t.number)) for t in ledger.trials() if t.state != "stopped"]
        return {
            "trials": trials,
            "stages": stages,
            "verdicts": verdicts,
            "history": history,
            "front": [item["trial"] for item in status(ledger)["front"]],
            "sweep": (sweep.requested, document, sweep.planned_stages, sweep.completed_at is not None),
            "objects": sorted(objects_of(storage)),
            "prior": ledger.prior(),
            "waiting": ledger.waiting_known(),
        }
    finally:
        ledger.close()


def objects_of(storage: Path) -> dict[str, int]:
    """The bytes of every object of the sweep; none if it has files."""
    place = SweepFolder(storage, NAME).objects
    return {} if place is None else ObjectStore(place).sizes()


def without_times(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "cost/epoch_s"} for epoch in history]


def assert_whole(storage: Path, life: Life, killed_at: Sequence[str]) -> None:
    """Nothing lost, nothing twice, nothing open, and no record that contradicts another."""
    assert results(storage) == life.results
    ledger = Ledger.at(SweepFolder(storage, NAME).ledger)
    try:
        trials = ledger.trials()
        assert [t.number for t in trials] == list(range(ledger.sweep().requested))
        assert all(t.state in CLOSED for t in trials)
        assert all(stage.state in ("done", "failed") for stage in ledger.stages())
        assert ledger.lease() is None
        once = Counter((e.number, e.kind) for e in ledger.events() if e.kind in ("proposed", "trained", "finished"))
        assert set(once.values()) == {1}
        asked = Counter(e.detail["request"] for e in ledger.events() if "request" in e.detail)
        assert set(asked.values()) <= {1}
        assert_mirrored(storage, ledger)
    finally:
        ledger.close()
    expected = Counter(COMPUTED_AGAIN[point] for point in killed_at if point in COMPUTED_AGAIN)
    assert computed_again(storage) == expected
    stopped = tuple(f"epoch {t.seed} " for t in trials if t.state == "stopped")
    assert computed(storage, but=stopped) == computed(life.storage, but=stopped)
    assert not list((storage / NAME).rglob(".*")), "half-written files are left"


def computed(storage: Path, but: tuple[str, ...]) -> set[str]:
    """All that was computed. Args: but: lines that begin so; how far a stopped trial came depends on when it was.

    What was asked is left out: whoever dies between asking and noting it finds it granted, and does not ask again.
    """
    return {line for line in journal(storage) if line.startswith(COMPUTED) and not line.startswith(but)}


def computed_again(storage: Path) -> Counter[str]:
    """How many epochs and units were computed more than once, counted each time."""
    again: Counter[str] = Counter()
    for line, count in Counter(journal(storage)).items():
        again[line.split()[0]] += count - 1
    return Counter({what: again[what] for what in COMPUTED if again[what]})


def assert_mirrored(storage: Path, ledger: Ledger) -> None:
    """MLflow has one parent and one run per trial, and what each shows is what the ledger says."""
    rows = mlflow_rows(storage)
    snapshot = Snapshot.read(ledger)
    tags = {run: {key: value for key, value, owner in rows["tags"] if owner == run} for run, *_ in rows["runs"]}
    states = dict(rows["runs"])
    (parent,) = (run for run, found in tags.items() if found["sweep.role"] == "sweep")
    assert (parent, states[parent]) == (ledger.sweep().mlflow_run_id, "FINISHED")
    assert len(tags) == len(snapshot.trials) + 1
    for trial in snapshot.trials:
        run, events = trial.mlflow_run_id, ledger.events(trial.number)
        assert run is not None
        assert trial.mlflow_revision == trial.revision
        assert tags[run]["trial.number"] == str(trial.number)
        assert tags[run]["mlflow.parentRunId"] == parent
        assert tags_of(snapshot, trial).items() <= tags[run].items()
        assert states[run] == run_status(trial, None)
        of_epochs = [row for epoch in curves(ledger.history(trial.number), events) for row in epoch]
        expected = Counter(tuple(row) for row in [*of_epochs, *finals(snapshot, trial, events)])
        assert Counter(row[:4] for row in rows["metrics"] if row[4] == run) == expected
        assert {key: value for key, value, owner in rows["params"] if owner == run} == params_of(trial)
        artifacts = storage / "mlartifacts" / run / "artifacts"
        assert json.loads((artifacts / "trial.json").read_text())["state"] == trial.state
        stages = ledger.stages(trial.number)
        assert [s["state"] for s in json.loads((artifacts / "attacks.json").read_text())] == [s.state for s in stages]


def mlflow_rows(storage: Path) -> dict[str, list[tuple[Any, ...]]]:
    columns = {
        "runs": "run_uuid, status",
        "tags": "key, value, run_uuid",
        "params": "key, value, run_uuid",
        "metrics": "key, value, timestamp, step, run_uuid",
        "experiments": "name, lifecycle_stage",
        "experiment_tags": "key, value",
    }
    connection = sqlite3.connect(storage / "mlflow.db")
    try:
        return {table: sorted(connection.execute(f"SELECT {names} FROM {table}")) for table, names in columns.items()}
    finally:
        connection.close()


def assert_at_rest(nursery: Nursery, storage: Path, life: str) -> None:
    """Another run of a finished sweep computes nothing and changes nothing."""

    def everything() -> Any:
        folder = SweepFolder(storage, NAME)
        ledger = Ledger.at(folder.ledger)
        try:
            kept = (export_json(ledger), ledger.events(), ledger.sweep())
        finally:
            ledger.close()
        files = {
            path.relative_to(storage).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in storage.rglob("*")
            if path.is_file() and not path.name.startswith(("ledger.db", "mlflow.db", "driver.log"))
        }
        return kept, files, objects_of(storage), mlflow_rows(storage)

    before = everything()
    assert nursery.run(storage, life=life) == 0, nursery.last_words()
    assert everything() == before


def test_every_write_of_a_life_stands_inside_a_point_and_every_point_is_reached(lives: dict[str, Life]) -> None:
    for life in lives.values():
        assert not life.strays
    assert {point for life in lives.values() for point in life.points if ":" in point} == set(POINTS)


@pytest.mark.parametrize("life", ENUMERATED)
def test_an_undisturbed_life_is_whole(nursery: Nursery, lives: dict[str, Life], life: str) -> None:
    assert_whole(lives[life].storage, lives[life], [])
    assert_at_rest(nursery, lives[life].storage, life)


def test_objects_hold_what_files_would(lives: dict[str, Life]) -> None:
    here, there = (lives[life].results for life in ("whole", "remote"))
    for what in ("seed", "weights", "clean_acc", "epochs"):
        assert there["trials"][0][what] == here["trials"][0][what]
    assert there["history"][0] == here["history"][0]
    assert there["verdicts"][0] == here["verdicts"][0]
    assert {name.split("/")[0] for name in there["objects"]} == {"trials", "verdicts"}
    assert not [name for name in there["objects"] if "checkpoints" in name]


def chain(points: Sequence[str], late: int = 2) -> list[str]:
    """Choose one mode of every write of a life, in turns, in an order in which one life can meet them all.

    A process that begins in the midst of a life meets each point that was reached after its beginning. Whoever dies at
    the first visit of the point whose late visit comes first has all others still before it. Late is the last but one:
    the last one may be needless after a death, such as a stopped trial's token.

    Args: late: which visit is the late one, counted from the end; 1 where every last one is needed.
    """
    visits: dict[str, list[int]] = {}
    for place, point in enumerate(points):
        if point.endswith(":before"):
            visits.setdefault(point.split(":")[0], []).append(place)
    writes = sorted(visits, key=lambda name: visits[name][-late:][0])
    return [f"{name}:{MODES[turn % len(MODES)]}" for turn, name in enumerate(writes)]


@pytest.mark.parametrize("life", ENUMERATED)
def test_a_life_that_is_killed_at_every_one_of_its_writes_ends_as_if_it_had_not_been(
    nursery: Nursery, lives: dict[str, Life], tmp_path: Path, life: str
) -> None:
    # whoever dies after the last epoch has nothing more to say of it, only of the final model; and no trial is stopped
    kills = chain(lives[life].points, late=1 if life == "remote" else 2)
    if life != "whole":
        kills = [point for point in kills if point not in lives["whole"].points]
    else:
        batch = [point.split(":")[0] for point in kills].index("mlflow.log_batch")
        kills = [*kills[:batch], *HALF_BATCHES, *kills[batch:]]
    for point in kills:
        code = nursery.run(tmp_path, life=life, kill_at=f"{point}:1")
        assert code == -signal.SIGKILL, f"{point} was not reached, {code}:\n{nursery.last_words()}"
    assert nursery.run(tmp_path, life=life) == 0, nursery.last_words()
    assert_whole(tmp_path, lives[life], kills)
    assert_at_rest(nursery, tmp_path, life)


def later_visit(point: str, visits: int) -> int:
    """Return which visit of a point is tried beside the first: the last where it is torn, else the middle one."""
    return visits if point.endswith(":torn") else 1 + visits // 2


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if not point.startswith(OF_OBJECTS)])
@pytest.mark.parametrize("visit", ["first", "later"])
def test_a_kill_at_a_single_point_loses_nothing(
    nursery: Nursery, lives: dict[str, Life], tmp_path: Path, point: str, visit: str
) -> None:
    life = "whole" if point in lives["whole"].points else "bare"
    assert_survived(nursery, lives, tmp_path, life, point, visit)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(WITH_OBJECTS)])
@pytest.mark.parametrize("visit", ["first", "later"])
def test_a_kill_at_a_single_point_loses_nothing_where_the_files_are_objects(
    nursery: Nursery, lives: dict[str, Life], tmp_path: Path, point: str, visit: str
) -> None:
    assert_survived(nursery, lives, tmp_path, "remote", point, visit)


def assert_survived(nursery: Nursery, lives: dict[str, Life], storage: Path, life: str, point: str, visit: str) -> None:
    """A life that is killed at one visit of a point, and goes on, is whole."""
    visits = lives[life].points.count(point)
    turn = 1 if visit == "first" else later_visit(point, visits)
    if visit == "later" and turn == 1:
        pytest.skip("there is one visit")
    code = nursery.run(storage, life=life, kill_at=f"{point}:{turn}")
    assert code == -signal.SIGKILL, f"{code}:\n{nursery.last_words()}"
    assert nursery.run(storage, life=life) == 0, nursery.last_words()
    assert_whole(storage, lives[life], [point])
    assert_at_rest(nursery, storage, life)


LEDGER = tuple(name for name in WRITES if name.startswith("ledger.") and name != "ledger.finish_without_attack")


@pytest.mark.slow
@pytest.mark.parametrize("write", LEDGER)
def test_a_kill_after_the_first_statement_of_a_transaction_leaves_nothing_of_it(
    nursery: Nursery, lives: dict[str, Life], tmp_path: Path, write: str
) -> None:
    points = lives["whole"].points
    end = points.index(f"{write}:after")
    begin = max(place for place in range(end) if points[place] == f"{write}:before")
    if points[begin:end].count(STATEMENT) < 2:
        pytest.skip("it is one statement, or the sweep has no ledger yet")
    code = nursery.run(tmp_path, kill_at=f"{STATEMENT}:{points[:begin].count(STATEMENT) + 1}")
    assert code == -signal.SIGKILL, f"{code}:\n{nursery.last_words()}"
    assert nursery.run(tmp_path) == 0, nursery.last_words()
    assert_whole(tmp_path, lives["whole"], [])


def test_the_page_tells_of_every_write_what_a_kill_there_costs() -> None:
    rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    told = {name.strip("`"): (what, cost) for name, what, cost in (row for row in rows if len(row) == 3)}
    assert {name: what for name, (what, _) in told.items()} == dict(WRITES), f"{PAGE.name}: a row for every write"
    computed = {name: cost for name, (_, cost) in told.items() if cost in ("the epoch", "the unit")}
    assert computed == {
        point.split(":")[0]: f"the {what}" for point, what in COMPUTED_AGAIN.items() if point.endswith(":before")
    }


WATCHED = """
import sys
from pathlib import Path
from search_spaces.faults import durable
from tests.crash.watch import Watch
storage = Path(sys.argv[1])
with Watch(storage) as watch:
    with durable("trial.attempt"):
        (storage / "inside").write_text("")
    (storage / "journal.txt").write_text("")
    (storage / "outside").write_text("")
    (storage / "outside").rename(storage / "moved")
    (storage / "outside.txt").exists()
print(*watch.strays, sep="\\n")
"""


def test_the_watch_sees_a_write_outside_a_point(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["open outside", "os.rename outside", "os.rename moved"]
