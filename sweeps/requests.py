"""Requests: what another terminal asks of a sweep, one atomic file each, until the driver has granted it.

Only the driver writes the ledger. It grants a request in one transaction that also notes its id, and removes the file
afterwards: after a kill in between the file is still there, the id is known, and nothing happens twice. Without a
driver a request waits for the next one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.durable_files import make_folder, write_whole
from search_spaces.faults import durable
from sweeps.parents import called
from sweeps.records import PriorTrial

if TYPE_CHECKING:
    from sweeps.ledger import Ledger

Kind = Literal["stop", "retry", "pause", "extend"]


@dataclass(frozen=True)
class Request:
    """One wish."""

    id: str
    kind: Kind
    at: float
    """When it was made; requests are granted in this order."""
    trials: tuple[int, ...] = ()
    """Of stop and retry."""
    requested: int | None = None
    """Of extend: the new total; None is so many trials more as there are known configurations."""
    known: tuple[Mapping[str, Any], ...] = ()
    """Of extend: Optuna's parameters of configurations to try next."""
    prior: tuple[PriorTrial, ...] = ()
    """Of extend: finished trials of another sweep."""

    @classmethod
    def make(cls, kind: Kind, **details: Any) -> Request:
        """Return a new request, made now."""
        return cls(str(uuid.uuid4()), kind, time.time(), **details)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Request:
        """Return the request that ``dataclasses.asdict`` made plain, lists for tuples."""
        prior = tuple(PriorTrial(**{**trial, "values": tuple(trial["values"])}) for trial in data["prior"])
        return cls(**{**data, "trials": tuple(data["trials"]), "known": tuple(data["known"]), "prior": prior})


@dataclass(frozen=True)
class Granted:
    """What a request came to."""

    changed: tuple[int, ...] = ()
    """Trials that were stopped or opened again; parents by their negative numbers."""
    left: Mapping[int, str] = field(default_factory=dict)
    """Trials for which there was nothing to do, with their state."""


def put(folder: Path, request: Request) -> Path:
    """Leave a request for the driver; returns its file."""
    make_folder(folder)
    place = folder / f"{request.id}.json"
    with durable("request.put") as write:
        write_whole(place, json.dumps(asdict(request)), write)
    return place


def waiting(folder: Path) -> list[Request]:
    """Return the requests that wait, oldest first; a file that is none is left out."""
    found = (_read(place) for place in folder.glob("*.json"))
    return sorted((request for request in found if request is not None), key=lambda r: (r.at, r.id))


def grant_waiting(ledger: Ledger, folder: Path, say: Callable[[str], None]) -> list[tuple[Request, Granted]]:
    """Grant what waits, oldest first; returns what was not granted before. Args: say: takes a line for each."""
    fresh = []
    for request in waiting(folder):
        granted = ledger.grant(request)
        if granted is not None:
            fresh.append((request, granted))
            parents = {row.number: called(row) for row in ledger.parents()}
            for line in describe(request, granted, parents):
                say(line)
        with durable("request.remove") as write:
            (folder / f"{request.id}.json").unlink(missing_ok=True)
            write.torn()
    return fresh


def unreadable(folder: Path) -> list[Path]:
    """Return the files that are no requests: nobody here wrote them, and nobody will grant them."""
    return [place for place in sorted(folder.glob("*.json")) if _read(place) is None and place.exists()]


def describe(request: Request, granted: Granted, parents: Mapping[int, str] | None = None) -> Iterator[str]:
    """Yield what a person wants to know about a request that has been granted.

    Args: parents: what the rows with negative numbers are called.
    """
    names = parents or {}
    past = {"stop": "is stopped", "retry": "is tried again"}
    for number in granted.changed:
        yield f"{names.get(number, f'trial {number}')} {past[request.kind]}"
    for number, state in granted.left.items():
        yield f"{names.get(number, f'trial {number}')} is {state}: there is nothing to {request.kind}"
    if request.known:
        yield f"{counted(len(request.known), 'known configuration')} added"
    if request.prior:
        yield f"{counted(len(request.prior), 'trial')} of {request.prior[0].sweep} taken as prior knowledge"


def counted(count: int, noun: str) -> str:
    """Write a number of things: counted(2, "trial")  # 2 trials"""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _read(place: Path) -> Request | None:
    try:
        return Request.from_plain(json.loads(place.read_text()))
    except FileNotFoundError:  # granted by the driver in this moment
        return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
