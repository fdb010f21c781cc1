"""Reads a ledger for the live view, at each look only what has changed since the last one.

Everything is in the ledger: the block of `launch` and that of `status` in another terminal are the same. What only the
driver knows, how many shards of an attack stage are done and how many run at once, it gives beside (`PoolState`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from sweeps.ledger import Ledger
from sweeps.live_state import Attack, LiveState, Member, PoolState, Training
from sweeps.pace import Left, Pace, StageKey, Tick, Work, measure_pace, time_left
from sweeps.pareto import front
from sweeps.records import LAUNCHED, Event, PlannedStage, State, SweepRecord, TrialRecord
from sweeps.requests import Request, waiting
from sweeps.summary import objective_values

TAIL = 4000
"""Events of the running driver that are read at the first look; the pace needs no more."""
MANY = 500
"""Trials that have changed at once above which all are read anew: each is a word of the query."""
MEANS_S = 10.0
"""Between two readings of how long attack stages take: it looks at all of them."""
QUIET = {"proposed", "training", "epochs"}
"""Kinds of events that move neither an attack stage nor the front."""
FIGURES = {"clean": "val/clean_acc", "robust": "val/robust_acc", "loss": "train/loss"}
"""What the view calls a metric of an epoch → its key."""


class LiveReader:
    """Keeps what it has read of one ledger."""

    def __init__(self, ledger: Ledger, requests: Path) -> None:
        """Args: requests: folder of what other terminals ask for."""
        self._ledger = ledger
        self._requests = requests
        self._after = 0
        self._sweep: SweepRecord | None = None
        self._started: Event | None = None
        self._began: float | None = None
        """When the driver's first training started."""
        self._trials: dict[int, TrialRecord] = {}
        self._parents: dict[int, TrialRecord] = {}
        self._planned_epochs: dict[int, int | None] = {}
        self._metrics: dict[int, Mapping[str, float]] = {}
        self._running: dict[int, list[StageKey]] = {}
        self._failed_attacks = 0
        self._ticks: deque[Tick] = deque(maxlen=TAIL)
        self._front: list[Member] = []
        self._later: list[StageKey] = []
        self._means: dict[StageKey, float] = {}
        self._means_at = float("-inf")

    def read(self, now: float, pool: PoolState | None = None) -> LiveState:
        """Look at the ledger. Args: now: seconds since the epoch; pool: None where only the ledger is known."""
        if self._sweep is None:
            self._read_all()
        else:
            self._follow(self._ledger.events(after=self._after))
        assert self._sweep is not None
        if now - self._means_at > MEANS_S:
            self._means_at, self._means = now, {_key(s, p): mean for (s, p), mean in self._ledger.stage_means().items()}
        return self._state(now, pool or PoolState(), waiting(self._requests))

    def _read_all(self) -> None:
        self._after = self._ledger.last_sequence()
        self._read_sweep()
        self._read_trials(None)
        self._running = {}
        for number, split, position in self._ledger.running_stages():
            self._running.setdefault(number, []).append(_key(split, position))
        self._failed_attacks = len(self._ledger.failed_stages())
        since = max(self._started.sequence if self._started else self._after, self._after - TAIL)
        events = [event for event in self._ledger.events(after=since) if event.sequence <= self._after]
        for number in {*self._open(), *_numbers(events, ("epochs",))}:
            self._read_metrics(number)
        self._count(events)
        self._weigh()

    def _follow(self, events: Sequence[Event]) -> None:
        """Take over what has happened since the last look."""
        if not events:
            return
        self._after = events[-1].sequence
        if any(event.number is None for event in events):
            self._read_sweep()
        kinds = {event.kind for event in events}
        changed = _numbers(events, kinds)
        self._read_trials(changed if len(changed) <= MANY else None)
        for number in _numbers(events, ("proposed", "retried", "epochs")):
            self._read_metrics(number)
        for number in _numbers(events, kinds - QUIET):
            self._running[number] = [_key(s, p) for _, s, p in self._ledger.running_stages(number)]
        if kinds & {"stage failed", "failed", "retried", "stopped"}:
            self._failed_attacks = len(self._ledger.failed_stages())
        self._count(events)
        if kinds - QUIET:
            self._weigh()

    def _read_sweep(self) -> None:
        self._sweep = self._ledger.sweep()
        starts = self._ledger.driver_events("driver started")
        if starts and (self._started is None or starts[-1].sequence != self._started.sequence):
            self._started, self._began = starts[-1], None
            self._ticks.clear()

    def _read_trials(self, numbers: set[int] | None) -> None:
        """Read trials, and parents where one has changed. Args: numbers: None reads all."""
        if numbers is None or min(numbers, default=0) < 0:
            self._parents = {parent.number: parent for parent in self._ledger.parents()}
        trials = None if numbers is None else [number for number in numbers if number >= 0]
        if trials is None or trials:
            self._trials |= {trial.number: trial for trial in self._ledger.trials(bare=True, numbers=trials)}

    def _open(self) -> list[int]:
        """The trainings that run or wait, parents first."""
        return [
            row.number
            for row in (*self._parents.values(), *self._trials.values())
            if row.state in (State.PROPOSED, State.TRAINING)
        ]

    def _read_metrics(self, number: int) -> None:
        """Read the last epoch's metrics of a training, and once how many epochs it will take."""
        history = self._ledger.history(number)
        self._metrics[number] = history[-1] if history else {}
        if number not in self._planned_epochs:
            found = self._ledger.trial(number).config.get("training", {}).get("epochs")
            self._planned_epochs[number] = found if isinstance(found, int) else None

    def _count(self, events: Iterable[Event]) -> None:
        """Count the epochs in some events of this driver."""
        for event in events:
            if self._started is None or event.sequence < self._started.sequence or event.number is None:
                continue
            if event.kind == "training" and self._began is None:
                self._began = event.at
            if event.kind == "epochs" and (epochs := event.detail["to"] - (event.detail["from"] or 0)) > 0:
                if len(self._ticks) == TAIL or self._began is None:
                    self._began = self._ticks[0].at if self._ticks else event.at
                images = self._metrics.get(event.number, {}).get("cost/images", 0.0)
                self._ticks.append(Tick(event.at, epochs, images * epochs))

    def _weigh(self) -> None:
        """Find the front, and the attack stages that are still to come for it."""
        assert self._sweep is not None
        objectives = self._sweep.objectives
        valued = [(t, v) for t in self._trials.values() if (v := objective_values(t, objectives)) is not None]
        members = front([v for _, v in valued])
        self._front = [
            Member(t.number, t.label, v, t.exact)
            for t, v in sorted((valued[i] for i in members), key=lambda item: ([-x for x in item[1]], item[0].number))
        ]
        planned = [stage for stage in self._sweep.planned_stages if stage.plan == LAUNCHED]
        if len(planned) < 2:  # the first stage of each trial is counted apart
            self._later = []
            return
        everyone = (self._sweep.document.get("attacks") or {}).get("evaluate") == "all"
        chosen = range(len(valued)) if everyone else members
        self._later = []
        for trial, _ in (valued[i] for i in chosen):
            done = {(s.split, s.position) for s in self._ledger.stages(trial.number) if s.state != "running"}
            self._later += [key for s in planned if (key := (s.split, s.position)) not in done and _comes(s, trial)]

    # -- the view -----------------------------------------------------------------------------------------------------

    def _state(self, now: float, pool: PoolState, requests: Sequence[Request]) -> LiveState:
        assert self._sweep is not None
        trials = self._trials.values()
        stopping = {number for request in requests if request.kind == "stop" for number in request.trials}
        pace = None if self._began is None else measure_pace(list(self._ticks), self._began, now)
        return LiveState(
            name=self._sweep.name,
            requested=self._sweep.requested,
            finished=sum(t.state is State.FINISHED for t in trials),
            stopped=sum(t.state is State.STOPPED for t in trials),
            failed=tuple((t.number, t.error_kind or "") for t in trials if t.state is State.FAILED),
            trainings=tuple(self._training(number, number in stopping) for number in self._open()),
            attacks=tuple(self._attacks(pool)),
            to_judge=sum(t.state is State.TRAINED for t in trials),
            front=tuple(self._front),
            objectives=tuple(self._sweep.objectives),
            labels=tuple(dict.fromkeys(t.label for t in trials)),
            failed_attacks=self._failed_attacks,
            pace=pace,
            left=self._left(pace, pool.workers),
            asked=tuple(f"{r.kind} {' '.join(map(str, r.trials))}".strip() for r in requests),
            elapsed_s=None if self._started is None else now - self._started.at,
        )

    def _training(self, number: int, stopping: bool) -> Training:
        row = self._trials[number] if number >= 0 else self._parents[number]
        metrics = self._metrics.get(number, {})
        return Training(
            name=str(number) if number >= 0 else f"parent {row.label}",
            label=row.label if number >= 0 else "",
            epochs=row.epochs,
            planned=self._planned_epochs.get(number),
            figures={name: metrics[key] for name, key in FIGURES.items() if key in metrics},
            started=row.state is State.TRAINING,
            stopping=stopping,
        )

    def _attacks(self, pool: PoolState) -> Iterable[Attack]:
        assert self._sweep is not None
        planned = {(s.split, s.position): s for s in self._sweep.planned_stages}
        for number, keys in sorted(self._running.items()):
            for key in keys:
                if key in planned and number in self._trials:
                    what = describe_stage(planned[key], self._sweep.planned_stages)
                    yield Attack(number, self._trials[number].label, what, pool.shards.get((number, key)))

    def _left(self, pace: Pace | None, workers: int) -> Left | None:
        assert self._sweep is not None
        if self._started is None:
            return None
        rows = [*self._parents.values(), *self._trials.values()]
        known = [planned for planned in self._planned_epochs.values() if planned is not None]
        trained = [t.epochs for t in self._trials.values() if t.state is State.FINISHED and t.epochs]
        usual = sum(known or trained) / len(known or trained) if known or trained else 1.0
        under_way = [r for r in rows if r.state in (State.PROPOSED, State.TRAINING)]
        epochs = sum(max(0, (self._planned_epochs.get(r.number) or usual) - r.epochs) for r in under_way)
        epochs += (self._sweep.requested - len(self._trials)) * usual
        closed = sum(t.state in (State.FINISHED, State.STOPPED, State.FAILED) for t in self._trials.values())
        first = self._sweep.requested - closed if self._sweep.planned_stages else 0
        return time_left(Work(epochs, first, self._later), pace, self._means, workers)


