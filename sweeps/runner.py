"""Launching and resuming: one driver, from its lease to the last evaluation. The only file that knows all parts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.connect import connect, prepare_environment
from cluster.resources import Shares
from search_spaces.errors import ConfigError, ConfigurationChanged, LeaseLost, SweepError, SweepExists
from search_spaces.imports import quick_imports
from sweeps.attack_plan import planned_stages
from sweeps.config import SweepConfig, configuration_diff, parse_sweep
from sweeps.folder import SweepFolder
from sweeps.halt import Halt
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.progress import Progress
from sweeps.provenance import describe_environment
from sweeps.records import State, SweepRecord
from sweeps.rules import data_problems

if TYPE_CHECKING:
    from trainables.dataset import Splits

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

POLL_S = 0.1


class DriverCrashed(SweepError):
    """The driver itself failed; the sweep is whole and can be resumed."""


@dataclass(frozen=True)
class Outcome:
    """How a driver ended."""

    exit_code: int
    interrupted: bool


def create_sweep(config: SweepConfig, folder: SweepFolder, say: Callable[[str], None]) -> None:
    """Make a sweep's folder and ledger; its existence begins with one rename.

    Args:   say: takes a line before each thing that has to be fetched, and for what weights leave out.
    Raises: SweepExists if the name is taken; DataError or ModelError if the data or the weights cannot be had, or
        the weights do not fit.
    """
    from sweeps.prefetch import check_fit, stage

    if folder.ledger.exists():
        raise SweepExists(
            f"sweep {folder.name!r} exists in {folder.storage}. To go on with it: {folder.resume_command}"
        )
    stage(config, say)
    splits = load_data(config)
    for note in check_fit(config, splits):
        say(note)
    problems = list(data_problems(config.attacks, config.training, splits))
    if problems:
        raise ConfigError(problems)
    create_ledger(config, folder, splits)


def create_ledger(
    config: SweepConfig, folder: SweepFolder, splits: Splits, fill: Callable[[Ledger], None] = lambda ledger: None
) -> None:
    """Write the frozen configuration and the ledger; the sweep exists from the rename on.

    Args: fill: writes what the ledger holds from the beginning.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    plan = config.attacks
    sizes = {"validation": len(splits.validation.labels), "test": len(splits.test.labels)}
    record = SweepRecord(
        id=str(uuid.uuid4()),
        name=folder.name,
        created_at=time.time(),
        requested=config.trials,
        document=config.document,
        objectives=tuple(config.objectives),
        planned_stages=planned_stages(plan, splits.num_classes, sizes) if plan is not None else (),
        environment=describe_environment(),
        data_digest=splits.digest(),
        num_classes=splits.num_classes,
        split_sizes=sizes,
    )
    folder.config.write_text(dump_yaml(config.document))
    temporary = folder.root / f".ledger-{os.getpid()}.db"
    ledger = Ledger.at(temporary)
    ledger.create(record)
    fill(ledger)
    ledger.close()
    os.replace(temporary, folder.ledger)


def dump_yaml(document: Any) -> str:
    """Write plain data as YAML."""
    import io

    from ruamel.yaml import YAML

    text = io.StringIO()
    YAML().dump(json.loads(json.dumps(document)), text)
    return text.getvalue()


def check_unchanged(ledger: Ledger, given: SweepConfig, where: str) -> None:
    """Refuse a configuration that would make new results incomparable with the old ones; ConfigurationChanged."""
    launched = parse_sweep(ledger.sweep().document)
    changes = configuration_diff(launched.comparable(), given.comparable())
    if changes:
        lines = "\n".join(f"  {line}" for line in changes)
        raise ConfigurationChanged(
            f"{where} differs from the configuration that this sweep was launched with:\n{lines}\n"
            "Undo the change, or launch a new sweep under another name."
        )


def drive(folder: SweepFolder, console: Console, *, address: str | None = None, trials: int | None = None) -> Outcome:
    """Run a sweep to its end, or until it is interrupted.

    Args: trials: new total of trials; None keeps it.
    Raises: LeaseHeld if another driver runs it; DriverCrashed on an error that is not a trial's.
    """
    ledger = Ledger.at(folder.ledger)
    config = parse_sweep(ledger.sweep().document, folder.config.name)
    prepare_environment()  # before anything imports Ray
    halt = Halt()
    try:
        with Lease(ledger, on_lost=halt.lose), handled_signals(halt, console, folder):
            if trials is not None and trials > ledger.sweep().requested:
                ledger.raise_total(trials)
            driver = _Drive(folder, ledger, config, console, halt)
            if ledger.sweep().completed_at is not None:
                console.print("nothing to do: the sweep is finished.")
                driver.close_mirror(driver.start_mirror())  # a kill may have come before MLflow's last pass
                return Outcome(_exit_code(ledger), False)
            ledger.note_driver("driver started", {"pid": os.getpid(), "address": address})
            driver.run(address)
            return Outcome(INTERRUPTED if halt.requested else _exit_code(ledger), halt.requested)
    finally:
        ledger.close()


