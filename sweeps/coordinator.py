"""The coordinator: decides, from the ledger, what to train and what to evaluate next, and commits what happens.

It knows neither Tune nor the terminal. The searcher asks it for trainings and brings their reports; the runner has it
poll the evaluations. Every decision is committed to the ledger before it is acted upon.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.room import Grant
from search_spaces.errors import ObjectiveMissing, StorageError, SweepError
from search_spaces.faults import reach
from search_spaces.storage import storage_problem
from sweeps.cascade import Standing, Target, next_target
from sweeps.evaluation import EvaluationPool
from sweeps.failures import after_failure
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.memory_classes import MemoryClass, classes_of, training_class
from sweeps.parent_life import ParentLife
from sweeps.parents import called
from sweeps.records import LAUNCHED, State, TrialRecord
from sweeps.requests import Granted, Request, grant_waiting
from sweeps.stage_job import StageJob, StageOutcome
from sweeps.stage_life import adopt, is_last_of_column, start, try_again
from sweeps.study import SearchStudy
from trainables.config import TrialConfig
from trainables.gpu_peak import training_remedy
from trainables.tune import Report, TrainingJob, write_token

if TYPE_CHECKING:
    from sweeps.admission import Admission
    from sweeps.config import SweepConfig

REQUESTS_S = 0.5
"""Between two looks at what other terminals ask for."""
STOPPED_TOKEN = "stopped"
"""Stands in a stopped trial's folder instead of an attempt, so that no worker writes there any more."""


@dataclass(frozen=True)
class Kept:
    """What a driver found when it started, for the line that `resume` prints."""

    finished: int
    continuing: tuple[tuple[int, int], ...]
    """(trial, epochs done) of the trainings that go on."""
    to_evaluate: int
    failed: int
    to_go: int
    stopped: int = 0
    parents: tuple[tuple[str, int], ...] = ()
    """(name, epochs done) of the parents whose training goes on."""

    def sentence(self) -> str:
        """Say it: "7 finished kept, trial 8 continues after epoch 4, 4 to go"."""
        parts = [f"{self.finished} finished kept"]
        goes_on = [(f"parent {name}", e) for name, e in self.parents] + [(f"trial {n}", e) for n, e in self.continuing]
        parts += [f"{who} continues after epoch {e}" if e else f"{who} starts again" for who, e in goes_on]
        if self.to_evaluate:
            parts.append(f"{self.to_evaluate} trained, to be evaluated")
        if self.stopped:
            parts.append(f"{self.stopped} stopped")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join([*parts, f"{self.to_go} to go"])


