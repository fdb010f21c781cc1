"""What another terminal may ask of a sweep, checked against its ledger before it is left for the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search_spaces.errors import ConfigError, Problem
from sweeps.config import SweepConfig, parse_sweep
from sweeps.ledger import Ledger
from sweeps.published import PUBLISHED
from sweeps.records import IMPORTED, OPEN, PriorTrial, State
from sweeps.requests import Request, counted
from sweeps.yaml_source import read_value


def stop_request(ledger: Ledger, numbers: Sequence[int]) -> Request:
    """Ask for the end of open trials; ConfigError if one is not open."""
    states = {trial.number: trial.state for trial in ledger.trials(bare=True)}
    problems = [
        Problem((), f"trial {n} is {_state(states, n)}; only an open trial can be stopped.", source="stop")
        for n in numbers
        if states.get(n) not in OPEN
    ]
    if problems:
        raise ConfigError(problems)
    return Request.make("stop", trials=tuple(dict.fromkeys(numbers)))


def retry_request(ledger: Ledger, numbers: Sequence[int], *, failed: bool) -> Request:
    """Ask for another attempt of failed trials and of failed attack stages.

    Args:   failed: take all that have failed.
    Raises: ConfigError if there are none, or a number is not among them.
    """
    states = {trial.number: trial.state for trial in ledger.trials(bare=True)}
    there = failed_numbers(ledger)
    if bool(numbers) == failed:
        message = "name the trials, or give --failed for all that have failed; not both."
        raise ConfigError([Problem((), message, f"{counted(len(there), 'trial')} failed.", "retry")])
    problems = [
        Problem((), f"trial {n} is {_state(states, n)}, and none of its attacks has failed.", source="retry")
        for n in numbers
        if n not in there
    ]
    if failed and not there:
        problems.append(
            Problem((), "no trial and no attack has failed; there is nothing to try again.", source="retry")
        )
    if problems:
        raise ConfigError(problems)
    return Request.make("retry", trials=tuple(dict.fromkeys(numbers or there)))


def failed_numbers(ledger: Ledger) -> list[int]:
    """Return the parents and trials that have failed, and the finished trials of which an attack stage has."""
    trials = [*ledger.parents(), *ledger.trials([State.FAILED, State.FINISHED], bare=True)]
    stages = ledger.failed_stages()
    return [t.number for t in trials if t.state is State.FAILED or t.number in stages]


def extend_request(
    ledger: Ledger,
    *,
    total: int | None,
    known: Path | None,
    prior: str | None,
    storage: Path,
    say: Callable[[str], None],
) -> Request:
    """Ask for more: a larger total, configurations to try next, or what another sweep has learned.

    Args:
        known: YAML file with a list as in search.known; without a total they come in addition.
        prior: name of another sweep in the storage folder.
        say: takes a line about it.
    Raises: ConfigError with every problem; ConfigurationChanged if the other sweep asked another question.
    """
    sweep = ledger.sweep()
    config = parse_sweep(sweep.document)
    trials = ledger.trials(bare=True)
    if total is None and known is None and prior is None:
        raise ConfigError([Problem((), "say what is to come: --trials, --known or --prior.", source="extend")])
    if any(trial.label == IMPORTED for trial in trials):
        raise ConfigError(
            [Problem((), "the sweep is a checkpoint that was brought; it trains nothing.", source="extend")]
        )
    params = () if known is None else read_known(known, config)
    problems = []
    if total is not None and total < sweep.requested:
        found = f"{total} is fewer than the {sweep.requested} trials that the sweep has; a total can only grow."
        problems.append(Problem((), found, source="--trials"))
    wanted = len(trials) + ledger.waiting_known() + len(params)
    if total is not None and params and total < wanted:
        found = f"{total} has no room for the known configurations; {wanted} has."
        problems.append(Problem((), found, source="--trials"))
    if problems:
        raise ConfigError(problems)
    learned: tuple[PriorTrial, ...] = ()
    if prior is not None:
        from sweeps.prior import learn

        learned = learn(storage, prior, config, sweep.planned_stages, sweep.data_digest, say)
    return Request.make("extend", requested=total, known=params, prior=learned)


def read_known(file: Path, config: SweepConfig) -> tuple[Mapping[str, Any], ...]:
    """Read known configurations for a sweep under way, as Optuna's parameters; ConfigError with every problem."""
    value, source = read_value(file)
    if config.grid is not None:
        raise ConfigError(
            [Problem((), "a grid has its trials from the beginning; launch another one.", source=str(file))]
        )
    if not isinstance(value, list) or not value or not all(isinstance(entry, Mapping) for entry in value):
        message = "expected a list of configurations, such as - {method: jasmin, jasmin.k: 4}."
        raise ConfigError([Problem((), message, source=str(file))])
    figures = [place for place, entry in enumerate(value) if PUBLISHED in entry]
    if figures:
        message = "the figures of a paper stand in the sweep's own file; here nothing would show them."
        raise ConfigError([source.locate(Problem((place, PUBLISHED), message, "Leave them out.")) for place in figures])
    first = len(config.search.known)
    search = {**config.search.plain(), "known": [*config.search.known, *value]}
    try:  # as if they had been in the file from the beginning
        whole = parse_sweep({**config.document, "search": search})
    except ConfigError as error:
        placed = (_inside(problem, first) for problem in error.problems)
        raise ConfigError([source.locate(problem) for problem in placed]) from error
    return tuple(whole.known_params(first + position) or {} for position in range(len(value)))


def _inside(problem: Problem, first: int) -> Problem:
    """Return a problem of an added configuration with its place in the file instead of that in search.known."""
    match problem.path:
        case ("search", "known", int(position), *rest):
            return replace(problem, path=(position - first, *rest), source="", line=None)
    return problem


def _state(states: Mapping[int, State], number: int) -> str:
    return str(states.get(number, "unknown: there is no such trial"))
