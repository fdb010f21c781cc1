"""Launching and resuming: one driver, from its lease to the last evaluation. The only file that knows all parts."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from cluster.connect import connect, prepare_environment, this_machine
from cluster.following import ClusterWatch
from cluster.head_watch import HeadWatch
from cluster.mps import mps
from cluster.packing import Node
from cluster.resources import Shares
from cluster.shared_objects import storage_check
from cluster.versions import SameEnvironment
from search_spaces.errors import DriverCrashed, LeaseLost, ParentError, StorageError, SweepError
from search_spaces.imports import quick_imports
from sweeps.config import SweepConfig, parse_sweep
from sweeps.creation import keep_copy
from sweeps.disk import DiskWatch, require_writable
from sweeps.exit_codes import DONE, DRIVER_FAILED, INTERRUPTED, SOME_FAILED
from sweeps.folder import SweepFolder
from sweeps.halt import Halt
from sweeps.images import hold_images
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.lines import print_as_is
from sweeps.live_state import PoolState
from sweeps.machine import enough, known_nodes
from sweeps.progress import Progress
from sweeps.records import State
from sweeps.requests import grant_waiting, unreadable
from sweeps.signals import handled_signals, install, signal_received

if TYPE_CHECKING:
    from sweeps.changes import Change
    from trainables.node_data import NodeData

POLL_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a driver ended."""

    exit_code: int
    interrupted: bool


