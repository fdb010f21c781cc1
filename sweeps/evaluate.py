"""Judging what is trained already: another plan on a sweep's trials, or any plan on a checkpoint from elsewhere.

A checkpoint becomes a sweep of one trial that is trained already, so that everything that a sweep can do (resume,
report, compare, verify, MLflow) it can do too.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.connect import connect, prepare_environment
from cluster.object_store import require_objects
from cluster.shared_objects import require_storage
from cluster.versions import SameEnvironment
from search_spaces.errors import ConfigError, Problem, SweepError, SweepExists
from sweeps.attack_plan import fill_in, planned_stages, ready_made
from sweeps.cascade import Target, is_through
from sweeps.config import AttackPlan, SweepConfig, parse_sweep, with_absolute_paths
from sweeps.creation import create_ledger
from sweeps.evaluation import EvaluationPool
from sweeps.failures_section import FailuresSection
from sweeps.folder import NAME_PATTERN, NAME_RULE, SweepFolder
from sweeps.halt import Halt
from sweeps.images import load_data
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.machine import enough, known_nodes
from sweeps.measured_memory import MEASURED, Needs
from sweeps.reading import read_attacks
from sweeps.records import IMPORTED, LAUNCHED, PlannedStage, Split, State, TrialRecord
from sweeps.rules import attack_problems
from sweeps.runner import POLL_S
from sweeps.signals import handled_signals
from sweeps.stage_job import StageJob, StageOutcome
from sweeps.stage_life import adopt, is_last_of_column, start, try_again
from sweeps.summary import front_of
from sweeps.yaml_source import Source, apply_overrides, read_document

if TYPE_CHECKING:
    from trainables.imported import Imported


INHERITED = ("norm", "epsilon", "images", "batch_size", "seed")
"""What a further plan takes from the launched one, unless it says otherwise; of the test images how many they are."""


@dataclass(frozen=True)
class Added:
    """What a further plan came to."""

    plan: str
    trials: tuple[int, ...]
    judged: int
    """Images judged now, once for each attack; the rest was in the store."""
    failed: int
    """Stages that failed."""
    interrupted: bool


def read_plan(where: str, launched: AttackPlan | None, overrides: Sequence[str] = ()) -> tuple[str, AttackPlan]:
    """Read an attack plan: a ready-made one's name, or a YAML file with a section ``attacks`` or its content.

    Args: launched: the sweep's own plan, from which ball, images, batch size and seed are taken unless they are given.

    Returns: the plan's name (the file's stem) and the plan. Raises: ConfigError with every problem.
    """
    if where in ready_made():
        document, source = apply_overrides({"plan": where}, Source(where), overrides)
    else:
        document, source = read_document(Path(where), overrides)
    inside = "attacks" in document
    section = fill_in(document["attacks"] if inside else document)
    if isinstance(section, Mapping) and launched is not None:
        tested = launched.test and {"images": launched.test.images}
        section = {**{name: getattr(launched, name) for name in INHERITED}, "test": tested, **section}
    plan, problems = read_attacks(section, ("attacks",) if inside else ())
    if plan is None:
        raise ConfigError([source.locate(problem) for problem in problems])
    return Path(where).stem, plan


def choose_trials(wanted: str, trials: Sequence[TrialRecord], objectives: Sequence[str]) -> list[int]:
    """Return the finished trials that ``front``, ``all`` or ``1,5-8`` names; ConfigError if one is not there."""
    finished = {t.number for t in trials if t.state is State.FINISHED}
    if wanted in ("front", "all"):
        return sorted(t.number for t in front_of(trials, objectives)) if wanted == "front" else sorted(finished)
    chosen: set[int] = set()
    for part in wanted.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not (high.isdecimal() and int(low) <= int(high))):
            message = f"expected front, all, or numbers such as 1,5-8; found {wanted!r}."
            raise ConfigError([Problem((), message, source="--trials")])
        chosen |= set(range(int(low), int(high if dash else low) + 1))
    missing = sorted(chosen - finished)
    if missing:
        message = f"not among the finished trials: {', '.join(map(str, missing))}."
        raise ConfigError([Problem((), message, f"`status` lists them; {len(finished)} are finished.", "--trials")])
    return sorted(chosen)


def add_plan(
    folder: SweepFolder, name: str, plan: AttackPlan, wanted: str, console: Console, *, address: str | None = None
) -> Added:
    """Judge trials of a sweep by a further plan, every one by all of it. What was judged before costs nothing.

    Args:   name: of the plan; once it is in the ledger it means these attacks. wanted: as `choose_trials`.
    Raises: ConfigError if the name means other attacks already, or an attack cannot run; LeaseHeld.
    """
    ledger = Ledger.at(folder.ledger)
    sweep = ledger.sweep()
    config = parse_sweep(sweep.document, folder.config.name)
    numbers = choose_trials(wanted, ledger.trials(), sweep.objectives)
    problems = [*_name_problems(name), *attack_problems(plan, sweep.num_classes)]
    others = [stage for stage in sweep.planned_stages if stage.plan != name]
    stages = planned_stages(plan, sweep.num_classes, sweep.split_sizes, name=name, after=others)
    there = [stage for stage in sweep.planned_stages if stage.plan == name]
    if there and [_question(s) for s in there] != [_question(s) for s in stages]:
        message = f"the sweep has a plan {name!r} with other attacks."
        problems.append(Problem((), message, "Choose another name.", source="--as"))
    if problems:
        raise ConfigError(problems)
    prepare_environment()
    halt = Halt()
    with Lease(ledger, on_lost=halt.lose), handled_signals(halt, console, folder):
        if not there:
            ledger.add_plan(name, stages)
        work = _Work(folder, ledger, there or list(stages), numbers, halt, console)
        added = work.run(config, address)
    ledger.close()
    return added


def _name_problems(name: str) -> Iterator[Problem]:
    if name == LAUNCHED or not NAME_PATTERN.fullmatch(name):
        message = f"{NAME_RULE}, and is not {LAUNCHED!r}; found {name!r}."
        yield Problem((), message, source="--as")


def _question(stage: PlannedStage) -> PlannedStage:
    """Return the stage without what decides no verdict."""
    return replace(stage, position=0, batch_size=0, keep_images=False, passes=None)


class _Work:
    """The stages of one plan on some trials, as many at once as there is room for."""

    def __init__(
        self,
        folder: SweepFolder,
        ledger: Ledger,
        stages: Sequence[PlannedStage],
        numbers: Sequence[int],
        halt: Halt,
        console: Console,
    ) -> None:
        self.folder, self.ledger, self.stages, self.halt, self.console = folder, ledger, stages, halt, console
        self.numbers = numbers
        self.judged = 0
        self._failed: set[tuple[int, Split, int]] = set()
        """Stages that failed now: (trial, split, position); those of an earlier call are tried again."""

    def run(self, config: SweepConfig, address: str | None) -> Added:
        if self._next([]) is None:
            return self._added()
        import ray

        ours = not ray.is_initialized()
        if self.folder.objects is not None:
            require_objects(self.folder.objects)
        needs = Needs.read(self.ledger.driver_events(MEASURED))
        shares = connect(address, lambda nodes: enough(config, known_nodes(config, nodes), needs), self.folder.log)
        try:
            if address is not None:
                SameEnvironment(config.plugins).require()
                require_storage(self.folder.scratch, self.folder.objects)
            self.ledger.note_driver("resources", shares.public())
            attacks = list(dict.fromkeys(stage.attack for stage in self.stages))
            pool = EvaluationPool(
                shares,
                attacks,
                config.failures.hang_after_s,
                self.folder.objects or self.folder.scratch / (self.ledger.owner or ""),
            )
            pool.use_everything()
            while not self.halt:
                self._adopt(pool.done(), config.failures)
                while pool.free and (target := self._next(pool.running)) is not None:
                    self._submit(pool, target)
                if not pool.busy:
                    break
                time.sleep(POLL_S)
            if self.halt:
                pool.cancel()
        finally:
            if ours:
                ray.shutdown()
            shutil.rmtree(self.folder.scratch, ignore_errors=True)
        if self.halt.error:
            raise SweepError(self.halt.error)
        return self._added()

    def _added(self) -> Added:
        return Added(self.stages[0].plan, tuple(self.numbers), self.judged, len(self._failed), self.halt.requested)

    def _next(self, running: Sequence[StageJob]) -> Target | None:
        busy = {(job.number, job.stage.split, job.stage.position) for job in running}
        splits: tuple[Split, ...] = ("validation", "test")
        for number in self.numbers:
            had = {(s.split, s.position): s for s in self.ledger.stages(number) if s.plan == self.stages[0].plan}
            for split in splits:
                chain = [s for s in self.stages if s.split == split and s.cumulative]
                states = [had[split, s.position] for s in chain if (split, s.position) in had]
                failed = any((number, split, s.position) in self._failed for s in chain)
                ended = failed or is_through(chain, states)
                in_chain = [] if ended or any((number, split, s.position) in busy for s in chain) else chain
                columns = [s for s in self.stages if s.split == split and not s.cumulative]
                for stage in (*in_chain, *columns):
                    record = had.get((split, stage.position))
                    is_done = record is not None and record.state == "done"
                    where = (number, split, stage.position)
                    if not is_done and where not in busy and where not in self._failed:
                        return Target(number, stage)
        return None

    def _submit(self, pool: EvaluationPool, target: Target) -> None:
        pool.submit(start(self.ledger, target, self.folder, self.ledger.sweep().data_digest))

    def _adopt(self, ended: Sequence[tuple[StageJob, StageOutcome | str]], failures: FailuresSection) -> None:
        for job, outcome in ended:
            if isinstance(outcome, str) and try_again(self.ledger, job, outcome, failures, self._say):
                continue
            record = adopt(self.ledger, self.stages, job, outcome)
            what = f"trial {job.number}: {job.stage.label} on {job.stage.split} images"
            if record is None or isinstance(outcome, str):
                self._failed.add((job.number, job.stage.split, job.stage.position))
                self._say(f"{what} failed. `report` says why")
                continue
            self.judged += outcome.judged
            if is_last_of_column(self.stages, job.stage) or not record.survivors:
                what = f"trial {job.number}: {job.stage.column} on {job.stage.split} images"
                stand = f"{record.survivors} of {record.images} stand"
                self._say(f"{what}: {stand}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


def checkpoint_document(
    checkpoint: Path, plan: str, model: str | None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the document of a sweep that judges a checkpoint: the plan's file, its attacks on every stage.

    Args: model: timm's name, unless the file has it; overrides: as at a launch.
    """
    document = {"attacks": {"plan": plan}} if plan in ready_made() else read_document(Path(plan))[0]
    if "attacks" not in document:
        document = {"attacks": document}
    document = {key: value for key, value in document.items() if key in ("attacks", "model", "data", "plugins")}
    attacks = fill_in(document["attacks"])
    document["attacks"] = {**attacks, "evaluate": "all"} if isinstance(attacks, Mapping) else attacks
    document["search"] = {"trials": 1}
    named = [] if model is None else [f"model.name={model}"]
    document, _ = apply_overrides(document, Source(str(checkpoint)), [*named, *overrides])
    if not isinstance(document.get("model"), Mapping) or "name" not in document["model"]:
        raise ConfigError([Problem((), "which timm model is it? None was given.", source="--model")])
    document.setdefault("data", {})
    return with_absolute_paths(document)


