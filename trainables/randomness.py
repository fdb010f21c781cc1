"""Random numbers: torch's, CUDA's, NumPy's and Python's global generators as one state of a trial's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from search_spaces.seeds import derive_seed


class Randomness:
    """The global generators as one trial sees them: swapped in while it works, swapped out again afterwards."""

    def __init__(self, seed: int) -> None:
        with _outer_state():
            torch.manual_seed(seed)  # CUDA's generators too
            np.random.seed(derive_seed(seed, "numpy") % 2**32)
            random.seed(derive_seed(seed, "python"))
            self._state = _capture()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the block draw from this state; whatever the process drew from before goes on untouched after it."""
        with _outer_state():
            _restore(self._state)
            try:
                yield
            finally:
                self._state = _capture()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and lists only, so that ``torch.load(weights_only=True)`` reads it."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)


@contextmanager
def _outer_state() -> Iterator[None]:
    outer = _capture()
    try:
        yield
    finally:
        _restore(outer)


def _capture() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(numbers), gauss_next],
    }


def _restore(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
