"""A whole sweep in one process and about a second, to be killed at any of its durable writes.

Real are the driver, the coordinator, the ledger, the trainings, the judging, the stores and MLflow's database;
trainings and stages run one after the other where Ray would run them, and MLflow is brought up to date after every
step, so that the same points are always reached in the same order. `python -m tests.crash.inline` imports everything
once, then forks one process for every line on its standard input.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from search_spaces import faults
from search_spaces.errors import LossDiverged
from search_spaces.object_uri import ObjectUri
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.records import PriorTrial, State
from sweeps.requests import Request
from tests.crash.watch import Watch
from tests.object_server import KEYS
from tests.sweeps.inline_pool import InlinePool

ROOT = Path(__file__).resolve().parents[2]
NAME = "s"
MODEL = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
WHOLE: dict[str, Any] = {
    "model": MODEL,
    "data": {"name": "digits", "train_images": 640, "validation_images": 40, "test_images": 20},
    "training": {"epochs": 3, "batch_size": 32, "learning_rate": {"log_uniform": [4e-3, 1.2e-2]}},
    "methods": ["plain"],
    "attacks": {
        "epsilon": 0.03,
        "images": 24,
        "batch_size": 4,
        "stages": [{"pgd": {"steps": 1}}, {"pgd": {"steps": 2}}],
        "columns": {"Broken": "fgsm"},
        "test": {"images": 8, "stages": ["fgsm"], "trials": 1},
    },
    "search": {"trials": 2, "sampler": "random"},
    "failures": {"retries": 1, "attack": {"retries": 1}},
}
"""Every attack of the column "Broken" fails, twice; the first attempt of trial 0 fails and so does trial 1; trial 3 is
stopped from another terminal. A unit is sixteen images, so that a stage is judged in two."""
BARE: dict[str, Any] = {**WHOLE, "attacks": None, "objectives": ["clean_acc"], "search": {"trials": 1}}
"""No attack: the trial ends with its training."""
UNTRACKED: dict[str, Any] = {**BARE, "tracking": {"enabled": False}}
ATTACKED_ONCE = {"epsilon": 0.03, "images": 24, "batch_size": 4, "stages": [{"pgd": {"steps": 1}}]}
REMOTE: dict[str, Any] = {**WHOLE, "attacks": ATTACKED_ONCE, "search": {"trials": 1, "sampler": "random"}}
"""The trial, whose first attempt fails, and its verdicts are in an object store."""
LIVES = {"whole": WHOLE, "bare": BARE, "untracked": UNTRACKED, "remote": REMOTE}
TOTALS = {"whole": 3, "bare": 1, "untracked": 1, "remote": 1}
"""Trials that are asked for when the sweep is there already; a known configuration comes on top."""
STATEMENT = "statement"
"""A point within the ledger's transactions."""
IMPORTED_LATER = (
    *(f"sweeps.{name}" for name in ("changes", "evaluate", "retention", "runner", "searcher", "stage_job", "tracking")),
    *(f"trainables.{name}" for name in ("assessment", "training", "trial", "tune", "verdict_store")),
    *("mlflow.store.tracking.sqlalchemy_workspace_store", "moocore", "ray.dag", "sqlalchemy.dialects.sqlite"),
    "pyarrow.fs",  # which does not begin anything: that is for each process to do
    *("torch.utils.serialization.config", "encodings.cp437", "encodings.utf_8_sig", "rich._emoji_codes"),
)
"""What a life imports on its way. Imported before it is forked, a life is shorter by a third of a second, and all lives
have the same code, even if somebody edits it meanwhile."""
KNOWN = Request("known", "extend", 0.0, known=({"training.learning_rate": 0.005},))
STOP = Request("stop", "stop", 0.0, trials=(3,))
PRIOR = PriorTrial("other", 0, "plain", {}, {}, (0.5, 0.1))


@dataclass(frozen=True)
class Order:
    """One process: a sweep's life from where it is to its end."""

    storage: str
    life: str = "whole"
    objects: str | None = None
    """The URI of an object store for trials and verdicts."""
    kill_at: str | None = None
    watched: bool = False
    """Whether the points and what was written outside them are put down."""


