"""A trial's random numbers are its own."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from trainables.randomness import Randomness


def draw():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)


def test_the_same_seed_draws_the_same_numbers_and_goes_on_where_it_stopped():
    one, other = Randomness(5), Randomness(5)
    with one.active():
        first, second = draw(), draw()
    with other.active():
        assert draw() == first
    draw()
    with other.active():
        assert draw() == second
    with Randomness(6).active():
        assert draw() != first


def test_numbers_outside_are_neither_used_nor_moved():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with Randomness(1).active():
        draw()
    assert draw() == expected


def test_the_state_survives_a_file_without_code():
    source = Randomness(3)
    with source.active():
        draw()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    with source.active():
        expected = draw()
    buffer.seek(0)
    restored = Randomness(99)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    with restored.active():
        assert draw() == expected
