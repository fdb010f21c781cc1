"""Assessment: which images of a model are classified correctly, asked of the store first and judged where it is silent.

What is judged is stored unit by unit before anything else happens, so that a process that is killed loses the unit it
was at, and whoever asks again pays for no image twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from search_spaces.config import digest_of
from search_spaces.errors import ObjectiveMissing
from search_spaces.faults import reach
from trainables.appended_tokens import backbone_of
from trainables.attack import Surrogate, Threat, find_attack
from trainables.canonical_passes import judging
from trainables.config import AttackConfig
from trainables.dataset import Images
from trainables.registry import find
from trainables.verdict_store import Found, Judged, VerdictStore
from trainables.verdicts import confirmed, judge, judge_clean, units
from trainables.verified import inside

CLEAN_BATCHES = 64
"""Batches of a unit that is not attacked (our choice: each is examined, which costs a batch or so)."""
OnUnit = Callable[[int, int], None]
"""Called after each unit with how many images are known by now, and how many there are."""


@dataclass(frozen=True)
class Subject:
    """A model and the images that it is judged on."""

    model: nn.Module
    images: Images
    weights_digest: str
    """Of the model's weights."""
    images_digest: str
    """Of the split that `images` is."""
    device: torch.device
    """Where the model is."""

    def clean_digest(self) -> str:
        """Name what is judged without an attack: weights and images."""
        return clean_digest(self.weights_digest, self.images_digest)


def clean_digest(weights_digest: str, images_digest: str) -> str:
    """Name what is judged without an attack: weights and the images of a split."""
    return digest_of({"weights": weights_digest, "images": images_digest, "attack": None})


@dataclass(frozen=True)
class AttackQuestion:
    """An attack, complete."""

    attack: str
    """Key of the attack: a file in trainables/attacks, or a plugin."""
    config: AttackConfig
    threat: Threat
    seed: int
    surrogate: Surrogate | None = None
    """The model that the attack sees, to be transferred to the judged one; None is the judged one."""

    def digest(self, subject: Subject) -> str:
        """Name what is judged: weights, images, attack with its revision, configuration, threat, seed and surrogate.

        Batch sizes and the choice of images are no part of it: a verdict belongs to one image and holds for all. Where
        the surrogate is the model itself it asks the same as without one, and shares those verdicts.
        """
        asked = self if self.seen(subject.model) is not subject.model else replace(self, surrogate=None)
        return asked.digest_for(subject.weights_digest, subject.images_digest)

    def seen(self, model: nn.Module) -> nn.Module:
        """Return what the attack sees: the model, or its backbone, which is the model if nothing was added to it."""
        return model if self.surrogate is None else backbone_of(model)

    def digest_for(self, weights_digest: str, images_digest: str) -> str:
        """Name the same for weights and images of which only the names are known."""
        return digest_of(
            {
                "weights": weights_digest,
                "images": images_digest,
                "attack": self.attack,
                "revision": find("attacks", self.attack).revision,
                "config": self.config.plain(),
                "threat": self.threat.plain(),
                "seed": self.seed,
                **({} if self.surrogate is None else {"surrogate": self.surrogate}),
            }
        )


@dataclass(frozen=True)
class Answer:
    """Verdicts on the images that were asked for, as the store has them."""

    ids: Tensor
    """(n,) positions in the split."""
    correct: Tensor
    """(n,) bool."""
    facts: dict[str, float]
    """forwards, backwards, seconds, mismatches, flat, logit_scale_sum, whenever they were spent or found; zero where
    they do not apply."""
    warnings: tuple[str, ...]
    judged: int
    """Images judged now; the others were in the store."""
    new_forwards: int
    """Images that went through the model now."""
    new_backwards: int
    """Images whose gradient was computed now."""


@dataclass(frozen=True)
class Verification:
    """What a replay of the images that were kept shows."""

    kept: int
    """Adversarial images in the store."""
    inside: int
    """Those in the ε-ball and in [0, 1], by the rule of the evaluator."""
    misclassified: int
    """Those that fool the model in the evaluator's own pass."""
    failed: tuple[int, ...]
    """Positions of those that are not both, in order."""
    without_image: int
    """Images that fell and have no adversarial image in the store."""


