"""The three hooks through which Ray Tune runs what the coordinator decides: searcher, stopper, callback.

Tune is a disposable executor here. It is given no state to keep, no stopping rule and no checkpoint of its own; an
exception inside one of these hooks is an error of the driver, which is recorded and stops it, and never marks a trial.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from search_spaces.errors import ran_out_of_memory
from sweeps.coordinator import Coordinator
from sweeps.halt import Halt
from sweeps.pulse import longest_silence
from trainables.tune import Report

if TYPE_CHECKING:
    from trainables.node_data import NodeData

RESOURCES = "resources"
"""Key of a Tune configuration under which stands what Ray is asked for."""
WAITS_S = 30.0
"""A training whose worker is not there after so long is taken to wait for its share (our choice: a worker starts in
seconds, on a cluster that has to start a node in minutes, and then nothing else could start either)."""
WATCH_S = 0.5
"""Between two looks at the attempts that run."""
LOST_NODE = ("its node has died", "node was terminated", "ActorUnavailableError", "is temporarily unavailable")
"""What Ray says of an actor whose node was lost, before it has noticed that and after."""


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Hands Tune one training after the other and takes their reports to the coordinator."""

    def __init__(
        self,
        coordinator: Coordinator,
        halt: Halt,
        between: Callable[[], None],
        *,
        hang_after_s: float | None = None,
        wants_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Say what it hands out.

        Args:
            between: called often, for polling and the live view.
            hang_after_s: how long a training may report nothing; None is for ever.
            wants_room: whether a training should make room for the attacks; asked when one has ended an epoch, whose
                checkpoint is written then.
        """
        super().__init__(metric="report", mode="max")
        self._coordinator = coordinator
        self._hang_after_s = hang_after_s
        self._wants_room = wants_room
        self._halt = halt
        self._between = between
        self._jobs: dict[str, tuple[int, str]] = {}
        self._given: dict[str, float] = {}
        """When Tune was given a training."""
        self._seen: dict[str, float] = {}
        """When a trial's actor was first there."""
        self._heard: dict[str, float] = {}
        """When a trial reported last."""
        self._looked_at = float("-inf")
        self._trials: Sequence[Any] = ()
        self.is_over = False
        """Whether this fit() is to end, and another one goes on with what is left."""

    def suggest(self, trial_id: str) -> Any:
        return self._guarded(lambda: self._suggest(trial_id), otherwise=Searcher.FINISHED)

    def _suggest(self, trial_id: str) -> Any:
        self._between()  # with nothing running Tune polls here and nowhere else
        coordinator = self._coordinator
        if self._halt or self.is_over or not coordinator.is_training_needed:
            return Searcher.FINISHED
        if self._is_waiting():
            return None
        job = coordinator.next_training()
        if job is None:
            return None
        self._jobs[trial_id] = (job.number, job.token)
        self._given[trial_id] = time.monotonic()
        return job.tune_config() | {RESOURCES: coordinator.granted(job.number).resources()}

    def _is_waiting(self) -> bool:
        """Return whether a training has waited so long for its share that whatever else starts might keep it from it:
        Ray chooses the devices, and what is free in all may be free nowhere in one piece."""
        since = [
            self._given[trial_id] for trial_id in self._waiting if self._coordinator.is_current(*self._jobs[trial_id])
        ]
        return bool(since) and time.monotonic() - min(since) > WAITS_S

    @property
    def _waiting(self) -> list[str]:
        """Tune's trials that have had no worker yet."""
        return [trial_id for trial_id in self._jobs if trial_id not in self._seen]

    def _end_if_stuck(self) -> None:
        """End this fit() where no worker is there and one is waited for that is not wanted any more, or that none of
        the nodes can have though they have room for such a training: Tune takes back nothing that it waits for."""
        waiting = {trial_id: self._jobs[trial_id] for trial_id in self._waiting}
        if not waiting or len(waiting) < len(self._jobs):
            return
        if time.monotonic() - max(self._given[trial_id] for trial_id in waiting) <= WAITS_S:
            return
        wanted = [number for number, token in waiting.values() if self._coordinator.is_current(number, token)]
        if len(wanted) < len(waiting) or any(self._coordinator.is_misplaced(number) for number in wanted):
            self.is_over = True
            self._jobs.clear()
            for number in reversed(wanted):
                self._coordinator.set_aside(number, "waits for what these nodes do not have")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._guarded(lambda: self._take(trial_id, result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._guarded(lambda: self._complete(trial_id, result, error))

    def watch(self, trials: Sequence[Any]) -> None:
        """End the attempts that are no longer wanted, or have been silent for too long. Args: trials: all of Tune's."""
        self._trials = trials
        now = time.monotonic()
        if now - self._looked_at < WATCH_S:
            return
        self._looked_at = now
        for trial in [t for t in trials if t.trial_id in self._jobs]:
            number, token = self._jobs[trial.trial_id]
            actor = getattr(trial.temporary_state, "ray_actor", None)
            if actor is None:  # it waits for its share of the machine
                continue
            seen_at = self._seen.setdefault(trial.trial_id, now)
            heard_at = self._heard.get(trial.trial_id)
            silent_s = now - (seen_at if heard_at is None else heard_at)
            if self._hang_after_s is not None and silent_s >= longest_silence(
                self._hang_after_s, starting=heard_at is None
            ):
                error = f"no report for {silent_s:.0f} s (failures.hang_after_s: {self._hang_after_s:g}); it was ended."
                self._coordinator.training_failed(number, "hang", error)
            if not self._coordinator.is_current(number, token):
                del self._jobs[trial.trial_id]  # first: its end is nobody's failure
                _kill(actor)
        self._end_if_stuck()

    def _take(self, trial_id: str, result: dict[str, Any]) -> None:
        self._heard[trial_id] = time.monotonic()
        if trial_id not in self._jobs:
            return
        number, token = self._jobs[trial_id]
        self._coordinator.take_report(Report.read(result), token)
        if not result.get("done") and self._coordinator.is_current(number, token) and self._wants_room():
            self._coordinator.set_aside(number)  # `watch` ends its worker

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        if trial_id not in self._jobs or self._halt:
            return
        number, token = self._jobs.pop(trial_id)
        if error:  # the process died: an exception inside a step arrives as a report instead
            if self._coordinator.is_current(number, token):
                self._coordinator.training_failed(number, *self._death(trial_id))
        elif result is not None:
            self._coordinator.take_report(Report.read(result), token)

    def _death(self, trial_id: str) -> tuple[str, str]:
        """Return of what kind a worker's death was, and what Ray says about it."""
        said = ""
        for trial in self._trials:
            if trial.trial_id == trial_id and trial.error_file is not None:
                with contextlib.suppress(OSError):
                    said = Path(trial.error_file).read_text()
        if is_lost_node(said):
            return "node", f"the machine was lost that it ran on.\n{said}"
        text = "the worker process died; `logs` shows its last words."
        return "memory" if ran_out_of_memory(said) else "crash", f"{text}\n{said}".strip()

    def _guarded(self, act: Callable[[], Any], otherwise: Any = None) -> Any:
        if self._halt:
            return otherwise
        try:
            return act()
        except Exception as error:
            self._halt.fail(error)
            return otherwise

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LedgerSearcher:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Hooks(Callback):  # type: ignore[misc]
    """Polls while trials run, and remembers their actors so that a halt need not wait for an epoch."""

    def __init__(
        self,
        between: Callable[[], None],
        on_setup: Callable[[], None],
        halt: Halt,
        watch: Callable[[Sequence[Any]], None] = lambda trials: None,
    ) -> None:
        self.trials: list[Any] = []
        self._watch = watch
        self._between = between
        self._on_setup = on_setup
        self._halt = halt

    def setup(self, *_: Any, **__: Any) -> None:
        self._on_setup()  # after Ray's and Tune's own signal handlers

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self.trials = trials
        try:
            self._between()
            self._watch(trials)
        except Exception as error:
            self._halt.fail(error)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class HaltStopper(Stopper):  # type: ignore[misc]
    """Ends fit() when the driver should stop, and kills the trials' actors: at most the current epoch is lost. It ends
    it also when the searcher has done with it; there are no actors then."""

    def __init__(self, halt: Halt, hooks: Hooks, is_over: Callable[[], bool] = lambda: False) -> None:
        self._halt = halt
        self._hooks = hooks
        self._is_over = is_over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._halt:
            for trial in self._hooks.trials:
                actor = getattr(trial.temporary_state, "ray_actor", None)
                if actor is not None:
                    _kill(actor)
        return bool(self._halt) or self._is_over()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def tuner(
    searcher: LedgerSearcher,
    hooks: Hooks,
    halt: Halt,
    scratch: Path,
    name: str,
    held: NodeData | None = None,
) -> Any:
    """Build a fresh Tuner for one attempt of the driver.

    Each training gets what its configuration says; Tune reuses an actor only for the same share.

    Args:
        name: unique per attempt.
        held: what the nodes hold of the images.
    """
    from ray.tune import (
        CheckpointConfig,
        FailureConfig,
        PlacementGroupFactory,
        RunConfig,
        TuneConfig,
        Tuner,
        with_parameters,
        with_resources,
    )

    from trainables.tune import TrialTrainable

    def asked_for(config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([config[RESOURCES]])

    return Tuner(
        with_resources(with_parameters(TrialTrainable, held=held), asked_for),
        tune_config=TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,  # the default has every hyper-parameter in its name
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            verbose=0,
            callbacks=[hooks],
            stop=HaltStopper(halt, hooks, lambda: searcher.is_over),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def is_lost_node(said: str) -> bool:
    """Return whether Ray says of a dead worker that its node is dead or does not answer, and not that it ended alone.

    Of a worker that ends on a node that lives Ray knows at once; what it cannot reach is gone with its machine.
    """
    return any(words in said for words in LOST_NODE) and not ran_out_of_memory(said)


def _kill(actor: Any) -> None:
    with contextlib.suppress(ValueError, TypeError):  # not an actor that Ray knows any more: it is dead already
        ray.kill(actor)
