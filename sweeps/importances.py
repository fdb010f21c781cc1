"""Which parameters decide an objective: Optuna's functional ANOVA over the finished trials, with a column of chance.

For each method its own parameters, and over all methods the choice of the method with the parameters that all share.
Beside them stands one parameter that nothing ever read. With few trials a forest explains noise too; what explains no
more than that column does is not told apart from chance.

Optuna and scikit-learn are imported when a figure is asked for, and by nothing else in a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.seeds import derive_seed
from sweeps.records import State, TrialRecord
from sweeps.snapshot import Snapshot

FEWEST = 12
"""Finished trials that a forest needs; below that its answer changes with every further trial (our choice)."""
MOST = 128
"""Trials that one forest is grown on, evenly over the sweep: the time of an ANOVA grows with their square."""
TREES, DEPTH = 16, 16
"""Of each forest; a quarter of Optuna's, for the same order of parameters in a tenth of the time (our choice)."""
CHANCE = "(chance)"
"""Name of the parameter that decides nothing."""
METHOD = "method"


@dataclass(frozen=True)
class Importances:
    """What decides one objective among the trials of one method, or of all."""

    label: str
    """The method; empty for all of them."""
    objective: str
    trials: int
    """How many the forest was grown on."""
    shares: Mapping[str, float]
    """Parameter → the share of the forest's variance that it explains alone, in [0, 1]; the largest first."""

    @property
    def chance(self) -> float:
        """The share of the parameter that decides nothing."""
        return self.shares[CHANCE]


def importances(snapshot: Snapshot) -> list[Importances]:
    """Return what can be told, objective by objective, all methods first; empty with too few trials.

    The values are those that the search was told: robust accuracy after the first attack, which every trial has, so
    that bounds and final values never mix.

    Source: Hutter, Hoos and Leyton-Brown 2014 (functional ANOVA), as optuna.importance computes it.
    Differs: not normalised to a sum of 1; what parameters explain only together is left out.
    """
    from sweeps.study import told_values

    objectives = snapshot.sweep.objectives
    first = {s.number: s for stages in snapshot.stages.values() for s in stages if _is_first(s.split, s.position)}
    told = {t.number: told_values(t, first.get(t.number), objectives) for t in snapshot.in_state(State.FINISHED)}
    trials = [t for t in snapshot.trials if len(told.get(t.number, ())) == len(objectives)]
    labels = list(dict.fromkeys(t.label for t in trials))
    groups = {label: [t for t in trials if t.label == label] for label in labels}
    tables = [("", trials, _common(trials, labels))] if len(labels) > 1 else []
    tables += [(label, members, _own(members)) for label, members in groups.items()]
    found = []
    for label, members, columns in tables:
        chosen = members[:: math.ceil(len(members) / MOST)]
        for place, objective in enumerate(objectives):
            values = [told[t.number][place] for t in chosen]
            if len(chosen) >= FEWEST and columns and len(set(values)) > 1:
                shares = _shares(chosen, columns, values)
                found.append(Importances(label, objective, len(chosen), shares))
    return sorted(found, key=lambda i: (objectives.index(i.objective), i.label != ""))


def what_is_missing(snapshot: Snapshot, found: Sequence[Importances]) -> list[str]:
    """Return the methods with searched parameters whose importances cannot be told: ``jasmin (9 finished)``."""
    told = {one.label for one in found}
    finished = snapshot.in_state(State.FINISHED)
    counts = {label: sum(t.label == label for t in finished) for label in snapshot.colours}
    searched = {t.label for t in snapshot.trials if set(t.params) - {METHOD}}
    return [f"{label} ({counts[label]} finished)" for label in counts if label in searched - told]


def _is_first(split: str, position: int) -> bool:
    return split == "validation" and position == 0


def _own(trials: Sequence[TrialRecord]) -> dict[str, str]:
    """Return the parameters that every one of these trials drew from one domain, with Optuna's JSON of it.

    A parameter that has one value only explains nothing, one whose domain was changed on the way is left out, because
    a forest has one range for it.
    """
    shared = set.intersection(*(set(t.distributions.items()) for t in trials)) if trials else set()
    order = trials[0].distributions if trials else {}
    kept = [name for name, domain in order.items() if (name, domain) in shared and name != METHOD]
    return {name: order[name] for name in kept if len({repr(t.params[name]) for t in trials}) > 1}


def _common(trials: Sequence[TrialRecord], labels: Sequence[str]) -> dict[str, str]:
    """Return the choice of the method, then what all trials share."""
    from optuna.distributions import CategoricalDistribution, distribution_to_json

    return {METHOD: distribution_to_json(CategoricalDistribution(list(labels))), **_own(trials)}


def _shares(trials: Sequence[TrialRecord], columns: Mapping[str, str], values: Sequence[float]) -> dict[str, float]:
    """Return the shares of the columns and of chance, the largest first. Args: columns: name → Optuna's JSON."""
    import optuna
    from optuna.distributions import FloatDistribution, json_to_distribution
    from optuna.importance import FanovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    domains = {name: json_to_distribution(text) for name, text in columns.items()} | {CHANCE: FloatDistribution(0, 1)}
    study = optuna.create_study(direction="maximize")
    for trial, value in zip(trials, values, strict=True):
        chance = derive_seed(0, CHANCE, trial.number) % 2**32 / 2**32
        drawn: dict[str, Any] = {METHOD: trial.label, **trial.params, CHANCE: chance}
        params = {name: drawn[name] for name in domains}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=domains, value=value))
    found = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0).evaluate(study)
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}