def assess(
    subject: Subject,
    question: AttackQuestion,
    ids: Tensor,
    *,
    batch_size: int,
    store: VerdictStore,
    keep: bool = False,
    on_unit: OnUnit | None = None,
) -> Answer:
    """Return which of the images `ids` (n,), each named once and classified correctly, withstand the attack.

    Args:
        batch_size: images of one pass.
        keep: what became of the fallen images is stored too; who fell without that is attacked once more.

    Raises: AttackError as in `judge`; what was judged before is stored.
    """
    attack = find_attack(question.attack, question.config, question.threat)

    def judged(unit: Tensor) -> Judged:
        return judge(
            subject.model,
            attack,
            subject.images,
            unit,
            seed=question.seed,
            batch_size=batch_size,
            device=subject.device,
            keep=keep,
            surrogate=question.seen(subject.model),
        )

    shelf = _Shelf(store, question.digest(subject), ids, keep)
    return shelf.filled(judged, units(shelf.missing(), batch_size), on_unit)


def assess_clean(
    subject: Subject, ids: Tensor, *, batch_size: int, store: VerdictStore, on_unit: OnUnit | None = None
) -> Answer:
    """Return which of the images `ids` (n,), each named once, are classified correctly, and doubts about the model.

    Raises: AttackError as in `judge_clean`.
    """

    def judged(unit: Tensor) -> Judged:
        return judge_clean(subject.model, subject.images, unit, batch_size=batch_size, device=subject.device)

    shelf = _Shelf(store, subject.clean_digest(), ids, keep=False)
    return shelf.filled(judged, units(shelf.missing(), batch_size, CLEAN_BATCHES), on_unit)


def verify(subject: Subject, question: AttackQuestion, store: VerdictStore, *, batch_size: int) -> Verification:
    """Replay the adversarial images of a question that were kept: ball, pixel range, and the model's answer.

    Args: batch_size: images read at once. The passes have the shape in which the images fell.

    Raises: AttackError if the memory is too small.
    """
    digest = question.digest(subject)
    seen, held, fooled = [torch.zeros(0, dtype=torch.long)], 0, 0
    failed: list[int] = []
    with judging(subject.model, "the replay", batch_size, subject.device):
        for ids, kept in store.images(digest):
            for where in torch.arange(len(ids)).split(batch_size):
                attacked = kept[where].to(subject.device)
                origin = subject.images.take(ids[where]).to(attacked)
                labels = subject.images.labels[ids[where]].to(subject.device)
                in_ball = inside(attacked, origin, question.threat)
                misclassified = ~confirmed(subject.model, attacked, labels)
                held, fooled = held + int(in_ball.sum()), fooled + int(misclassified.sum())
                failed += ids[where][~(in_ball & misclassified).cpu()].tolist()
            seen.append(ids)
    everyone, correct = store.everything(digest)
    kept_ids = torch.cat(seen)
    without = int((~torch.isin(everyone[~correct], kept_ids)).sum())
    return Verification(len(kept_ids), held, fooled, tuple(sorted(failed)), without)


@dataclass(frozen=True)
class _Shelf:
    """Where the verdicts on some images are kept."""

    store: VerdictStore
    digest: str
    ids: Tensor
    keep: bool

    def missing(self) -> Tensor:
        return self.ids[~self.found().known]

    def found(self) -> Found:
        return self.store.find(self.digest, self.ids, with_images=self.keep)

    def filled(self, judged: Callable[[Tensor], Judged], work: Sequence[Tensor], on_unit: OnUnit | None) -> Answer:
        """Judge what is missing and store it unit by unit; what is answered is what the store then holds."""
        forwards = backwards = 0
        known = len(self.ids) - sum(map(len, work))
        for unit in work:
            verdict = judged(unit)
            reach("unit.write")
            self.store.add(self.digest, verdict)
            reach("unit.written")
            forwards += int(verdict.costs["forwards"])
            backwards += int(verdict.costs.get("backwards", 0))
            known += len(unit)
            if on_unit is not None:
                on_unit(known, len(self.ids))
        found = self.found()
        if not bool(found.known.all()):
            raise ObjectiveMissing(
                f"{self.store.folder}: {int((~found.known).sum())} of {len(self.ids)} verdicts on {self.digest} cannot "
                f"be read back; damaged: {', '.join(found.damaged) or 'none'}. Look at the disk and ask again: only "
                "they are judged again."
            )
        judged_now = sum(map(len, work))
        return Answer(self.ids, found.correct, found.facts, found.warnings, judged_now, forwards, backwards)
