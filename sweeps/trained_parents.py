"""Parents that a sweep trains: each configuration once, whatever number of names it has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from search_spaces.config import digest_of
from search_spaces.seeds import derive_seed
from sweeps.parents import BETWEEN_NAMES
from trainables.config import TrialConfig


@dataclass(frozen=True)
class Parent:
    """A training that stands for one or several names."""

    number: int
    """Negative."""
    names: tuple[str, ...]
    config: TrialConfig
    seed: int

    @property
    def label(self) -> str:
        """What its row in the ledger is called: its names."""
        return BETWEEN_NAMES.join(self.names)

    @property
    def digest(self) -> str:
        """Names configuration and seed, and so the weights."""
        return digest_of([self.config.digest(), self.seed])


def number_parents(configs: Iterable[tuple[str, TrialConfig]], sweep_seed: int) -> tuple[Parent, ...]:
    """Return one parent for each different configuration, −1 first, whatever order they come in.

    Args: configs: (name, configuration).
    """
    names: dict[str, list[str]] = {}
    by_digest: dict[str, TrialConfig] = {}
    for name, config in sorted(configs, key=lambda pair: pair[0]):
        digest = config.digest()
        by_digest[digest] = config
        names.setdefault(digest, []).append(name)
    return tuple(
        Parent(-place, tuple(names[digest]), config, derive_seed(sweep_seed, "parent", digest) % 2**31)
        for place, (digest, config) in enumerate(by_digest.items(), start=1)
    )