class Coordinator:
    """One driver's view of the sweep. Not thread-safe: the driver's main thread alone calls it."""

    def __init__(
        self, config: SweepConfig, ledger: Ledger, folder: SweepFolder, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Args: say: takes one line for the user per thing that happened."""
        self.config = config
        self.ledger = ledger
        self.folder = folder
        self.pool: EvaluationPool | None = None
        self._say = say
        self._sweep = ledger.sweep()
        self._planned = [stage for stage in self._sweep.planned_stages if stage.plan == LAUNCHED]
        trials, parents = ledger.trials(), ledger.parents()
        self.parents = ParentLife(config, ledger, folder)
        self.study = SearchStudy(config, trials, ledger.stages(), ledger.prior())
        self.pause_asked = False
        """Whether another terminal has asked this driver to pause."""
        self._asked_at = float("-inf")
        self._proposed = len(trials)
        self._to_train = deque(t.number for t in (*parents, *trials) if t.state in (State.PROPOSED, State.TRAINING))
        self._to_judge = deque(t.number for t in trials if t.state in (State.TRAINED, State.EVALUATING))
        self._training: dict[int, str] = {}
        self.admission: Admission | None = None
        """Decides who has room; without it all have."""
        self._granted: dict[int, Grant] = {}
        """What the trainings that run have got."""
        self._times_had: dict[int, float] = {}
        """How many times their share that was asked for."""
        self._classes: dict[int, MemoryClass] = {}
        self._expected = tuple(classes_of(config))
        """What may be proposed."""
        self._times: dict[MemoryClass, float] = {}
        """How many times its share a class gets: more than once when one of its trainings had not enough memory."""
        for trial in (trial for trial in (*parents, *trials) if trial.share > 1):
            self._learn(trial)
        self._not_before: dict[int, float] = {}
        """When a training that has failed may start again, by the clock that never goes back."""
        self._epoch_s: float | None = None
        """The longest epoch that this driver knows of."""
        self._stepped: set[tuple[int, str]] = set()
        """The attempts of which the first report is in the ledger."""
        self._unsettled = True
        self._final = False
        self.kept = Kept(
            finished=sum(t.state is State.FINISHED for t in trials),
            continuing=tuple((t.number, t.epochs) for t in trials if t.number in self._to_train),
            to_evaluate=len(self._to_judge),
            failed=sum(t.state is State.FAILED for t in trials),
            to_go=self._sweep.requested - len(trials),
            stopped=sum(t.state is State.STOPPED for t in trials),
            parents=tuple((p.label, p.epochs) for p in parents if p.number in self._to_train),
        )

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def training_needed(self) -> bool:
        """Whether any training runs, waits, or has yet to be proposed."""
        return bool(self._training or self._to_train or self._proposed < self._sweep.requested)

    @property
    def training_numbers(self) -> tuple[int, ...]:
        """The trials and parents whose training is running now."""
        return tuple(self._training)

    @property
    def training_waiting(self) -> tuple[int, ...]:
        """The trainings that are still to start, by number; of the trials that are not proposed yet the first."""
        parents = [parent.number for parent in self.parents.unproposed]
        trials = [self._proposed] if self._proposed < self._sweep.requested else []
        return (*parents, *self._to_train, *trials)

    @property
    def is_training_needed(self) -> bool:
        """Whether a training runs, waits for its turn alone, or is to be proposed."""
        return bool(self._training or self._startable or self._may_propose)

    @property
    def _startable(self) -> list[int]:
        """The trainings in the ledger that may start, which are those of parents as long as one is pending."""
        return [number for number in self._to_train if number < 0 or not self.parents.are_pending]

    @property
    def _may_propose(self) -> bool:
        """Whether a parent, or when all of them are trained a trial, is to be proposed."""
        is_next = not self.parents.are_pending and self._proposed < self._sweep.requested
        return bool(self.parents.unproposed) or is_next

    def is_current(self, number: int, token: str) -> bool:
        """Return whether an attempt is still wanted: neither failed, nor stopped, nor replaced."""
        return self._training.get(number) == token

    def granted(self, number: int) -> Grant:
        """Return what a training that runs has got."""
        return self._granted[number]

    def next_training(self) -> TrainingJob | None:
        """Return the next training, committed as started; None if none may start at the moment.

        Nothing overtakes the first that waits: what needs much would else wait as long as something needs less. Only
        what has no room on these nodes at all is overtaken: it waits for nodes, and not for what runs.
        """
        now = time.monotonic()
        ready = [number for number in self._startable if self._not_before.get(number, now) <= now]
        if ready:
            return self._start_if_room(next((number for number in ready if self._fits_here(number)), ready[0]))
        if not self._may_propose or not self._has_room():
            return None
        number = self.parents.propose() if self.parents.unproposed else self._propose()
        self._to_train.append(number)
        return self._start_if_room(number)

    def _start_if_room(self, number: int) -> TrainingJob | None:
        trial = self.ledger.trial(number)
        of, times = self._asked_for(trial)
        grant = Grant(1.0)
        if self.admission is not None:
            found = self.admission.grant(of, times, self._running)
            if found is None:
                return None
            grant = found
        self._to_train.remove(number)
        self._times_had[number] = times
        return self._start(trial, grant)

    def _asked_for(self, trial: TrialRecord) -> tuple[MemoryClass, float]:
        """Return a training's class, and how many times its share it asks for."""
        of = self._class_of(trial)
        return of, max(trial.share, self._times.get(of, 1.0))

    def is_misplaced(self, number: int) -> bool:
        """Return whether these nodes have no room for what a training has got, though they have for such a training."""
        if self.admission is None or self.admission.can_give(self._granted[number]):
            return False
        return self._fits_here(number)

    def _fits_here(self, number: int) -> bool:
        return self.admission is None or self.admission.holds(*self._asked_for(self.ledger.trial(number)))

    def _has_room(self) -> bool:
        """Return whether the next proposal may have room: one of the classes that are expected has."""
        return self.admission is None or self.admission.has_room(self._expected, self._running)

    @property
    def _running(self) -> list[Grant]:
        return [self._granted[number] for number in self._training]

    def _class_of(self, trial: TrialRecord) -> MemoryClass:
        """Return a training's class; one of its own where its configuration is none any more, as its worker will say:
        a plugin is gone, or a field."""
        if trial.number not in self._classes:
            try:
                found = training_class(TrialConfig.model_validate(dict(trial.config)))
            except (ValueError, OSError, SweepError):
                found = MemoryClass(trial.label, f"trial {trial.number}", 0)
            self._classes[trial.number] = found
        return self._classes[trial.number]

    def _learn(self, trial: TrialRecord) -> None:
        """Remember for its class that a training had not enough memory with less than this."""
        of = self._class_of(trial)
        self._times[of] = max(self._times.get(of, 1.0), trial.share)

    def _propose(self) -> int:
        """Draw and commit the next trial; returns its number."""
        number = self._proposed
        in_configuration = self.config.known_params(number) is not None
        known = None if in_configuration else self.ledger.next_known()
        proposal = self.study.propose(number, None if known is None else known.params)
        reach("propose.commit")
        self.ledger.propose(
            number,
            proposal.config.label,
            proposal.config.plain(),
            proposal.params,
            proposal.distributions,
            proposal.seed,
            known=None if known is None else known.position,
        )
        self._proposed += 1
        return number

    def _start(self, trial: TrialRecord, grant: Grant) -> TrainingJob:
        number = trial.number
        parent = self.parents.file_of(trial)
        attempt = self.ledger.start_training(number, grant.resources())
        token = f"{self.ledger.owner}/{attempt}"
        folder = self.folder.trial_place(number)
        write_token(folder, token)
        self.ledger.check_lease()  # a driver that slept here must not start what another has started since
        reach("train.start")
        self._training[number] = token
        self._granted[number] = grant
        longest = self._longest_epoch(self.ledger.history(number) if trial.epochs else ())
        return TrainingJob(number, dict(trial.config), trial.seed, folder, token, parent, grant.gpus, longest)

    def _longest_epoch(self, history: Sequence[Mapping[str, float]]) -> float | None:
        """Return what an epoch has taken at most, as far as this driver knows. Args: history: of a training."""
        seconds = [epoch["cost/epoch_s"] for epoch in history if "cost/epoch_s" in epoch]
        self._epoch_s = max((*seconds, *(() if self._epoch_s is None else (self._epoch_s,))), default=None)
        return self._epoch_s

    def take_report(self, report: Report, token: str) -> None:
        """Commit what a training reports: an epoch, its end, or its failure. A stale attempt's report is dropped."""
        number = report.number
        if self._training.get(number) != token:
            return
        if report.status == "leaving":
            self.set_aside(number, "leaves a node that ends")
            return
        if report.status == "superseded":
            raise RuntimeError(f"{self._called(number)}: another driver writes in this sweep's folder. {report.error}")
        if report.status == "failed" and report.kind == "storage":
            raise StorageError(f"{self._called(number)} cannot write: {storage_problem(report.error)}.")
        if report.status == "failed" and report.kind == "parent":
            raise self.parents.lose(self.ledger.trial(number), report.error)
        if report.status == "failed":
            if len(report.history) > self.ledger.trial(number).epochs:  # a kill came between checkpoint and ledger
                self.ledger.record_epochs(number, report.history)
            self.training_failed(number, report.kind, report.error)
            return
        self._longest_epoch(report.history[-1:])
        reach("epochs.commit")
        self.ledger.record_epochs(number, report.history, self._first_step_of(report, token))
        if report.status == "trained":
            if report.clean_acc is None or report.weights_digest is None:
                raise ObjectiveMissing(f"{self._called(number)} says that it is trained and has no clean accuracy.")
            cosine = report.feature_cosine
            if number >= 0 and "feature_cosine" in self.config.objectives and not _is_finite(cosine):
                self.training_failed(number, "nan", f"the objective feature_cosine is {cosine}.")
                return
            del self._training[number]
            reach("trained.commit")
            self.ledger.finish_training(number, report.clean_acc, report.weights_digest, report.seconds, cosine)
            self._say(f"{_described(self.ledger.trial(number))} trained: clean {report.clean_acc:.3f}")
            if number < 0:
                self.parents.note_trained(number)
            else:
                self._to_judge.append(number)

    def _first_step_of(self, report: Report, token: str) -> float | None:
        """Return when an attempt's first optimizer step was over; None if that is in the ledger already."""
        if (report.number, token) in self._stepped:
            return None
        self._stepped.add((report.number, token))
        return report.first_step_at

    def _called(self, number: int) -> str:
        return called(self.ledger.trial(number))

    def set_aside(self, number: int, why: str = "makes room for the attacks") -> None:
        """Let a training go on later from its last checkpoint. No failure. Args: why: for the user."""
        if self._training.pop(number, None) is not None:
            self._to_train.appendleft(number)
            self._say(f"{_described(self.ledger.trial(number))} {why} and goes on later")

    def training_failed(self, number: int, kind: str, error: str) -> None:
        """Commit a failed attempt; the trial goes on from its last checkpoint if the policy allows, or has failed.

        Raises: ParentError if it was a parent's last one, because no trial can start then.
        """
        if self._training.pop(number, None) is None:
            return
        trial = self.ledger.trial(number)
        had, share = self._granted[number], self._times_had[number]
        again = after_failure(kind, trial.failed_as, share, self.config.failures)
        if again is not None and not (kind == "memory" and had.is_whole):
            self.ledger.note_failure(number, kind, error, again.share)
            how = f" in {again.pause_s:g} s" if again.pause_s else ""
            how += f" with {again.share:g} times the share" if again.share != share else ""
            self._say(f"{_described(trial)} failed ({kind}) and is tried again{how}")
            self._not_before[number] = time.monotonic() + again.pause_s
            self._learn(self.ledger.trial(number))
            self._to_train.append(number)
            return
        if kind == "memory" and had.is_whole:
            error = f"{error.rstrip()}\n\n{_had_all(had, trial)}"
        self.ledger.fail(number, kind, error)
        if number < 0:
            raise self.parents.failure(number)
        self.study.tell(self.ledger.trial(number))
        self._say(f"trial {number} ({trial.label}) failed: {kind}. `logs {self._sweep.name} {number}` says why")

    # -- evaluation ---------------------------------------------------------------------------------------------------

    @property
    def evaluation_needed(self) -> bool:
        """Whether an evaluation runs or a trained trial waits for its first one."""
        return bool(self._to_judge or (self.pool is not None and self.pool.busy))

    def poll(self) -> bool:
        """Adopt the stages that ended and start first stages, ahead of all that waits; returns whether any ended."""
        ended = self.pool.done() if self.pool is not None else []
        for job, outcome in ended:
            self._adopt(job, outcome)
            self._unsettled = True
        while self._to_judge and (self.config.attacks is None or (self.pool and self.pool.takes_first_stages)):
            number = self._to_judge.popleft()
            if self.config.attacks is None:
                self.ledger.finish_without_attack(number)
                self._tell(number)
            else:
                self._judge(Target(number, self._planned[0]))
        return bool(ended)

    def poll_later_stages(self, *, final: bool) -> bool:
        """Start later stages wherever no first stage waits and the pool has room; returns whether any stage runs.

        Args: final: whether all trainings are over, so that test images and columns may have their turn too.
        """
        plan = self.config.attacks
        if plan is None or self.pool is None:
            return False
        if final and not self._final:  # more stages may run, and more at once
            self._final = self._unsettled = True
        if self._unsettled and not self._to_judge:
            while self.pool.free and (target := self._next_target(final)) is not None:
                self._judge(target)
            self._unsettled = False  # until something ends, the answer stays the same
        return self.pool.busy

    def _next_target(self, final: bool) -> Target | None:
        plan = self.config.attacks
        assert plan is not None
        assert self.pool is not None
        running = [Target(job.number, job.stage) for job in self.pool.running]
        at = Standing(self._planned, self.config.objectives, self.ledger.trials(), self.ledger.stages(), running)
        return next_target(at, evaluate=plan.evaluate, test_trials=plan.tested, final=final)

    def _judge(self, target: Target) -> None:
        assert self.pool is not None
        job = start(self.ledger, target, self.folder, self._sweep.data_digest)
        reach("stage.start")
        self.pool.submit(job)

    def _adopt(self, job: StageJob, outcome: StageOutcome | str) -> None:
        reach("stage.adopt")
        stage = job.stage
        is_objective = stage.split == "validation" and stage.position == 0
        if isinstance(outcome, str) and try_again(self.ledger, job, outcome, self.config.failures, self._say):
            if is_objective:
                self._to_judge.append(job.number)
            return
        adopt(self.ledger, self._planned, job, outcome)
        if is_objective:
            self._tell(job.number)
        elif isinstance(outcome, str):
            self._say(f"trial {job.number}: {stage.label} on {stage.split} images failed. `report` says why")
        elif is_last_of_column(self._planned, stage):
            left = f"{outcome.record.accuracy:.3f} stand after {stage.column} on {stage.split} images"
            self._say(f"trial {job.number}: {left}")

    # -- what other terminals ask for ---------------------------------------------------------------------------------

    def take_requests(self) -> None:
        """Grant what other terminals ask for, and do it."""
        if time.monotonic() - self._asked_at < REQUESTS_S:
            return
        self._asked_at = time.monotonic()
        for request, granted in grant_waiting(self.ledger, self.folder.requests, self._say):
            self._follow(request, granted)

    def _follow(self, request: Request, granted: Granted) -> None:
        """Do here what a request means that the ledger has granted."""
        if request.kind == "pause":
            self.pause_asked = True
            return
        for number in granted.changed:
            if request.kind == "stop":
                self._stop(number)
            else:
                self._open_again(number)
        if request.kind != "stop":
            self._sweep = self.ledger.sweep()
            self._rebuild()

    def _stop(self, number: int) -> None:
        for queue in (self._to_train, self._to_judge):
            if number in queue:
                queue.remove(number)
        self._training.pop(number, None)
        if self.folder.objects or self.folder.trial(number).exists():
            write_token(self.folder.trial_place(number), f"{self.ledger.owner}/{STOPPED_TOKEN}")
        if self.pool is not None:
            self.pool.forget(number)
        self.study.tell(self.ledger.trial(number))

    def _open_again(self, number: int) -> None:
        trial = self.ledger.trial(number)
        if number < 0:
            self.parents.note_open(number)
        if trial.state is State.PROPOSED:
            self._to_train.append(number)
        elif trial.state is State.TRAINED:
            self._to_judge.append(number)

    def _rebuild(self) -> None:
        """Begin the study anew from the ledger: what it was told once cannot be taken back."""
        self.study = SearchStudy(self.config, self.ledger.trials(), self.ledger.stages(), self.ledger.prior())
        self._unsettled, self._final = True, False

    def _tell(self, number: int) -> None:
        trial = self.ledger.trial(number)
        self.study.tell(trial)
        if trial.state is State.FINISHED:
            robust = "" if trial.robust_acc is None else f", robust {trial.robust_acc:.3f}"
            count = self.ledger.counts()[State.FINISHED]
            clean = f"clean {trial.clean_acc:.3f}{robust}"
            self._say(f"trial {number} ({trial.label}) finished: {clean}  [{count} of {self._sweep.requested}]")


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _had_all(had: Grant, trial: TrialRecord) -> str:
    """Say what helps a training that had not enough memory with all that it can have of a GPU."""
    recipe = trial.config["training"]
    remedy = training_remedy(recipe["batch_size"], recipe["micro_batch"])
    return f"It had {had.gpus:g} of a GPU, and more is not to be had beside the attacks. {remedy}"


def _described(record: TrialRecord) -> str:
    """Return "trial 7 (jasmin)", or "parent robust"."""
    return f"{called(record)} ({record.label})" if record.number >= 0 else called(record)
