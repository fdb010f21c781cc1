"""Confirming: a front is frozen and trained again with new seeds, as a sweep of its own beside the one it came from.

Its document is the search's with a grid of the frozen configurations, so that all that a sweep can do (resume after
`kill -9`, retries, MLflow, report, export) goes for it. Every training is judged on test images by the whole plan. A
parent is trained anew as well, once for all its children, which share its luck as they do in every sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.config import digest_of
from search_spaces.errors import ConfigError, ConfigurationChanged, Problem, SweepError, SweepExists
from search_spaces.seeds import derive_seed
from sweeps.attack_section import AttackPlan
from sweeps.changes import Change, plan_change
from sweeps.config import SweepConfig, parse_sweep
from sweeps.confirm_cost import SUGGESTED_SEEDS, cost_in_words, default_name
from sweeps.creation import create_sweep
from sweeps.evaluate import choose_trials
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.reading import DEFAULT_METHODS
from sweeps.records import IMPORTED, SweepRecord, TrialRecord
from sweeps.sections import ConfirmsSection
from sweeps.snapshot import Snapshot
from sweeps.study import trial_seed
from sweeps.summary import sweep_state

MANY = 20
"""Configurations beyond which the user is reminded that some of them may do (our choice)."""
SEEDS_AHEAD = 1000
"""So many trials of the new sweep are checked to have seeds that the search never used."""


@dataclass(frozen=True)
class Prepared:
    """A confirmation that can be driven."""

    folder: SweepFolder
    change: Change | None
    """More seeds than it was made with."""


def prepare(
    folder: SweepFolder, *, seeds: int | None, wanted: str, name: str | None, say: Callable[[str], None]
) -> Prepared:
    """Make the sweep that confirms another one's front, or find it.

    Args:
        seeds: trainings of each configuration; None is what it has already, or SUGGESTED_SEEDS.
        wanted: front, or numbers as `choose_trials` reads them.
        name: of the confirmation; None is the sweep's with -confirm after it.
    Raises: SweepError if there is no exact front to freeze, or the sweep cannot be confirmed; ConfigurationChanged if
        another front was frozen under that name; SweepExists if the name is another sweep's.
    """
    ledger = Ledger.at(folder.ledger)
    try:
        snapshot, state = Snapshot.read(ledger), sweep_state(ledger)
    finally:
        ledger.close()
    _require_a_search(snapshot, folder)
    target = SweepFolder(folder.storage, name or default_name(folder.name))
    chosen = frozen_trials(snapshot, wanted, folder)
    if target.ledger.exists():
        return _go_on(snapshot, folder, target, chosen, seeds)
    if state == "running":
        raise SweepError(
            f"{folder.name} is running, and its front may still move. Wait for its end, or {folder.command('pause')}"
        )
    count = seeds or SUGGESTED_SEEDS
    if len(chosen) > MANY:
        say(f"{len(chosen)} configurations are many; --trials {chosen[0].number},… confirms some of them.")
    config = parse_sweep(confirmation_document(snapshot, chosen, count, target.name), f"confirm {folder.name}")
    say(f"{folder.name}: {cost_in_words(snapshot, chosen, count)}; all of them judged on test images.")
    if config.trained_parents:
        say(f"what they start from ({', '.join(p.label for p in config.trained_parents)}) is trained again too.")
    create_sweep(config, target, say)
    return Prepared(target, None)


def _require_a_search(snapshot: Snapshot, folder: SweepFolder) -> None:
    sweep = snapshot.sweep
    if (confirms := sweep.document.get("confirms")) is not None:
        raise SweepError(
            f"{folder.name} is a confirmation of {confirms['sweep']} itself; more seeds of it: "
            f"{SweepFolder(folder.storage, confirms['sweep']).command('confirm')} --as {folder.name} --seeds N"
        )
    if any(trial.label == IMPORTED for trial in snapshot.trials):
        raise SweepError(f"{folder.name} is a checkpoint that was brought; there is no training to repeat.")
    if sweep.document.get("attacks") is None:
        raise SweepError(
            f"{folder.name} has no section attacks: nothing judges it on test images, so that there is nothing to "
            "confirm. search.replicates trains the configurations of a grid again."
        )


def frozen_trials(snapshot: Snapshot, wanted: str, folder: SweepFolder) -> list[TrialRecord]:
    """Return the trials to confirm, by number, each configuration once.

    Raises: SweepError if there is no exact front, or only a bound is known of a trial; ConfigError as `choose_trials`.
    """
    if wanted == "front" and not (snapshot.front and snapshot.is_settled()):
        found = "attacks that are still to run may change it" if snapshot.front else "no trial has all its values yet"
        raise SweepError(f"{folder.name} has no exact front yet: {found}. {folder.resume_command}")
    numbers = choose_trials(wanted, snapshot.trials, snapshot.sweep.objectives)
    chosen: dict[tuple[str, str], TrialRecord] = {}
    for number in numbers:
        trial = snapshot.trials[number]
        chosen.setdefault((trial.label, digest_of(dict(trial.config))), trial)
    bounds = [t.number for t in chosen.values() if not t.exact]
    if bounds:
        message = f"of {', '.join(map(str, bounds))} only an upper bound is known: the front is ahead of them."
        hint = "Leave them out; with attacks.evaluate: all every trial is judged to the end."
        raise ConfigError([Problem((), message, hint, source="--trials")])
    return list(chosen.values())


def confirmation_document(snapshot: Snapshot, chosen: Sequence[TrialRecord], seeds: int, name: str) -> dict[str, Any]:
    """Return the document of the sweep that trains some trials' configurations again: a grid of nothing else, judged
    on validation and test images by the whole plan. Methods and parents that none of them has are left out."""
    sweep = snapshot.sweep
    document = dict(sweep.document)
    config = parse_sweep(document, sweep.name)
    assert config.attacks is not None
    document["name"] = name
    document |= _methods_of(document, config, {trial.label for trial in chosen})
    if not document.get("parents"):
        document.pop("parents", None)
    document["attacks"] = _judging_all(document["attacks"], config.attacks)
    used = {row.seed for row in (*snapshot.trials, *snapshot.parents)}
    document["search"] = {
        "sampler": "grid",
        "replicates": seeds,
        "seed": fresh_seed(sweep, config.search.seed, name, used),
        "known": [dict(trial.params) for trial in chosen],
    }
    document["confirms"] = ConfirmsSection(
        sweep=sweep.name,
        id=sweep.id,
        trials=tuple(t.number for t in chosen),
        clean_acc=_selected(chosen, "clean_acc"),
        robust_acc=_selected(chosen, "robust_acc"),
    ).plain()
    return document


def _selected(chosen: Sequence[TrialRecord], figure: str) -> tuple[float, ...]:
    """Return the figure of each trial; nothing if one lacks it."""
    found = [value for trial in chosen if (value := trial.value(figure)) is not None]
    return tuple(found) if len(found) == len(chosen) else ()


def _methods_of(document: Mapping[str, Any], config: SweepConfig, labels: Collection[str]) -> dict[str, Any]:
    """Return the sections methods and parents with what trials of these labels need."""
    written = document.get("methods") or DEFAULT_METHODS
    kept = [(value, entry) for value, entry in zip(written, config.methods, strict=True) if entry.label in labels]
    named = {entry.start_from for _, entry in kept}
    parents = {name: value for name, value in (document.get("parents") or {}).items() if name in named}
    return {"methods": [value for value, _ in kept], "parents": parents}


def _judging_all(section: Mapping[str, Any], plan: AttackPlan) -> dict[str, Any]:
    """Return the section attacks so that every trial is judged by all of it on both splits."""
    tested = {"images": plan.images} if plan.test is None else dict(section.get("test") or {})
    return {**section, "evaluate": "all", "test": {**tested, "evaluate": "all"}}


def fresh_seed(sweep: SweepRecord, seed: int, name: str, used: Collection[int]) -> int:
    """Return a search seed from which no trial gets a seed that the search has used.

    Args: seed: the search's own; name: of the confirmation, so that two of them differ.
    """
    for attempt in itertools.count():
        found = derive_seed(seed, "confirm", sweep.id, name, attempt) % 2**31
        if not any(trial_seed(found, number) in used for number in range(SEEDS_AHEAD)):
            return found
    raise AssertionError("unreachable")


def _go_on(
    snapshot: Snapshot, folder: SweepFolder, target: SweepFolder, chosen: Sequence[TrialRecord], seeds: int | None
) -> Prepared:
    """Return a confirmation that is there already, with more seeds if they are asked for."""
    ledger = Ledger.at(target.ledger)
    try:
        sweep = ledger.sweep()
    finally:
        ledger.close()
    config = parse_sweep(sweep.document, target.config.name)
    if config.confirms is None or config.confirms.id != snapshot.sweep.id:
        raise SweepExists(
            f"sweep {target.name!r} exists in {target.storage} and does not confirm {folder.name}. Another name: "
            f"{folder.command('confirm')} --as OTHER"
        )
    _require_the_same(config.confirms, [trial.number for trial in chosen], folder, target)
    had = config.search.replicates
    if seeds is not None and seeds < had:
        message = f"{target.name} has {had} seeds of each configuration and can only grow; found {seeds}."
        raise ConfigError([Problem((), message, "Leave --seeds out to go on.", source="--seeds")])
    if seeds is None or seeds == had:
        return Prepared(target, None)
    more = {**sweep.document, "search": {**sweep.document["search"], "replicates": seeds}}
    return Prepared(target, plan_change(sweep, parse_sweep(more), "--seeds"))


def _require_the_same(
    confirms: ConfirmsSection, numbers: Sequence[int], folder: SweepFolder, target: SweepFolder
) -> None:
    frozen, now = set(confirms.trials), set(numbers)
    if frozen == now:
        return
    changes = [("no longer among them", frozen - now), ("not frozen", now - frozen)]
    told = "; ".join(f"{what}: {', '.join(map(str, sorted(which)))}" for what, which in changes if which)
    frozen_text = ",".join(map(str, sorted(frozen)))
    raise ConfigurationChanged(
        f"{target.name} confirms the trials {frozen_text} of {folder.name}, and others are asked for now ({told}).\n"
        f"To go on with the frozen ones: {folder.command('confirm')} --trials {frozen_text}"
        f"{'' if target.name == default_name(folder.name) else f' --as {target.name}'}\n"
        f"To confirm these beside them: {folder.command('confirm')} --as {default_name(folder.name)}-2"
    )
