"""SAFER's choice of layers compared: balls relative to a layer or the same for all, exact or first-order scores.

    python -m benchmarks.safer_scores docs/results/safer_scores.md

Digits, a small vision transformer. For each seed, PGD-AT trains a parent; from its weights SAFER goes on with each
score, beside SAFER on layers that are drawn at random and PGD-AT of all weights as controls; all else is the same.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from sweeps.overfitting import read_overfitting
from trainables.config import TrialConfig
from trainables.method import Batch
from trainables.methods import safer
from trainables.methods.adversarial import Adversarial, AdversarialConfig
from trainables.sharpness import linear_layers, sharpest, sharpness, train_only
from trainables.training import Training
from trainables.trial import load_final

CPU = torch.device("cpu")
SEEDS = (0, 1, 2)
EPSILON = 0.1
MODEL = {"img_size": 8, "patch_size": 4, "embed_dim": 36, "depth": 4, "num_heads": 3}
DATA = {"train_images": 400, "validation_images": 256, "test_images": 40}
ATTACK = {"epsilon": EPSILON, "steps": 3}
PARENT = {"epochs": 60, "batch_size": 100, "learning_rate": 5e-3, "warmup_epochs": 2}
CHILD = {"epochs": 12, "batch_size": 100, "optimizer": "sgd", "learning_rate": 0.03, "momentum": 0.9}
MONITOR = {"images": 256, "every": 2, "steps": 7, "norm": "linf", "epsilon": EPSILON}
FRACTION, RESELECT = 0.15, 4
SCORES: dict[str, dict[str, Any]] = {
    "relative, exact": {"relative": True, "score": "exact"},
    "relative, exact, radius 0.1": {"relative": True, "score": "exact", "score_radius": 0.1},
    "relative, first-order": {"relative": True, "score": "first_order"},
    "absolute, exact": {"relative": False, "score": "exact"},
    "absolute, first-order": {"relative": False, "score": "first_order"},
}
PARENT_ROW = "the parent itself"
HEAD = """\
# SAFER: which layers a score chooses, and what comes of it

Written by `python -m benchmarks.safer_scores docs/results/safer_scores.md`, with torch {torch} on the CPU.

A vision transformer of {depth} blocks of width {width} on {digits} digits. PGD-AT at ε = {epsilon} trains a parent for
{before} epochs; from its weights each child goes on for {epochs} epochs with SGD at {rate}: SAFER on a share of
{fraction} of the {layers} layers, chosen anew every {reselect} epochs, the classifier frozen, all else at its defaults.
Robust is the accuracy under PGD-{steps} on {images} validation images after the last epoch, gap that on training images
minus it, lost the best epoch minus the last. Mean ± standard deviation of {seeds} seeds, each with its own parent.
"""
HISTORY = """\
How the settings came about: in a first run of two seeds the parent had hardly learnt (PGD-AT of all weights brought it
to 0.38 clean), so that run was dropped. The parent's recipe was then changed twice (patch size, epochs, learning rate,
warm-up, ε), by looking at seed 0 of the parent alone, until it learnt and overfitted; the monitor was made cheaper and
the batch larger to save time. The row of radius 0.1 was added because exact and first-order scores chose the same
layers in the first run. This is the only run with these settings."""
CONTROLS = ("layers drawn at random", "PGD-AT, all weights")


class Outcome(NamedTuple):
    """A child after its last epoch, accuracies as fractions."""

    clean: float
    robust: float
    gap: float
    """Robust accuracy on training images minus that on validation images."""
    lost: float
    """Best robust accuracy of an epoch minus that of the last."""
    layers: tuple[str, ...]
    """Every layer that was ever chosen."""


def train(seed: int, methods: Mapping[str, Any], training: Mapping[str, Any], folder: Path, **more: Any) -> Training:
    config = TrialConfig.model_validate(
        {"model": MODEL | more, "data": DATA, "training": training, "methods": methods, "monitor": MONITOR}
    )
    done = Training(config, seed, folder, device=CPU)
    while not done.is_done:
        done.run_epoch()
    done.finish()
    return done


def outcome(child: Training) -> Outcome:
    last, overfitting = child.history[-1], read_overfitting(child.history)
    assert overfitting is not None
    chosen = [
        name.split(" (")[0] for note in child.notes if " epoch " in note for name in note.split(": ")[1].split(", ")
    ]
    return Outcome(last["val/clean_acc"], overfitting.last, last["val/robust_gap"], overfitting.lost, tuple(chosen))


def children(seed: int, scratch: Path) -> dict[str, Outcome]:
    """Train a parent and all its children."""
    parent = scratch / f"parent{seed}"
    done = train(seed, {"adversarial": ATTACK | {"epsilon_warmup_epochs": 20}}, PARENT, parent)
    weights = str(parent / "final" / "weights.safetensors")
    common = ATTACK | {"fraction": FRACTION, "reselect_epochs": RESELECT, "score_batches": 4}

    def child(name: str, methods: Mapping[str, Any]) -> Outcome:
        return outcome(train(seed, methods, CHILD, scratch / f"{seed}{name}", weights=weights))

    found = {name: child(name, {"safer": common | how}) for name, how in SCORES.items()}
    with mock.patch.object(safer, "sharpness", at_random(seed)):
        found[CONTROLS[0]] = child(CONTROLS[0], {"safer": common})
    found[CONTROLS[1]] = child(CONTROLS[1], {"adversarial": ATTACK})
    return {PARENT_ROW: outcome(done), **found}


def at_random(seed: int) -> Any:
    """Scores that say nothing about a layer."""
    random = np.random.default_rng(seed)
    return lambda model, layers, batches, **how: {name: float(random.random()) for name in layers}


def parent_scores(parent: Path) -> dict[str, dict[str, float]]:
    """Score the layers of a parent in all ways, on the same adversarial examples of 200 training images."""
    model, splits, _ = load_final(parent, device=CPU)
    index = torch.arange(200)
    clean = Batch(splits.train.take(index), splits.train.labels[index])
    torch.manual_seed(0)
    attacked = [Adversarial(AdversarialConfig.model_validate(ATTACK), 1).perturb(model, clean)]
    layers = linear_layers(model)
    train_only(model, [p for members in layers.values() for p in members])

    def score(config: safer.SaferConfig) -> dict[str, float]:
        exact, relative = config.score == "exact", config.relative
        return sharpness(model, layers, attacked, radius=config.score_radius, relative=relative, exact=exact)

    return {name: score(safer.SaferConfig.model_validate(how)) for name, how in SCORES.items()}


def agreement(scores: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return for each pair of scores Spearman's correlation, and the share of the chosen layers that they share."""
    ranks = {name: np.argsort(np.argsort(list(found.values()))) for name, found in scores.items()}
    chosen = {name: set(sharpest(found, FRACTION)) for name, found in scores.items()}
    return {
        (a, b): (float(np.corrcoef(ranks[a], ranks[b])[0, 1]), len(chosen[a] & chosen[b]) / len(chosen[a]))
        for a, b in combinations(scores, 2)
    }


