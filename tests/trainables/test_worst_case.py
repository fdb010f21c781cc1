"""The most misclassified candidate of each image."""

from __future__ import annotations

import torch

from trainables.worst_case import SURE_MARGIN, WorstCase, wrong_lead


def worst(count=4):
    return WorstCase(torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.long))


def logits(*leads):
    """Logits of two classes in which class 1 leads by so much."""
    return torch.tensor([[0.0, lead] for lead in leads])


def test_the_lead_is_that_of_the_best_wrong_class():
    table = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert wrong_lead(table, torch.tensor([1, 2])).tolist() == [-2, 2]


def test_only_a_sure_lead_takes_an_image_out():
    case = worst()
    stands = case.offer(torch.arange(4), torch.ones(4, 1, 2, 2), logits(-1, SURE_MARGIN / 2, 2 * SURE_MARGIN, 3))
    assert stands.tolist() == [True, True, False, False]
    assert case.standing.tolist() == [0, 1]


def test_each_image_keeps_its_worst_candidate_of_all_offers():
    case = worst(3)
    for value, leads in ((1.0, (-3, 2e-5, -1)), (2.0, (-1, 1e-5, -2)), (3.0, (-2, 3e-5, -4))):
        case.offer(torch.arange(3), torch.full((3, 1, 2, 2), value), logits(*leads))
    assert case.images[:, 0, 0, 0].tolist() == [2, 3, 1]
    assert case.origin.abs().sum() == 0


def test_an_offer_touches_the_named_images_alone():
    case = worst(3)
    case.offer(torch.tensor([2]), torch.ones(1, 1, 2, 2), logits(5))
    assert case.images[:, 0, 0, 0].tolist() == [0, 0, 1]
    assert case.standing.tolist() == [0, 1]


def test_logits_that_are_no_numbers_fool_nobody():
    case = worst(1)
    assert case.offer(torch.tensor([0]), torch.ones(1, 1, 2, 2), logits(float("nan"))).tolist() == [True]
    assert case.standing.tolist() == [0]
    assert case.images.abs().sum() == 0


def test_what_comes_without_logits_is_taken_and_nothing_is_claimed_about_it():
    case = worst(3)
    case.offer(torch.tensor([1]), torch.ones(1, 1, 2, 2), logits(-2))
    case.take(torch.tensor([1, 2]), torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64))
    assert case.images[:, 0, 0, 0].tolist() == [0, 0.5, 0.5]
    assert case.images.dtype == torch.float32
    assert case.lead.tolist() == [-torch.inf, -2, -torch.inf]
    assert case.standing.tolist() == [0, 1, 2]


def test_a_gradient_counts_as_flat_if_all_of_it_is_zero_and_stays_so():
    case = worst(4)
    gradient = torch.zeros(3, 1, 2, 2)
    gradient[1, 0, 1, 0] = 1e-30
    case.note_gradient(torch.tensor([0, 1, 3]), gradient)
    assert case.flat.tolist() == [True, False, False, True]
    case.note_gradient(torch.tensor([0, 1]), gradient[[1, 0]])
    assert case.flat.tolist() == [True, True, False, True]
