"""What an image costs that falls to APGD-CE: ours, which lets it go, beside pyautoattack, which goes on to the end.

    python -m benchmarks.attacks

Forward equivalents: images that pass through the model, backward passes counted twice, the evaluator's own included.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor

from benchmarks.rows import Row, measured
from trainables.attack import Attack, Model, Threat
from trainables.attacks.apgd_ce import ApgdCe, ApgdCeConfig
from trainables.config import TrialConfig
from trainables.training import Training, load_final
from trainables.verdicts import Verdict, judge

COMMAND = "python -m benchmarks.attacks"
EPSILONS = (0.03, 0.05, 0.1)
FEWER = 20.0


class PackageApgdCe(Attack[ApgdCeConfig]):
    """The peer: APGD-CE of pyautoattack, one restart."""

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        package = APGDAttack(
            model, n_iter=self.config.steps, norm="Linf", eps=self.threat.epsilon, seed=seed, device=images.device
        )
        attacked: Tensor = package.perturb(images, labels).detach()
        return attacked


def rows() -> list[Row]:
    """Measure on a vision transformer of three blocks of width 48, trained on the digits for ten epochs."""
    torch.set_num_threads(1)
    model, splits = _model()
    images, everything = splits.test, torch.arange(len(splits.test.labels))

    def run(attack: Attack[Any], ids: Tensor) -> Verdict:
        return judge(model, attack, images, ids, seed=0, batch_size=256, device=torch.device("cpu"))

    counts, seconds = [], []
    for epsilon in EPSILONS:
        threat = Threat(epsilon=epsilon)
        ours, theirs = (kind(ApgdCeConfig(), threat) for kind in (ApgdCe, PackageApgdCe))
        first, second = run(ours, everything), run(theirs, everything)
        fallen = everything[first.clean & ~first.correct & ~second.correct]
        mine, peer = run(ours, fallen), run(theirs, fallen)
        counts.append(_equivalents(peer) / _equivalents(mine))
        seconds.append(peer.seconds / mine.seconds)
    unit = f"× fewer than pyautoattack, at ε = {', '.join(map(str, EPSILONS))}"
    return [
        measured("apgd_ce_fallen_forward_equivalents", counts, unit, COMMAND, at_least=FEWER),
        measured("apgd_ce_fallen_seconds", seconds, unit, COMMAND),
    ]


def _model() -> tuple[Any, Any]:
    document = {
        "model": {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3},
        "training": {"epochs": 10, "batch_size": 64, "learning_rate": 3e-3},
    }
    with tempfile.TemporaryDirectory() as folder:
        training = Training(TrialConfig.model_validate(document), 0, Path(folder), device=torch.device("cpu"))
        while not training.is_done:
            training.run_epoch()
        training.finish()
        model, splits, _ = load_final(Path(folder), device=torch.device("cpu"))
    return model, splits


def _equivalents(verdict: Verdict) -> int:
    return verdict.forward_images + 2 * verdict.backward_images


if __name__ == "__main__":
    sys.stdout.write(json.dumps(rows(), indent=2, ensure_ascii=False) + "\n")
