"""Models that attacks are tried on, images that they classify correctly, and a count of passes."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from trainables.apgd import random_start
from trainables.ascent import ascend, loss_gradient
from trainables.attack import Threat
from trainables.dataset import InMemory


class Linear(nn.Module):
    """A linear model of 8×8 pixels with any number of classes."""

    def __init__(self, classes, dropout=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 64, generator=torch.Generator().manual_seed(0)))
        self.dropout = dropout

    def forward(self, x):
        return F.dropout(x.flatten(1) - 0.5, self.dropout) @ self.weight.T


def labelled(model, count=20):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return InMemory(images, model(images).argmax(1))


def passes_of(model, run):
    """Count the images of all forward passes in a run, and those of backward passes twice."""
    counted = []

    def on_forward(_module, _inputs, output):
        counted.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: counted.append(2 * len(gradient)))

    handle = model.register_forward_hook(on_forward)
    run()
    handle.remove()
    return sum(counted)


def correct(trained, model, count):
    """The images among the first `count` of the test split that the model classifies correctly, with labels."""
    images, labels = trained.splits.test.take(torch.arange(count)), trained.splits.test.labels[:count]
    with torch.no_grad():
        kept = model(images).argmax(1) == labels
    return images[kept], labels[kept]


def hardened(trained, epsilon, epochs=5):
    """The small model after a few seconds of training on images of one gradient step."""
    model, train = deepcopy(trained.model).train().requires_grad_(True), trained.splits.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for ids in torch.randperm(len(train.labels), generator=generator).split(64):
            images, labels = train.take(ids), train.labels[ids]
            start = random_start(images, ids.tolist(), Threat(epsilon=epsilon), 0, "test", 0)
            _, gradient = loss_gradient(model, start, labels)
            hard = ascend(start, gradient, images, norm="linf", epsilon=epsilon, step_size=1.25 * epsilon)
            optimizer.zero_grad()
            F.cross_entropy(model(hard), labels).backward()
            optimizer.step()
    return model.eval()
