"""A small model that needs no training, an attack on it, and a process that judges them and may be killed meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.assessment import Answer, AttackQuestion, Subject, assess
from trainables.attack import Threat
from trainables.attacks.pgd import PgdConfig
from trainables.dataset import InMemory
from trainables.verdict_store import VerdictStore

BATCH_SIZE = 3
COUNT = 40
UNITS = 4
QUESTION = AttackQuestion("pgd", PgdConfig(steps=5, restarts=2), Threat(epsilon=0.02), seed=7)


class Counting(nn.Module):
    """A random perceptron that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.layers(images - 0.5)
        return logits


def subject() -> Subject:
    """Return the model with forty images that it classifies correctly, because their labels are its answers."""
    model = Counting().eval()
    pixels = torch.rand(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(pixels).argmax(1)
    model.passes = 0
    return Subject(model, InMemory(pixels, labels), "weights", "images", torch.device("cpu"))


def ask(folder: Path, of: Subject | None = None) -> Answer:
    """Judge all images, with what became of them, in that folder."""
    everything = torch.arange(COUNT)
    store = VerdictStore(folder)
    return assess(of or subject(), QUESTION, everything, batch_size=BATCH_SIZE, store=store, keep=True)


if __name__ == "__main__":
    ask(Path(sys.argv[1]))