def import_sweep(
    document: dict[str, Any], checkpoint: Path, folder: SweepFolder, say: Callable[[str], None]
) -> SweepConfig:
    """Make a sweep of one trial, trained already: a checkpoint with the model and data that `document` names.

    Raises: SweepExists if the name is taken; ModelError if the checkpoint does not fill the model.
    """
    from sweeps.foreground import pinned_trial
    from sweeps.prefetch import stage_data
    from sweeps.study import trial_seed
    from trainables.imported import import_checkpoint

    if folder.ledger.exists():
        raise SweepExists(
            f"sweep {folder.name!r} exists in {folder.storage}; a further plan for it: "
            f"{folder.command('evaluate')} --plan FILE. Or choose another NAME."
        )
    config = parse_sweep(document, "--checkpoint")
    if config.storage.objects is not None:
        message = "a checkpoint from elsewhere is judged in the sweep's folder; leave this out."
        raise ConfigError([Problem(("storage", "objects"), message)])
    stage_data(config, say)
    splits = load_data(config)
    problems = list(attack_problems(config.attacks, splits.num_classes))
    if problems:
        raise ConfigError(problems)
    trial = pinned_trial(config, None)
    seed = trial_seed(config.search.seed, 0)
    imported = import_checkpoint(checkpoint, trial, seed, folder.trial(0))
    create_ledger(config, folder, splits, lambda ledger: _fill(ledger, trial.plain(), seed, imported))
    return config


def _fill(ledger: Ledger, config: dict[str, Any], seed: int, imported: Imported) -> None:
    with Lease(ledger):
        ledger.propose(0, IMPORTED, config, {}, {}, seed)
        ledger.start_training(0)
        ledger.finish_training(0, imported.clean_acc, imported.weights_digest, 0.0)
