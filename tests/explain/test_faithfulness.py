"""Pixel flipping against a curve by hand."""

import itertools
import math

import pytest
import torch
from torch import nn

from helpers import processor
from subdistill_hf.explain.faithfulness import flipped_probabilities, flipping_curve, random_rankings, rankings_of
from subdistill_hf.explain.networks import GREY, ExplainedNetwork
from subdistill_hf.pipeline.evaluation import Classifier


class FirstPixels(nn.Module):
    """The logits are the red of the first two pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        return self.scale * pixel_values[:, 0, 0, :2]


def network():
    return ExplainedNetwork("student", Classifier(FirstPixels(), processor(2)))


IMAGE = torch.tensor([[[255, 0], [128, 128]]], dtype=torch.uint8).expand(3, 2, 2)
GREY_LOGIT = (GREY / 255 - 0.5) / 0.5


def probability(first, second):
    return math.exp(first) / (math.exp(first) + math.exp(second))


def test_the_curve_is_that_of_patches_turned_grey_one_after_the_other():
    order = torch.tensor([[0, 3, 1, 2]])
    shares, found = flipped_probabilities(network(), [IMAGE], [0], order, 4)
    expected = [
        probability(1.0, -1.0),
        probability(GREY_LOGIT, -1.0),
        probability(GREY_LOGIT, -1.0),
        probability(GREY_LOGIT, GREY_LOGIT),
        probability(GREY_LOGIT, GREY_LOGIT),
    ]
    assert shares == [0, 0.25, 0.5, 0.75, 1]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
    curve = flipping_curve(network(), "student", "random", [IMAGE] * 8, [0] * 8, order.repeat(8, 1), 1)
    area = sum((left + right) / 2 for left, right in itertools.pairwise(expected)) / 4
    assert curve.area == pytest.approx(area, abs=1e-6)
    assert curve.probability == pytest.approx(expected, abs=1e-6)
    assert curve.interval.low == pytest.approx(curve.interval.high) == pytest.approx(area, abs=1e-6)


def test_the_most_relevant_patch_goes_first():
    relevance = torch.tensor([[[0.5, -1.0], [2.0, 0.0]]])
    assert rankings_of(relevance).tolist() == [[2, 0, 3, 1]]
    coarse = rankings_of(torch.randn(2, 32, 32))
    assert sorted(coarse[0].tolist()) == list(range(64))


def test_random_rankings_follow_their_seed():
    first = random_rankings(3, 16, seed=1)
    assert torch.equal(first, random_rankings(3, 16, seed=1))
    assert not torch.equal(first, random_rankings(3, 16, seed=2))
    assert torch.equal(first.sort(dim=1).values, torch.arange(16).expand(3, -1))


def test_at_most_seventeen_points_are_measured():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    large = ExplainedNetwork("student", Classifier(FirstPixels(), processor(32)))
    shares, found = flipped_probabilities(large, [image], [1], random_rankings(1, 64), 4)
    assert len(shares) == found.shape[1] == 17
    assert (shares[0], shares[-1]) == (0, 1)
