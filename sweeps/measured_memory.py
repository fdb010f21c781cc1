"""What was measured of the memory that trainings and attacks take, as the ledger keeps it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sweeps.memory_classes import MemoryClass
from sweeps.records import Event

MEASURED = "memory measured"
"""Kind of the driver's events that hold a measurement."""
Purpose = Literal["training", "attack"]


@dataclass(frozen=True)
class Need:
    """How much memory of one kind of device one training or attack of a class needs."""

    purpose: Purpose
    label: str
    parts: str
    images: int
    device: str
    """Kind of the device, with its memory."""
    needed: int | None
    """Bytes, the margin included; None: it does not fit on a whole device."""
    peak: Mapping[str, Any]
    """What was read."""

    def plain(self) -> dict[str, Any]:
        """Return it as the detail of an event."""
        return asdict(self)

    @property
    def measured(self) -> MemoryClass:
        """The class that was measured."""
        return MemoryClass(self.label, self.parts, self.images)


class Needs:
    """All measurements of a sweep; of one class and device the last one counts."""

    def __init__(self, found: Iterable[Need] = ()) -> None:
        self._found = {(need.purpose, need.measured, need.device): need for need in found}

    @classmethod
    def read(cls, events: Sequence[Event]) -> Needs:
        """Return what the ledger's events of kind `MEASURED` say; what another version has written in another form is
        measured again."""
        names = {field.name for field in fields(Need)}
        return cls(Need(**event.detail) for event in events if set(event.detail) == names)

    def __bool__(self) -> bool:
        return bool(self._found)

    def knows(self, purpose: Purpose, wanted: MemoryClass, device: str) -> bool:
        """Return whether this class was measured on this kind of device."""
        return (purpose, wanted, device) in self._found

    def of(self, purpose: Purpose, wanted: MemoryClass) -> dict[str, int | None]:
        """Return by kind of device what the class needs: as measured; else what the smallest class needs that covers
        it; else the most that any class needs. Empty where nothing was measured."""
        mine = [need for need in self._found.values() if need.purpose == purpose]
        found: dict[str, int | None] = {}
        for device in dict.fromkeys(need.device for need in mine):
            on_it = [need for need in mine if need.device == device]
            covering = [need for need in on_it if need.measured.covers(wanted)]
            if covering:
                found[device] = min(covering, key=lambda need: need.images).needed
            else:
                found[device] = _most(need.needed for need in on_it)
        return found

    def most(self, purpose: Purpose) -> float | None:
        """Return the most bytes that any class needs on any device, of those that fit; None without a measurement."""
        known = [need.needed for need in self._found.values() if need.purpose == purpose and need.needed is not None]
        return max(known, default=None)


def _most(needed: Iterable[int | None]) -> int | None:
    values = list(needed)
    return None if None in values else max(value for value in values if value is not None)