def drive(
    folder: SweepFolder,
    console: Console,
    *,
    address: str | None = None,
    trials: int | None = None,
    change: Change | None = None,
    take_over: bool = False,
) -> Outcome:
    """Run a sweep to its end, or until it is interrupted. What other terminals have asked for meanwhile comes first.

    Args: trials: new total of trials, None keeps it; change: of the configuration; take_over: take the lease whoever
        holds it.
    Raises: LeaseHeld if another driver runs it; StorageError if its folder is full or cannot be written; ParentError if
        a model that trials start from cannot be had; DriverCrashed on another error that is not a trial's.
    """
    require_writable(folder)
    ledger = Ledger.at(folder.ledger)
    prepare_environment()  # before anything imports Ray
    halt = Halt()
    try:
        lease = Lease(ledger, on_lost=halt.lose, take_over=take_over, say=lambda text: print_as_is(console, text))
        with lease, handled_signals(halt, console, folder):
            if trials is not None and trials > ledger.sweep().requested:
                ledger.raise_total(trials)
            if change is not None:
                change.record(ledger)
                console.print("changed and recorded:\n" + "\n".join(f"  {line}" for line in change.lines), markup=False)
            if keep_copy(ledger, folder) and change is None:
                hint = f"what is to change is given as {folder.resume_command} FILE"
                print_as_is(console, f"{folder.config.name} was not what the sweep runs and is written again; {hint}")
            for place in unreadable(folder.requests):
                print_as_is(console, f"{place} is no request and is left alone.")
            grant_waiting(ledger, folder.requests, lambda text: print_as_is(console, text))
            config = parse_sweep(ledger.sweep().document, folder.config.name)
            folder.point_to_objects(config.storage.objects, ledger.sweep().id)
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
        from sweeps.forecast import trial_bytes

        self.folder, self.ledger, self.config, self.halt, self.console = folder, ledger, config, halt, console
        self.progress = Progress(ledger, console, folder.requests, self._pool_state)
        self._scratch = folder.scratch / (ledger.owner or "")
        """Of this driver alone: one that lost its lease must not clear away what the next one uses."""
        self._disk = DiskWatch(folder, trial_bytes(config, ledger.sweep().num_classes))
        self._shared = storage_check(folder.scratch, folder.objects)
        self._same = SameEnvironment(config.plugins)
        self._idle = False
        """Whether later attack stages run while trials train."""
        self._nodes: Sequence[Node] = ()
        """As far as they are known, with the memory of their devices."""
        self._cluster: ClusterWatch | None = None
        """None on a machine alone, whose Ray is the driver's own."""
        self._held: NodeData | None = None
        """What the nodes hold of the images."""
        self._mps = contextlib.ExitStack()
        """Ends the daemon by which processes share GPUs, once Ray's processes have ended."""
        self.coordinator = Coordinator(config, ledger, folder, self.progress.say)

    def run(self, address: str | None) -> None:
        """Train, evaluate, settle the front; raises DriverCrashed after everything is put away."""
        import ray

        if self.coordinator.training_needed:
            self.coordinator.parents.require()
        self._stage()
        self._require_room()
        kept = self.coordinator.kept
        if kept.finished or kept.continuing or kept.to_evaluate or kept.failed or kept.parents:
            self.console.print(kept.sentence(), highlight=False)
        ours = not ray.is_initialized()
        with self.console.status("starting Ray" if address is None else f"joining Ray at {address}"):
            shares = self._connect(address)
        head, mirror = None, None
        try:
            if address is not None:  # measuring may take minutes, in which the head may be lost
                head = HeadWatch(self._head_lost, ray.get_runtime_context().gcs_address)
            shares = self._measured(shares)
            if address is not None:
                wanted = self.config.resources.concurrent
                self._cluster = ClusterWatch(shares, None if wanted == "auto" else wanted, self._known, self._nodes)
                shares = self._cluster.shares
            self.console.print(shares.describe(), style="dim", highlight=False)
            self.ledger.note_driver("resources", shares.public())
            mirror = self.start_mirror()
            with self.progress:
                self._work(shares)
        except Exception as error:
            self.halt.fail(error)
        finally:
            if head is not None:
                head.stop()
            if self.coordinator.pool is not None and self.halt:
                self.coordinator.pool.cancel()
            self.close_mirror(mirror)
            self._shared.close()
            if ours:
                ray.shutdown()
            self._mps.close()
            # Tune's own files; nothing reads them again. After the end that goes for those of killed drivers too.
            shutil.rmtree(self._scratch if self.halt else self.folder.scratch, ignore_errors=True)
        if self.halt.error:
            raise self._failure(self.halt.error)

    def _head_lost(self, address: str) -> None:
        """End this process: its main thread may wait inside Ray, which would end it later and say nothing."""
        text = f"the head of the cluster at {address} does not answer any more."
        failure = self._failure(f"{text} On a cluster that is there add --address HOST:PORT to that.")
        with contextlib.suppress(Exception):  # the terminal is put in order as far as it can be
            self.progress.__exit__()
        print_as_is(Console(stderr=True), str(failure), "red")
        os._exit(DRIVER_FAILED)

    def _known(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """Return the nodes with the memory of their devices; each is asked once."""
        self._nodes = known_nodes(self.config, nodes, self._nodes)
        return self._nodes

    def _measured(self, shares: Shares) -> Shares:
        """Return the shares by what trainings and attacks need of the GPUs' memory, measured now or by an earlier
        driver; and let the coordinator start trainings by it."""
        from sweeps.admission import Admission
        from sweeps.measured_memory import MEASURED, Needs
        from sweeps.probing import fitted, measure, questions

        def needs() -> Needs:
            return Needs.read(self.ledger.driver_events(MEASURED))

        known = needs()
        if self.coordinator.training_needed:
            asked = questions(self.config, self.ledger.sweep().planned_stages, self._nodes, known)
            if asked:
                with self.console.status("measuring what trainings and attacks need of the GPUs' memory"):
                    measure(
                        asked,
                        lambda need: self.ledger.note_driver(MEASURED, need.plain()),
                        self._say,
                        lambda: bool(self.halt),
                    )
                known = needs()
        shares = fitted(self.config.resources, self._nodes, known) if known else shares  # as Ray was told otherwise
        self.coordinator.admission = Admission(self.config.resources, shares, self._nodes, known)
        return shares

    def _follow_cluster(self) -> None:
        """Let as many trainings and attacks run as have room on the nodes that there are now."""
        change = self._cluster.look() if self._cluster is not None else None
        if change is None:
            return
        self.progress.say(change.text)
        if self.coordinator.pool is not None:
            self.coordinator.pool.follow(change.shares)
        if self.coordinator.admission is not None:
            self.coordinator.admission.follow(change.shares, change.nodes)

    def _pool_state(self) -> PoolState | None:
        return None if self.coordinator.pool is None else self.coordinator.pool.state()

    def _require_room(self) -> None:
        """Refuse to start where not even one training has room."""
        waiting = self.coordinator.training_waiting
        try:
            self._disk.look(waiting[:1])
        except StorageError as error:
            self.halt.fail(error)
            raise self._failure(str(error)) from error

    def _failure(self, error: str) -> SweepError:
        """Note in the ledger, as far as it can be written, why this driver ends; return what the user is told."""
        with contextlib.suppress(LeaseLost, SQLAlchemyError):
            self.ledger.note_driver("driver crashed", {"error": error})
        if self.halt.lost:
            return DriverCrashed(error)
        if self.halt.parent:
            return ParentError(error)
        if self.halt.storage:
            return StorageError(f"{error} Nothing is lost. When that is put right: {self.folder.resume_command}")
        return DriverCrashed(f"the driver failed; nothing is lost. {self.folder.resume_command} goes on.\n{error}")

    def _connect(self, address: str | None) -> Shares:
        """Join Ray, and meanwhile import Tune, which takes as long.

        Not the other way round: Ray's processes end with the thread that started them.
        """
        import ray

        with ThreadPoolExecutor(1) as side, quick_imports():
            importing = side.submit(import_module, "sweeps.searcher")
            if address is None and not ray.is_initialized():
                shared = self.config.resources.wants_mps and bool(this_machine().devices)
                self._mps.enter_context(mps(self.folder.root, wanted=shared, say=self._say))
            try:
                shares = connect(
                    address, lambda nodes: enough(self.config, self._known(nodes)), self.folder.log, self._say
                )
                self._same.require()
                self._shared.require()
            except SweepError:
                importing.result()
                ray.shutdown()
                self._mps.close()
                raise
            importing.result()
        self._held = hold_images(self.config)
        return shares

    def _stage(self) -> None:
        """Bring back what a resume needs and no longer finds; after a launch everything is there."""
        from sweeps.prefetch import stage_data, stage_weights

        stage_data(self.config, self._say)
        if self.coordinator.training_needed:
            stage_weights(self.config, self._say)

    def _say(self, text: str) -> None:
        print_as_is(self.console, text)

    def _work(self, shares: Shares) -> None:
        from sweeps.evaluation import EvaluationPool

        plan, later_while_training = self.config.attacks, False
        if plan is not None and not self.halt:  # the pool waits for its share, which a busy cluster may not have soon
            expected = dict.fromkeys(stage.attack for stage in self.ledger.sweep().planned_stages)
            hang_after_s = self.config.failures.hang_after_s
            pulses = self.folder.objects or self._scratch
            self.coordinator.pool = EvaluationPool(shares, list(expected), hang_after_s, pulses, self._held)
            has_own_share = shares.evaluation_gpus > 0
            later_while_training = plan.later_stages == "idle" or (plan.later_stages == "auto" and has_own_share)
            if not self.coordinator.training_needed:
                self.coordinator.pool.use_everything()
        while not self.halt:
            if self.coordinator.training_needed:  # at first; or again, because another terminal asked for more
                self._idle = later_while_training
                self._train_all()
                self._idle = False
            self._between()
            running = self.coordinator.poll_later_stages(final=True)
            if not (running or self.coordinator.evaluation_needed or self.coordinator.training_needed):
                break
            time.sleep(POLL_S)
        if not self.halt:
            self.ledger.complete()
        elif self.halt.requested and not self.coordinator.pause_asked:
            self.ledger.note_driver("interrupted", {})

    def _train_all(self) -> None:
        """Train while any training is needed."""
        pool = self.coordinator.pool
        if pool is not None:
            pool.keep_to_share()
        while self.coordinator.training_needed and not self.halt:
            self.coordinator.parents.require()
            self._train()
        if pool is not None:
            pool.use_everything()

    def _train(self) -> None:
        """One fit(): it ends when no training can be needed any more, or on a halt."""
        from sweeps.searcher import Hooks, LedgerSearcher, tuner

        hang_after_s = self.config.failures.hang_after_s
        pool = self.coordinator.pool
        searcher = LedgerSearcher(
            self.coordinator,
            self.halt,
            self._between,
            hang_after_s=hang_after_s,
            wants_room=pool.wants_room if pool is not None else lambda: False,
        )
        hooks = Hooks(self._between, lambda: install(self._handler), self.halt, searcher.watch)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        tuner(searcher, hooks, self.halt, self._scratch, name, self._held).fit()

    def _between(self) -> None:
        self._follow_cluster()
        self._same.look()
        self._shared.look()
        self._disk.look(self.coordinator.training_numbers)
        self.coordinator.take_requests()
        if self.coordinator.pause_asked and not self.halt:
            self.halt.requested = True
            self._say("pausing: another terminal has asked for it.")
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
        if not mirror.stop(closing, timeout_s=4.0 if self.halt else 60.0) and not self.halt.lost:
            text = f"MLflow is behind: `{self.folder.command('sync')}` completes it later."
            print_as_is(self.console, text, "yellow")


def _exit_code(ledger: Ledger) -> int:
    return SOME_FAILED if ledger.counts()[State.FAILED] else DONE