def kinds(layers: Iterable[str]) -> str:
    """Count layers by what they are: ``12 fc2, 3 qkv``."""
    counted = Counter(name.rsplit(".", 1)[-1] if "blocks" in name else "patches" for name in layers)
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common()) or "–"


def page(
    found: list[dict[str, Outcome]], agreed: list[dict[tuple[str, str], tuple[float, float]]], seconds: float
) -> str:
    return "\n".join([*_head(), *_outcomes(found), *_pairs(agreed), *_foot(seconds)]) + "\n"


def _head() -> Iterator[str]:
    facts = {
        "torch": torch.__version__,
        "depth": MODEL["depth"],
        "width": MODEL["embed_dim"],
        "digits": DATA["train_images"],
        "epsilon": EPSILON,
        "before": PARENT["epochs"],
        "epochs": CHILD["epochs"],
        "rate": CHILD["learning_rate"],
        "fraction": FRACTION,
        "layers": 1 + 4 * MODEL["depth"],
        "reselect": RESELECT,
        "steps": MONITOR["steps"],
        "images": MONITOR["images"],
        "seeds": len(SEEDS),
    }
    yield HEAD.format(**facts)


def _outcomes(found: list[dict[str, Outcome]]) -> Iterator[str]:
    yield "| score | clean | robust | gap | lost | layers chosen, all seeds and selections |"
    yield "|---|---|---|---|---|---|"
    for name in (PARENT_ROW, *SCORES, *CONTROLS):
        rows = [outcomes[name] for outcomes in found]
        figures = [_spread([getattr(row, field) for row in rows]) for field in ("clean", "robust", "gap", "lost")]
        yield f"| {name} | {' | '.join(figures)} | {kinds(layer for row in rows for layer in row.layers)} |"
    yield ""


def _pairs(agreed: list[dict[tuple[str, str], tuple[float, float]]]) -> Iterator[str]:
    yield "How alike the scores rank the layers of a parent (Spearman), and the share of the chosen layers in common:\n"
    yield "| scores | rank correlation | chosen in common |"
    yield "|---|---|---|"
    for pair in agreed[0]:
        correlations, shared = zip(*(agreements[pair] for agreements in agreed), strict=True)
        yield f"| {pair[0]} / {pair[1]} | {_spread(correlations)} | {_spread(shared)} |"
    yield ""


def _foot(seconds: float) -> Iterator[str]:
    yield f"It took {seconds / 60:.1f} minutes, on a toy: it shows what the scores do, and not which of them is better"
    yield "on CIFAR."
    yield ""
    yield HISTORY


def _spread(values: Iterable[float]) -> str:
    some = list(values)
    return f"{statistics.mean(some):.3f} ± {statistics.stdev(some):.3f}"


def main(target: Path) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = [children(seed, scratch) for seed in SEEDS]
        agreed = [agreement(parent_scores(scratch / f"parent{seed}")) for seed in SEEDS]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(found, agreed, time.perf_counter() - started))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