class Nursery:
    """The process that forks the others."""

    def __init__(self, scratch: Path) -> None:
        """Args: scratch: a folder of its own: MLflow's empty database, what the processes say, copies of objects."""
        self.objects: ObjectUri | None = None
        """Where the life "remote" has its objects, those of each storage folder below a prefix of their own."""
        self.said = scratch / "said.txt"
        self._said_before = 0
        environment = {**os.environ, **KEYS, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "TMPDIR": str(scratch)}
        environment.pop(faults.VARIABLE, None)
        with self.said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.inline", str(scratch)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def run(self, storage: Path, **order: Any) -> int:
        """Let a sweep live until its end or its death; returns the exit code, negative is a signal."""
        if order.get("life") == "remote":
            assert self.objects is not None
            order["objects"] = str(self.objects.joined(storage.name))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._said_before = self.said.stat().st_size
        self._process.stdin.write(json.dumps(asdict(Order(str(storage), **order))) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self.last_words()
        return int(answer)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the sweep that lives now stand still while the block runs."""
        lives = psutil.Process(self._process.pid).children()
        for life in lives:
            life.suspend()
        try:
            yield
        finally:
            for life in lives:
                life.resume()

    def last_words(self) -> str:
        """Return what the last process had to say."""
        return self.said.read_bytes()[self._said_before :].decode()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(30)


def journal(storage: Path) -> list[str]:
    """Return what was computed: a line per epoch and per unit, by every process that has worked on the sweep."""
    path = storage / "journal.txt"
    return path.read_text().splitlines() if path.exists() else []


def note(storage: Path, text: str) -> None:
    """Add a line to the journal."""
    with (storage / "journal.txt").open("a") as file:
        file.write(f"{text}\n")


def live(order: Order) -> None:
    """Launch the sweep if it is not there, and run it to its end. Runs in the forked process."""
    from rich.console import Console

    from sweeps.config import parse_sweep
    from sweeps.creation import create_ledger
    from sweeps.exit_codes import INTERRUPTED
    from sweeps.images import load_data
    from sweeps.runner import drive

    storage = Path(order.storage)
    folder = SweepFolder(storage, NAME)
    console = Console(file=sys.stderr, force_terminal=False)
    config = parse_sweep({**LIVES[order.life], "name": NAME, "storage": {"objects": order.objects}})
    stay_in_one_process(storage)
    if not folder.ledger.exists():
        create_ledger(config, folder, load_data(config), learn if order.life == "whole" else lambda ledger: None)
    going = True
    while going:
        if was_interrupted(folder):
            ask(folder, KNOWN)
        going = drive(folder, console, trials=TOTALS[order.life]).exit_code == INTERRUPTED
    if order.life == "whole":
        grow_old(folder, config, console)
    if order.life in ("whole", "remote"):
        clear_away(folder)


def learn(ledger: Ledger) -> None:
    """Give the new sweep what another one has learned."""
    with Lease(ledger):
        ledger.add_prior([PRIOR])


def ask(folder: SweepFolder, request: Request) -> None:
    """Ask something of the sweep from another terminal, once: who asks again has not heard that it was asked."""
    from sweeps.requests import put

    if f"asked {request.id}" not in journal(folder.storage):
        put(folder.requests, request)
        note(folder.storage, f"asked {request.id}")


def was_interrupted(folder: SweepFolder) -> bool:
    """Whether the user has stopped a driver of this sweep."""
    ledger = Ledger.at(folder.ledger)
    try:
        return any(event.kind == "interrupted" for event in ledger.events())
    finally:
        ledger.close()


def grow_old(folder: SweepFolder, config: Any, console: Any) -> None:
    """What may happen to a finished sweep: a further plan, and a changed configuration."""
    from sweeps.changes import plan_change
    from sweeps.config import parse_sweep
    from sweeps.evaluate import add_plan, read_plan
    from sweeps.runner import drive

    name, attacks = read_plan(str(ROOT / "tests" / "crash" / "further.yaml"), config.attacks)
    add_plan(folder, name, attacks, "front", console)
    ledger = Ledger.at(folder.ledger)
    changed = parse_sweep({**config.document, "failures": {"retries": 2}})
    change = plan_change(ledger.sweep(), changed, "changed.yaml")
    drive(folder, console, change=change)
    ledger.close()


def clear_away(folder: SweepFolder) -> None:
    """Remove what nothing needs any more, such as what was half-written by those who were killed."""
    from sweeps.retention import collect

    ledger = Ledger.at(folder.ledger)
    collect(ledger, folder)
    ledger.close()


def stay_in_one_process(storage: Path) -> None:
    """Put what runs here in the place of what would run in Ray and in threads; keep a journal of what is computed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    import sweeps.coordinator
    import sweeps.evaluate
    import sweeps.evaluation
    import sweeps.lease
    import sweeps.retention
    import sweeps.runner
    import sweeps.tracking
    import trainables.assessment
    from cluster.resources import Shares
    from trainables.checkpoint import weights_digest
    from trainables.learner import Learner

    def noting_unit(judge: Any) -> Any:
        def judged(model: Any, *rest: Any, **options: Any) -> Any:
            *attack, images, unit = rest
            what = " ".join(f"{type(one).__name__} {one.config}" for one in attack) or "clean"
            split = f"of {len(images.labels)}"
            note(storage, f"unit {weights_digest(model.state_dict())} {what} {split} {unit.tolist()}")
            return judge(model, *rest, **options)

        return judged

    train_epoch = Learner.train_epoch

    def noted(self: Learner, epoch: int) -> dict[str, float]:
        meet_fate(SweepFolder(storage, NAME), self.seed, epoch)
        found = train_epoch(self, epoch)
        note(storage, f"epoch {self.seed} {epoch + 1}")
        return found

    Learner.train_epoch = noted  # type: ignore[method-assign]
    trainables.assessment.judge = noting_unit(trainables.assessment.judge)
    trainables.assessment.judge_clean = noting_unit(trainables.assessment.judge_clean)
    sweeps.lease.HEARTBEAT_S = 1e6  # the heart beats between two steps instead
    sweeps.coordinator.REQUESTS_S = 0.0
    sweeps.retention.FRESH_S = 0.0
    sweeps.runner.POLL_S = sweeps.evaluate.POLL_S = 0.0
    sweeps.evaluation.EvaluationPool = sweeps.evaluate.EvaluationPool = Pool  # type: ignore[misc]
    sweeps.evaluate.connect = lambda *_: Shares(1, 1.0, 0.0, 1, 1.0, 0.0)  # type: ignore[assignment]
    sweeps.tracking.MirrorThread = InlineMirror  # type: ignore[misc]
    for name in ("_log_metrics", "_set_tags"):
        setattr(SqlAlchemyStore, name, preceded(getattr(SqlAlchemyStore, name), f"store.{name}"))
    sa.event.listen(sa.Engine, "after_cursor_execute", reach_statement)
    drive: Any = sweeps.runner._Drive
    drive._connect = lambda self, address: Shares(1, 1.0, 0.0, 1, 1.0, 0.0)
    drive._train = train
    between = drive._between

    def step(self: Any) -> None:
        between(self)
        self.ledger.heartbeat()
        if InlineMirror.current is not None:
            InlineMirror.current.mirror.sync()

    drive._between = step


def preceded(method: Any, point: str) -> Any:
    """Return a method with a point of its own before it."""

    def reached(self: Any, *arguments: Any, **options: Any) -> Any:
        faults._reach(point)
        return method(self, *arguments, **options)

    return reached


def reach_statement(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    """Reach a point of its own after every statement that changes the ledger."""
    if statement.startswith(("INSERT", "UPDATE", "DELETE")) and str(connection.engine.url).endswith("ledger.db"):
        faults._reach(STATEMENT)


class InlineMirror:
    """In the place of `MirrorThread`."""

    current: InlineMirror | None = None

    def __init__(self, mirror: Any) -> None:
        self.mirror = mirror

    def start(self) -> None:
        InlineMirror.current = self

    def stop(self, closing: str | None = None, timeout_s: float = 0.0) -> bool:
        self.mirror.sync(closing)
        InlineMirror.current = None
        return True


class Pool(InlinePool):
    """In the place of `EvaluationPool`; the attack of one column fails."""

    def judge(self, job: Any) -> Any:
        return "it fails" if job.stage.column == "Broken" else super().judge(job)


def train(drive: Any, *_: Any) -> None:
    """In the place of Tune: one training after the other, and once, after trial 0, the user stops the driver."""
    from trainables.tune import Report, TrialTrainable

    coordinator = drive.coordinator
    while coordinator.training_needed and not drive.halt:
        drive._between()
        if is_to_be_interrupted(drive):
            drive.halt.requested = True
            return
        job = coordinator.next_training()
        if job is None:
            continue
        trainable = object.__new__(TrialTrainable)
        trainable.setup(job.tune_config())
        while coordinator.is_current(job.number, job.token):
            coordinator.take_report(Report.read(trainable.step()), job.token)
            if job.number in STOP.trials and drive.ledger.trial(job.number).epochs:
                ask(drive.folder, STOP)
            drive._between()


def is_to_be_interrupted(drive: Any) -> bool:
    """Whether trial 0 is trained, and the user has not stopped this sweep before."""
    beyond = (State.TRAINED, State.EVALUATING, State.FINISHED)
    first = [trial for trial in drive.ledger.trials(beyond) if trial.number == 0]
    return bool(first) and drive.config.attacks is not None and not was_interrupted(drive.folder)


def meet_fate(folder: SweepFolder, seed: int, epoch: int) -> None:
    """Raise what ends the second epoch of trial 0 at its first attempt, and of trial 1 always."""
    ledger = Ledger.at(folder.ledger)
    trial = next(trial for trial in ledger.trials() if trial.seed == seed)
    is_whole = ledger.sweep().document["attacks"] is not None
    ledger.close()
    if is_whole and epoch == 1 and trial.number == 0 and not trial.failures:
        raise RuntimeError("the first attempt fails")
    if is_whole and epoch == 1 and trial.number == 1:
        raise LossDiverged("the loss is nan")


def breed(scratch: Path) -> None:
    """Import everything, then fork for every order that comes; the answer is the exit code."""
    import torch
    from sqlalchemy.orm import configure_mappers

    import sweeps.forecast
    from sweeps.config import parse_sweep
    from sweeps.forecast import trial_bytes
    from trainables.registry import find

    torch.set_num_threads(1)
    for name in IMPORTED_LATER:
        import_module(name)
    configure_mappers()
    for attack in ("pgd", "fgsm"):
        find("attacks", attack)
    sweeps.forecast._count_parameters = lru_cache(sweeps.forecast._count_parameters)
    for document in LIVES.values():
        trial_bytes(parse_sweep({**document, "name": NAME}), 10)
    empty = empty_mlflow(scratch)
    gc.freeze()  # else the first collection of every child copies the parent's memory
    for line in sys.stdin:
        order = Order(**json.loads(line))
        if not (Path(order.storage) / "mlflow.db").exists():
            Path(order.storage).mkdir(parents=True, exist_ok=True)
            shutil.copy(empty, Path(order.storage) / "mlflow.db")
        pid = os.fork()
        if pid == 0:
            os._exit(_child(order))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)  # what was imported takes seconds to leave


def _child(order: Order) -> int:
    try:
        if order.kill_at is not None:
            os.environ[faults.VARIABLE] = order.kill_at
        if order.watched:
            with Watch(Path(order.storage)) as watch:
                live(order)
            watch.write()
        else:
            live(order)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def empty_mlflow(scratch: Path) -> Path:
    """Set up MLflow's database, which takes seconds, in a process of its own: it leaves threads and connections."""
    path = scratch / "empty.db"
    pid = os.fork()
    if pid == 0:
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
        os._exit(0)
    os.waitpid(pid, 0)
    return path


if __name__ == "__main__":
    breed(Path(sys.argv[1]))
