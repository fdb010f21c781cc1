"""What the tests of the methods share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def batch(trained):
    """Sixteen training digits of the model that the session has trained."""
    from trainables.method import Batch

    index = torch.arange(16)
    return Batch(trained.splits.train.take(index), trained.splits.train.labels[index])


@pytest.fixture
def _same_numbers():
    """Draw the same global random numbers in every test, and leave them as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
