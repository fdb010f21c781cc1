"""What images cost: those that fall to APGD-CE, and those that withstand it or Square; ours beside pyautoattack.

    python -m benchmarks.attacks

Forward equivalents: images that pass through the model, backward passes counted twice, the evaluator's own included.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import Tensor

from benchmarks.rows import Row, measured, not_measured
from trainables.attack import Attack, Model, Threat
from trainables.attacks.apgd_ce import ApgdCe, ApgdCeConfig
from trainables.attacks.square import Square, SquareConfig
from trainables.config import ModelConfig, TrialConfig
from trainables.dataset import InMemory
from trainables.training import Training, load_final
from trainables.verdicts import Verdict, judge, judge_clean
from trainables.vit import build_model

COMMAND = "python -m benchmarks.attacks"
EPSILONS = (0.03, 0.05, 0.1)
FEWER = 20.0
ROBUST_EPSILON = 0.05
QUERIES = 1000
"""Of Square, where images are measured that withstand; its queries cost the same from the first to the last."""
ROUNDS, BATCH = 5, 256
CPU = torch.device("cpu")


class PackageApgdCe(Attack[ApgdCeConfig]):
    """The peer: APGD-CE of pyautoattack, one restart."""

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        package = APGDAttack(
            model, n_iter=self.config.steps, norm="Linf", eps=self.threat.epsilon, seed=seed, device=images.device
        )
        attacked: Tensor = package.perturb(images, labels).detach()
        return attacked


class PackageSquare(Attack[SquareConfig]):
    """The peer: Square of pyautoattack."""

    def perturb(self, model: Model, images: Tensor, labels: Tensor, seed: int, image_ids: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            package = SquareAttack(
                model,
                norm="Linf",
                eps=self.threat.epsilon,
                n_queries=self.config.queries,
                seed=seed,
                device=images.device,
            )
            attacked: Tensor = package.perturb(images, labels).detach()
        return attacked


def rows() -> list[Row]:
    """Measure on vision transformers of three blocks of width 48, trained on the digits."""
    torch.set_num_threads(1)
    return [*_fallen_rows(), *_robust_rows(), *_gpu_rows()]


def _fallen_rows() -> list[Row]:
    """What an image costs that falls to APGD-CE, after ten epochs of plain training."""
    model, splits = _model({"plain": {}}, 10)
    images, everything = splits.test, torch.arange(len(splits.test.labels))
    clean = judge_clean(model, images, everything, batch_size=BATCH, device=CPU)
    correct = everything[clean.correct]
    counts, seconds = [], []
    for epsilon in EPSILONS:
        threat = Threat(epsilon=epsilon)
        ours, theirs = (kind(ApgdCeConfig(), threat) for kind in (ApgdCe, PackageApgdCe))
        fallen = correct[~_run(model, images, ours, correct).correct & ~_run(model, images, theirs, correct).correct]
        own_pass = round(clean.forward_images * len(fallen) / len(everything))
        mine, peer = _run(model, images, ours, fallen), _run(model, images, theirs, fallen)
        counts.append((_equivalents(peer) + own_pass) / (_equivalents(mine) + own_pass))
        seconds.append(peer.seconds / mine.seconds)
    unit = f"× fewer than pyautoattack, at ε = {', '.join(map(str, EPSILONS))}"
    return [
        measured("apgd_ce_fallen_forward_equivalents", counts, unit, COMMAND, at_least=FEWER),
        measured("apgd_ce_fallen_seconds", seconds, unit, COMMAND),
    ]


def _robust_rows() -> list[Row]:
    """Images per second that withstand, ours over pyautoattack's, after forty epochs of adversarial training."""
    model, splits = _model({"adversarial": {"epsilon": ROBUST_EPSILON, "steps": 3, "epsilon_warmup_epochs": 10}}, 40)
    images, threat = splits.test, Threat(epsilon=ROBUST_EPSILON)
    everything = torch.arange(len(images.labels))
    correct = everything[judge_clean(model, images, everything, batch_size=BATCH, device=CPU).correct]
    stands = correct[_run(model, images, ApgdCe(ApgdCeConfig(), threat), correct).correct]
    stands = stands[_run(model, images, Square(SquareConfig(queries=QUERIES), threat), stands).correct][:64]
    pairs: dict[str, tuple[Attack[Any], Attack[Any]]] = {
        "apgd_ce": (ApgdCe(ApgdCeConfig(), threat), PackageApgdCe(ApgdCeConfig(), threat)),
        "square": (Square(SquareConfig(queries=QUERIES), threat), PackageSquare(SquareConfig(queries=QUERIES), threat)),
    }
    found = []
    for name, (ours, theirs) in pairs.items():
        ratios = []
        for _ in range(ROUNDS):
            mine = _run(model, images, ours, stands).seconds
            ratios.append(_seconds_as_documented(model, theirs, images, stands) / mine)
        unit = f"× pyautoattack's, {len(stands)} images that withstand, ε = {ROBUST_EPSILON}"
        found.append(measured(f"{name}_robust_images_per_second", ratios, unit, COMMAND, at_least=1.0))
    return found


def _gpu_rows() -> list[Row]:
    """Images per second of APGD-CE in float32 on images that withstand, for models that need a GPU."""
    found = []
    for name in ("vit_small_patch16_224", "vit_base_patch16_224"):
        identity, unit = f"apgd_ce_{name}_images_per_second", "images/s that withstand 100 steps, 224×224, float32"
        if not torch.cuda.is_available():
            found.append(not_measured(identity, "no GPU", unit, COMMAND))
            continue
        found.append(measured(identity, [_images_per_second(name) for _ in range(3)], unit, COMMAND))
    return found


def _images_per_second(name: str) -> float:
    """Attack a fresh model at an ε so small that nobody falls, labels being its own answers."""
    device = torch.device("cuda")
    config = ModelConfig(name=name, img_size=224, patch_size=16)
    torch.manual_seed(0)
    model = build_model(config, num_classes=10, channels=3, mean=(0.5,), std=(0.5,)).to(device).eval()
    pixels = torch.rand(2 * BATCH, 3, 224, 224)
    ids = torch.arange(len(pixels))
    with torch.no_grad():
        labels = torch.cat([model(part.to(device)).argmax(1).cpu() for part in pixels.split(BATCH)])
    attack = ApgdCe(ApgdCeConfig(), Threat(epsilon=1e-9))
    images = InMemory(pixels, labels)
    verdict = judge(model, attack, images, ids, seed=0, batch_size=BATCH, device=device)
    return int(verdict.correct.sum()) / verdict.seconds


def _seconds_as_documented(model: Any, attack: Attack[Any], images: Any, ids: Tensor) -> float:
    """Time the package as its users run it: on a model in eval mode, whose parameters want gradients, no evaluator."""
    model.requires_grad_(True)
    pixels, labels = images.take(ids), images.labels[ids]
    started = time.monotonic()
    attack.perturb(model, pixels, labels, 0, ids)
    seconds = time.monotonic() - started
    model.requires_grad_(False)
    return seconds


def _run(model: Any, images: Any, attack: Attack[Any], ids: Tensor) -> Verdict:
    return judge(model, attack, images, ids, seed=0, batch_size=BATCH, device=CPU)


def _model(methods: dict[str, Any], epochs: int) -> tuple[Any, Any]:
    document = {
        "model": {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3},
        "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 3e-3},
        "methods": methods,
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
