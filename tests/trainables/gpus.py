"""GPUs that are none: one that says what it is told to say, and one that counts the bytes of all living tensors."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30


@dataclass
class SaidGpu:
    """A device of 80 GB whose figures are attributes."""

    kind: str = "card 80 GB"
    total: int = 80 * GIB
    allocated: int = 0
    held: int = 0
    held_peak: int = 0
    of_process: int | None = None
    of_device: int | None = None
    limits: list[float] = field(default_factory=list)
    """What the allocator was allowed, in order."""
    forgotten: int = 0

    def allocated_peak(self) -> int:
        return self.allocated

    def reserved(self) -> int:
        return self.held

    def reserved_peak(self) -> int:
        return self.held_peak

    def process(self) -> int | None:
        return self.of_process

    def used(self) -> int | None:
        return self.of_device

    def forget(self) -> None:
        self.forgotten += 1

    def limit(self, fraction: float) -> None:
        self.limits.append(fraction)


class CountingGpu(TorchDispatchMode):
    """Counts, while it is entered, the bytes of the tensors that live on the CPU, each storage once."""

    kind = "the CPU"
    total = 80 * GIB

    def __init__(self) -> None:
        super().__init__()
        self._now = self._peak = 0
        self._living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self._living:
            size = storage.nbytes()
            self._living.add(storage._cdata)
            self._now += size
            self._peak = max(self._peak, self._now)
            weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key: int, size: int) -> None:
        self._living.discard(key)
        self._now -= size

    def allocated_peak(self) -> int:
        return self._peak

    def reserved(self) -> int:
        return self._now

    def reserved_peak(self) -> int:
        return self._peak

    def process(self) -> int | None:
        return None

    def used(self) -> int | None:
        return None

    def forget(self) -> None:
        self._peak = self._now

    def limit(self, fraction: float) -> None:
        """Nothing: a CPU has no shares."""