class _Drive:
    """One attempt of the driver, with the parts that it shares among its phases."""

    def __init__(self, folder: SweepFolder, ledger: Ledger, config: SweepConfig, console: Console, halt: Halt) -> None:
        from sweeps.coordinator import Coordinator

        self.folder, self.ledger, self.config, self.halt, self.console = folder, ledger, config, halt, console
        self.progress = Progress(ledger, console)
        self._idle = False
        """Whether later attack stages run while trials train."""
        self.coordinator = Coordinator(config, ledger, folder, self.progress.say)

    def run(self, address: str | None) -> None:
        """Train, evaluate, settle the front; raises DriverCrashed after everything is put away."""
        import ray

        self._stage()
        kept = self.coordinator.kept
        if kept.finished or kept.continuing or kept.to_evaluate or kept.failed:
            self.console.print(kept.sentence(), highlight=False)
        ours = not ray.is_initialized()
        shares = self._connect(address)
        self.console.print(shares.describe(), style="dim", highlight=False)
        mirror = self.start_mirror()
        try:
            with self.progress:
                self._work(shares)
        except Exception:
            self.halt.error = traceback.format_exc()
        finally:
            if self.coordinator.pool is not None and self.halt:
                self.coordinator.pool.cancel()
            self.close_mirror(mirror)
            if ours:
                ray.shutdown()
            shutil.rmtree(self.folder.scratch, ignore_errors=True)  # Tune's own files; nothing reads them again
        if self.halt.error:
            with contextlib.suppress(LeaseLost):
                self.ledger.note_driver("driver crashed", {"error": self.halt.error})
            raise DriverCrashed(
                f"the driver failed; nothing is lost. {self.folder.resume_command} goes on.\n{self.halt.error}"
            )

    def _connect(self, address: str | None) -> Shares:
        """Join Ray, and meanwhile import Tune, which takes as long.

        Not the other way round: Ray's processes end with the thread that started them.
        """
        with ThreadPoolExecutor(1) as side, quick_imports():
            importing = side.submit(import_module, "sweeps.searcher")
            shares = connect(address, self.config.resources.shares, self.folder.log)
            importing.result()
        return shares

    def _stage(self) -> None:
        """Bring back what a resume needs and no longer finds; after a launch everything is there."""
        from sweeps.prefetch import stage_data, stage_weights

        stage_data(self.config, self._say)
        if self.coordinator.training_needed:
            stage_weights(self.config, self._say)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _work(self, shares: Shares) -> None:
        from sweeps.evaluation import EvaluationPool

        plan = self.config.attacks
        if plan is not None:
            expected = dict.fromkeys(stage.attack for stage in self.ledger.sweep().planned_stages)
            self.coordinator.pool = EvaluationPool(shares, list(expected))
            has_own_share = shares.evaluation_gpus > 0
            self._idle = plan.later_stages == "idle" or (plan.later_stages == "auto" and has_own_share)
        while self.coordinator.training_needed and not self.halt:
            self._train(shares)
        self._idle = False
        if self.coordinator.pool is not None:
            self.coordinator.pool.use_everything()
        while not self.halt:
            self._between()
            running = self.coordinator.poll_later_stages(final=True)
            if not (running or self.coordinator.evaluation_needed):
                break
            time.sleep(POLL_S)
        if not self.halt:
            self.ledger.complete()
        elif self.halt.requested:
            self.ledger.note_driver("interrupted", {})

    def _train(self, shares: Shares) -> None:
        """One fit(): it ends when no training can be needed any more, or on a halt."""
        from sweeps.searcher import Hooks, LedgerSearcher, tuner

        searcher = LedgerSearcher(self.coordinator, shares.concurrent, self.halt, self._between)
        hooks = Hooks(self._between, lambda: _install(self._handler), self.halt)
        resources = {"cpu": shares.trial_cpus, "gpu": shares.trial_gpus}
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        tuner(searcher, hooks, self.halt, resources, self.folder.scratch, name).fit()

    def _between(self) -> None:
        self.coordinator.poll()
        if self._idle:
            self.coordinator.poll_later_stages(final=False)
        self.progress.refresh()

    def _handler(self, *_: Any) -> None:
        signal_received(self.halt, self.console, self.folder)

    def start_mirror(self) -> Any:
        """Start mirroring to MLflow in a thread; None if tracking is off."""
        if not self.config.tracking.enabled:
            return None
        from sweeps.tracking import Mirror, MirrorThread

        mirror = Mirror(self.ledger, self.folder, self.config.tracking.uri, self.config.tracking.experiment)
        thread = MirrorThread(mirror)
        thread.start()
        return thread

    def close_mirror(self, mirror: Any) -> None:
        """Make the last pass, within a time that fits the occasion."""
        if mirror is None:
            return
        closing = "KILLED" if self.halt else None
        if not mirror.stop(closing, timeout_s=4.0 if self.halt else 60.0):
            self.console.print("MLflow is behind: `run_sweep.py sync` completes it later.", style="yellow")


def signal_received(halt: Halt, console: Console, folder: SweepFolder) -> None:
    """First signal: stop soon, everything kept. Second: now."""
    if halt.requested:
        console.print(f"\nstopped at once. {folder.resume_command}", highlight=False)
        os._exit(INTERRUPTED)
    halt.requested = True
    console.print("\nstopping; once more stops at once.", highlight=False)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _install(handler: Callable[..., None]) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


@contextlib.contextmanager
def handled_signals(halt: Halt, console: Console, folder: SweepFolder) -> Iterator[None]:
    """Let a signal ask for a stop while the block runs, and a second one end the process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _install(lambda *_: signal_received(halt, console, folder))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(ledger: Ledger) -> int:
    return SOME_FAILED if ledger.counts()[State.FAILED] else DONE


def load_data(config: SweepConfig) -> Splits:
    """Load the images that the sweep's models are judged on."""
    from trainables.dataset import load_splits
    from trainables.registry import load_plugins

    load_plugins(config.plugins)
    training = config.training.at_defaults()
    return load_splits(config.data, config.model.at_defaults().img_size, with_selection=training.select == "best")
