"""The Optuna study, rebuilt in memory from the ledger at every start, and the sampler that proposes trials.

The sampler is made anew before every proposal from (sweep seed, trial number). A proposal therefore depends on its
number and on what has been told, never on how often the driver was restarted; a sampler that carried its own random
state would repeat itself after a restart.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.seeds import derive_seed
from sweeps.allocation import Spent, next_label
from sweeps.records import CLOSED, PriorTrial, StageRecord, State, TrialRecord
from sweeps.summary import objective_values

if TYPE_CHECKING:
    from sweeps.config import SweepConfig
    from trainables.config import TrialConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {State.FINISHED: TrialState.COMPLETE, State.STOPPED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


@dataclass(frozen=True)
class Proposal:
    """A trial that the sampler asks for; nothing of it exists until the ledger has committed it."""

    number: int
    config: TrialConfig
    params: Mapping[str, Any]
    distributions: Mapping[str, str]
    seed: int


def trial_seed(sweep_seed: int, number: int) -> int:
    """Return the seed of a trial, in [0, 2³¹): exact in every tool that reads an export."""
    return derive_seed(sweep_seed, "trial", number) % 2**31


class SearchStudy:
    """Asks for trials and is told each finished one once.

    With `allocation: shared` all methods are one study. Otherwise each is a study of its own: a sampler that is forced
    to a method would draw learning rates that did well with others.
    """

    def __init__(
        self,
        config: SweepConfig,
        trials: Sequence[TrialRecord],
        stages: Sequence[StageRecord] = (),
        prior: Sequence[PriorTrial] = (),
    ) -> None:
        """Rebuild the study.

        Args:
            trials: every trial of the ledger, by number; open ones count as running.
            stages: every attack stage of the ledger; a trial is told its first one, whatever came later.
            prior: trials of other sweeps; they stand before the sweep's own.
        """
        self._config = config
        self._labels = [entry.label for entry in config.methods]
        self._is_shared = config.search.allocation == "shared" or len(self._labels) == 1
        self._studies: dict[str, optuna.Study] = {}
        self._places: dict[int, tuple[str, int]] = {}
        """By a trial's number: its label, and its number in the study that it belongs to."""
        self._spent: dict[str, Spent] = defaultdict(Spent)
        for other in prior:
            self._study(other.label).add_trial(frozen_prior(other))
        first = {s.number: s for s in stages if s.split == "validation" and s.position == 0}
        for trial in trials:
            study = self._study(trial.label)
            self._place(trial.number, trial.label, len(study.get_trials(deepcopy=False)))
            study.add_trial(frozen_trial(trial, told_values(trial, first.get(trial.number), config.objectives)))
            self._count(trial)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Optuna's view of all trials, prior ones included, study by study."""
        return [trial for study in self._studies.values() for trial in study.trials]

    def propose(self, number: int, known: Mapping[str, Any] | None = None) -> Proposal:
        """Draw trial `number`, the next one: what a grid or the known configurations fix, the rest by the sampler.

        Args: known: parameters of a configuration that was added later; None is the one that the sweep knows, if any.
        """
        if number != len(self._places):
            raise RuntimeError(f"the study is at trial {len(self._places)}, the ledger at {number}")
        search = self._config.search
        fixed = self._config.known_params(number) if known is None else dict(known)
        if not self._is_shared:
            fixed = {"method": next_label(search.allocation, self._labels, self._spent)} | (fixed or {})
        study = self._study(str((fixed or {}).get("method", "")))
        seed = derive_seed(search.seed, "sampler", number) % 2**32
        study.sampler = make_sampler(search.sampler, seed, self._startup_trials)
        if fixed is not None:
            study.enqueue_trial(fixed)
        trial = study.ask()
        config = self._config.suggest(trial)
        self._place(number, config.label, trial.number)
        distributions = {name: distribution_to_json(d) for name, d in trial.distributions.items()}
        return Proposal(number, config, trial.params, distributions, trial_seed(search.seed, number))

    def tell(self, trial: TrialRecord) -> None:
        """Tell the study how a trial ended; its record is final for the search from here on."""
        values = objective_values(trial, self._config.objectives)  # only the first stage has run
        state = _STATES[trial.state]
        label, place = self._places[trial.number]
        self._study(label).tell(place, values if state is TrialState.COMPLETE else None, state=state)
        self._count(trial)

    @property
    def _startup_trials(self) -> int:
        studies = 1 if self._is_shared else len(self._labels)
        return math.ceil(self._config.search.startup_trials / studies)

    def _study(self, label: str) -> optuna.Study:
        key = "" if self._is_shared else label
        if key not in self._studies:
            self._studies[key] = optuna.create_study(directions=["maximize"] * len(self._config.objectives))
        return self._studies[key]

    def _place(self, number: int, label: str, place: int) -> None:
        self._places[number] = label, place
        self._spent[label].trials += 1

    def _count(self, trial: TrialRecord) -> None:
        if trial.state in CLOSED:
            self._spent[trial.label].seconds[trial.number] = trial.train_seconds or 0.0


def frozen_prior(trial: PriorTrial) -> FrozenTrial:
    """Return Optuna's view of a finished trial of another sweep."""
    return create_trial(
        state=TrialState.COMPLETE,
        values=list(trial.values),
        params=dict(trial.params),
        distributions={name: json_to_distribution(text) for name, text in trial.distributions.items()},
        user_attrs={"prior": trial.sweep, "trial": trial.number},
    )


def make_sampler(kind: str, seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """Build a sampler: "tpe" (multivariate, grouped by the conditional spaces, constant liar), "random" or "grid".

    A grid fixes every parameter, so that its sampler has nothing to draw.
    """
    if kind != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup_trials, multivariate=True, group=True, constant_liar=True
        )


def told_values(trial: TrialRecord, first_stage: StageRecord | None, objectives: Sequence[str]) -> tuple[float, ...]:
    """Return a finished trial's objectives as the search is told them: robust accuracy after the first attack."""
    told = {
        "clean_acc": trial.clean_acc,
        "feature_cosine": trial.feature_cosine,
        "robust_acc": trial.robust_acc if first_stage is None else first_stage.accuracy,
    }
    return tuple(value for name in objectives if (value := told[name]) is not None)


def frozen_trial(trial: TrialRecord, told: Sequence[float], attributes: Mapping[str, Any] | None = None) -> FrozenTrial:
    """Return Optuna's view of a trial; open ones are RUNNING.

    Args: told: values of a finished trial; attributes: Optuna's user attributes.
    """
    state = _STATES.get(trial.state, TrialState.RUNNING)
    frozen = create_trial(
        state=state,
        values=list(told) if state is TrialState.COMPLETE else None,
        params=dict(trial.params),
        distributions={name: json_to_distribution(text) for name, text in trial.distributions.items()},
        user_attrs=dict(attributes or {}),
    )
    began = trial.started_at or trial.created_at
    frozen.datetime_start = datetime.fromtimestamp(began)
    if state.is_finished():  # a clock may have gone back in between
        frozen.datetime_complete = datetime.fromtimestamp(max(began, trial.ended_at or trial.updated_at))
    return frozen