def describe_stage(stage: PlannedStage, planned: Sequence[PlannedStage]) -> str:
    """Return ``autoattack 3 of 12: apgd_t, target 2``; images of the test split and further plans are named."""
    siblings = [s for s in planned if (s.plan, s.split, s.column) == (stage.plan, stage.split, stage.column)]
    text = stage.column
    if len(siblings) > 1:
        part = stage.label.removeprefix(f"{stage.column}.")
        name, _, target = part.rpartition("_")
        part = f"{name}, target {target}" if name and target.isdecimal() else part
        text = f"{stage.column} {siblings.index(stage) + 1} of {len(siblings)}: {part}"
    text += " (test images)" if stage.split == "test" else ""
    return text if stage.plan == LAUNCHED else f"{stage.plan}: {text}"


def _numbers(events: Iterable[Event], kinds: Collection[str]) -> set[int]:
    """Return the trials and parents that events of these kinds are about."""
    return {event.number for event in events if event.kind in kinds and event.number is not None}


def _comes(stage: PlannedStage, trial: TrialRecord) -> bool:
    """Whether a stage that has not run on a trial of the front is to come: a cascade may have ended early."""
    return not (stage.cumulative and stage.split == "validation" and trial.exact)


def _key(split: str, position: int) -> StageKey:
    return ("test" if split == "test" else "validation", position)
