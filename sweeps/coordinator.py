"""The coordinator: decides, from the ledger, what to train and what to evaluate next, and commits what happens.

It knows neither Tune nor the terminal. The searcher asks it for trainings and brings their reports; the runner has it
poll the evaluations. Every decision is committed to the ledger before it is acted upon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces.errors import ObjectiveMissing
from search_spaces.faults import reach
from sweeps.cascade import Target, next_target, planned_stages, stage_job
from sweeps.evaluation import EvaluationPool, StageJob, read_verdicts
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.study import SearchStudy
from trainables.tune import Report, TrainingJob, write_token

if TYPE_CHECKING:
    from sweeps.config import AttackPlan, SweepConfig

DETERMINISTIC = ("nan", "checkpoint")
"""Failures that another attempt of the same configuration and seed would only repeat."""


@dataclass(frozen=True)
class Kept:
    """What a driver found when it started, for the line that `resume` prints."""

    finished: int
    continuing: tuple[tuple[int, int], ...]
    """(trial, epochs done) of the trainings that go on."""
    to_evaluate: int
    failed: int
    to_go: int

    def sentence(self) -> str:
        """Say it: "7 finished kept, trial 8 continues after epoch 4, 4 to go"."""
        parts = [f"{self.finished} finished kept"]
        parts += [
            f"trial {n} continues after epoch {e}" if e else f"trial {n} starts again" for n, e in self.continuing
        ]
        if self.to_evaluate:
            parts.append(f"{self.to_evaluate} trained, to be evaluated")
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
        trials = ledger.trials()
        self.study = SearchStudy(config, trials, ledger.stages())
        self._proposed = len(trials)
        self._to_train = deque(t.number for t in trials if t.state in (State.PROPOSED, State.TRAINING))
        self._to_judge = deque(t.number for t in trials if t.state in (State.TRAINED, State.EVALUATING))
        self._training: dict[int, str] = {}
        self._unsettled = True
        self.kept = Kept(
            finished=sum(t.state in (State.FINISHED, State.STOPPED) for t in trials),
            continuing=tuple((t.number, t.epochs) for t in trials if t.number in self._to_train),
            to_evaluate=len(self._to_judge),
            failed=sum(t.state is State.FAILED for t in trials),
            to_go=self._sweep.requested - len(trials),
        )

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def training_needed(self) -> bool:
        """Whether any training runs, waits, or has yet to be proposed."""
        return bool(self._training or self._to_train or self._proposed < self._sweep.requested)

    @property
    def training_count(self) -> int:
        """Trainings that are running now."""
        return len(self._training)

    def next_training(self) -> TrainingJob | None:
        """Return the next training, committed as started; None if there is none to start at the moment."""
        if self._to_train:
            return self._start(self._to_train.popleft())
        if self._proposed < self._sweep.requested:
            number = self._proposed
            proposal = self.study.propose(number)
            reach("propose.commit")
            self.ledger.propose(
                number,
                proposal.config.label,
                proposal.config.plain(),
                proposal.params,
                proposal.distributions,
                proposal.seed,
            )
            self._proposed += 1
            return self._start(number)
        return None

    def _start(self, number: int) -> TrainingJob:
        trial = self.ledger.trial(number)
        attempt = self.ledger.start_training(number)
        token = f"{self.ledger.owner}/{attempt}"
        folder = self.folder.trial(number)
        write_token(folder, token)
        reach("train.start")
        self._training[number] = token
        return TrainingJob(number, dict(trial.config), trial.seed, str(folder), token)

    def take_report(self, report: Report, token: str) -> None:
        """Commit what a training reports: an epoch, its end, or its failure. A stale attempt's report is dropped."""
        number = report.number
        if self._training.get(number) != token:
            return
        if report.status == "superseded":
            raise RuntimeError(f"trial {number}: another driver writes in this sweep's folder. {report.error}")
        if report.status == "failed":
            self.training_failed(number, report.kind, report.error)
            return
        reach("epochs.commit")
        self.ledger.record_epochs(number, report.history)
        if report.status == "trained":
            if report.clean_acc is None or report.weights_digest is None:
                raise ObjectiveMissing(f"trial {number} says that it is trained and has no clean accuracy.")
            del self._training[number]
            reach("trained.commit")
            self.ledger.finish_training(number, report.clean_acc, report.weights_digest, report.seconds)
            label = self.ledger.trial(number).label
            self._say(f"trial {number} ({label}) trained: clean {report.clean_acc:.3f}")
            self._to_judge.append(number)

    def training_failed(self, number: int, kind: str, error: str) -> None:
        """Commit a failed attempt; the trial goes on from its last checkpoint if the policy allows, or has failed."""
        if self._training.pop(number, None) is None:
            return
        trial = self.ledger.trial(number)
        if kind not in DETERMINISTIC and trial.failures < self.config.failures.retries:
            self.ledger.note_failure(number, kind, error)
            self._say(f"trial {number} ({trial.label}) failed ({kind}) and is tried again")
            self._to_train.append(number)
            return
        self.ledger.fail(number, kind, error)
        self.study.tell(self.ledger.trial(number))
        self._say(f"trial {number} ({trial.label}) failed: {kind}. `logs {self._sweep.name} {number}` says why")

    # -- evaluation ---------------------------------------------------------------------------------------------------

    @property
    def evaluation_needed(self) -> bool:
        """Whether an evaluation runs or a trained trial waits for its first one."""
        return bool(self._to_judge or (self.pool is not None and self.pool.busy))

    def poll(self) -> bool:
        """Adopt the stages that ended and start first stages while the pool has room; returns whether any ended."""
        ended = self.pool.done() if self.pool is not None else []
        for job, error in ended:
            self._adopt(job, error)
            self._unsettled = True
        while self._to_judge and (self.config.attacks is None or (self.pool is not None and self.pool.free)):
            number = self._to_judge.popleft()
            if self.config.attacks is None:
                self.ledger.finish_without_attack(number)
                self._tell(number)
            else:
                self._judge(Target(number, "validation", 0))
        return bool(ended)

    def poll_dear_stages(self) -> bool:
        """Start later validation stages, then the test of the front; returns whether any of it still runs.

        Call when no first stage is left.
        """
        plan = self.config.attacks
        if plan is None or self.pool is None:
            return False
        if self._unsettled:
            while self.pool.free and (target := self._next_target(plan)) is not None:
                self._judge(target)
            self._unsettled = False  # until something ends, the answer stays the same
        return self.pool.busy

    def _next_target(self, plan: AttackPlan) -> Target | None:
        running = [Target(j.number, j.split, j.position) for j in self.pool.running] if self.pool is not None else []
        return next_target(plan, self.config.objectives, self.ledger.trials(), self.ledger.stages(), running)

    def _judge(self, target: Target) -> None:
        assert self.pool is not None
        assert self.config.attacks is not None
        trial, stages = self.ledger.trial(target.number), self.ledger.stages(target.number)
        job = stage_job(self.config.attacks, target, trial, stages, self.folder, self._sweep.data_digest)
        self.ledger.start_stage(job.record())
        reach("stage.start")
        self.pool.submit(job)

    def _adopt(self, job: StageJob, error: str | None) -> None:
        plan = self.config.attacks
        assert plan is not None
        try:
            verdicts = read_verdicts(job) if error is None else None
        except ObjectiveMissing as missing:
            verdicts, error = None, str(missing)
        reach("stage.adopt")
        first = job.split == "validation" and job.position == 0
        if verdicts is None:
            self.ledger.fail_stage(job.record(), error or "unknown")
            self._say(f"trial {job.number}: {job.label} on {job.split} images failed. `report` says why")
        else:
            exact = job.position + 1 == len(planned_stages(plan, job.split))
            self.ledger.finish_stage(verdicts.record, exact=exact, split_clean_acc=verdicts.split_clean_acc)
        if first:
            self._tell(job.number)
        elif verdicts is not None:
            accuracy = verdicts.record.accuracy
            self._say(f"trial {job.number}: {accuracy:.3f} stand after {job.label} on {job.split} images")

    def _tell(self, number: int) -> None:
        trial = self.ledger.trial(number)
        self.study.tell(trial)
        if trial.state is State.FINISHED:
            robust = "" if trial.robust_acc is None else f", robust {trial.robust_acc:.3f}"
            count = self.ledger.counts()[State.FINISHED]
            clean = f"clean {trial.clean_acc:.3f}{robust}"
            self._say(f"trial {number} ({trial.label}) finished: {clean}  [{count} of {self._sweep.requested}]")
