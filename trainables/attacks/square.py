"""Square: random search over square changes, without gradients (Andriushchenko et al. 2020, arXiv:1912.00049).

AutoAttack's last stage: the margin loss, p = 0.8, one restart, rules as in the authors' code.

Differs: every image draws from a generator of its own, seeded by (seed, image), so that order and batching do not
matter; in the authors' code a whole batch shares one stream.
Differs: an image that is misclassified by less than SURE_MARGIN goes on, and is handed back as its most misclassified
candidate, for the evaluator to decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from search_spaces.seeds import derive_seed
from trainables.ascent import frozen
from trainables.attack import Attack, Model, Threat
from trainables.config import AttackConfig
from trainables.square_moves import bumps, square, square_share, square_side, stripes, tile_corners, tiles
from trainables.worst_case import WorstCase, wrong_lead

BLOCK = 256
"""Queries whose random numbers are drawn at once."""


class SquareConfig(AttackConfig):
    """Length of the search."""

    queries: Annotated[int, Field(ge=1)] = 5000
    """Candidates per image after the first."""
    rescaled: bool = False
    """Stretch or shrink the schedule of square sizes, published for 10,000 queries, to `queries`, as the paper does;
    AutoAttack does not."""


class Square(Attack[SquareConfig]):
    """Random numbers derive from (seed, image); see trainables/square_moves.py for what is tried."""

    Config = SquareConfig

    @classmethod
    def passes(cls, config: SquareConfig, num_classes: int) -> tuple[int, int]:
        return 1, config.queries + 1

    def run(self, model: Model, worst: WorstCase, seed: int, image_ids: Tensor) -> None:
        rows = worst.standing
        if not len(rows):
            return
        draws = Draws(image_ids[rows.cpu()].tolist(), seed, worst.origin)
        with frozen(model), torch.no_grad():
            search(model, worst, rows, draws, threat=self.threat, config=self.config)


class Draws:
    """Numbers that are uniform in [0, 1), for each image from a generator of its own."""

    def __init__(self, ids: Iterable[int], seed: int, like: Tensor) -> None:
        """Args: like: device and dtype; the numbers are drawn in float32, so that they are the same in any dtype."""
        keys = (derive_seed(seed, "square", image_id) for image_id in ids)
        self.generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self.like = like

    def take(self, *shape: int) -> Tensor:
        """Return the next numbers of each image that is left: (n, *shape)."""
        numbers = np.empty((len(self.generators), *shape), dtype=np.float32)
        for generator, own in zip(self.generators, numbers, strict=True):
            generator.random(out=own, dtype=np.float32)
        return torch.from_numpy(numbers).to(self.like)

    def keep(self, stands: Tensor) -> None:
        """Drop the images that do not stand, (n,) bool."""
        self.generators = [self.generators[index] for index in stands.nonzero().squeeze(1).tolist()]


@dataclass
class Searchers:
    """The images still worked on; every tensor begins with them, (n, …)."""

    rows: Tensor
    """Where each image stands in the whole batch."""
    origin: Tensor
    labels: Tensor
    images: Tensor
    """The best candidates so far."""
    lead: Tensor
    """By how much a wrong class is ahead there."""
    numbers: Tensor
    """Random numbers of a block of queries, (n, BLOCK, …); not read before the first."""

    def improve(self, worst: WorstCase, candidates: Tensor, logits: Tensor) -> Tensor:
        """Move the images to those candidates that are worse, offer these to `worst`, and say who stands (n,) bool."""
        lead = wrong_lead(logits, self.labels).to(self.lead)
        stands = torch.ones_like(self.rows, dtype=torch.bool)
        better = (lead > self.lead).nonzero().squeeze(1)
        if len(better):  # most queries help nobody
            moved = candidates[better]
            self.images[better], self.lead[better] = moved, lead[better]
            stands[better] = worst.offer(self.rows[better], moved, logits[better])
        return stands

    def keep(self, stands: Tensor) -> None:
        """Drop the images that do not stand, (n,) bool."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stands])


def search(model: Model, worst: WorstCase, rows: Tensor, draws: Draws, *, threat: Threat, config: SquareConfig) -> None:
    """Try random squares on the images `rows` (n,), n > 0, keep what makes them worse, and offer it to `worst`.

    An image costs one pass per candidate until it has surely fallen, `config.queries` + 1 if it never does.
    """
    origin, labels = worst.origin[rows], worst.labels[rows]
    _, channels, _, width = shape = origin.shape
    if threat.norm == "linf":
        start, move, count = stripes(origin, draws.take(channels, width), threat.epsilon), square, 2 + channels
    else:
        first = draws.take(len(tile_corners(shape)), 1 + channels)
        start, move, count = tiles(origin, first, threat.epsilon), bumps, 5 + channels
    lead = torch.full_like(labels, -torch.inf, dtype=origin.dtype)
    searchers = Searchers(rows, origin, labels, start, lead, numbers=start)
    stands = searchers.improve(worst, start, model(start))
    for query in range(config.queries):
        if not bool(stands.all()):
            searchers.keep(stands)
            draws.keep(stands)
            if not len(searchers.rows):
                return
        if query % BLOCK == 0:
            searchers.numbers = draws.take(min(BLOCK, config.queries - query), count)
        share = square_share(query, config.queries if config.rescaled else None)
        candidates = move(
            searchers.images,
            searchers.origin,
            searchers.numbers[:, query % BLOCK],
            side=square_side(share, shape, threat.norm),
            epsilon=threat.epsilon,
        )
        stands = searchers.improve(worst, candidates, model(candidates))
