"""Cosines, rank correlations and bootstrap intervals against slow ones."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from subdistill_hf.explain.agreement import cosines, mean_with_interval, rank_correlations, similarity
from subdistill_hf.reporting.explained import FEWEST_OF_INTERVAL, Interval
from subdistill_hf.reporting.explained_words import interval_in_words, intervals_in_words


def draw(seed):
    return torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosines_and_rank_correlations_of_each_image():
    first, second = draw(0), draw(1)
    first[0] = first[0].round()  # ties
    for place in range(5):
        a, b = first[place].flatten().numpy(), second[place].flatten().numpy()
        expected = sum(x * y for x, y in zip(a, b, strict=True)) / (sum(a**2) ** 0.5 * sum(b**2) ** 0.5)
        assert cosines(first, second)[place] == pytest.approx(expected)
        assert rank_correlations(first, second)[place] == pytest.approx(spearmanr(a, b).statistic)


def test_a_heat_map_of_nothing_is_like_no_other():
    nothing = torch.zeros(5, 4, 4)
    assert cosines(draw(0), nothing).tolist() == rank_correlations(nothing, draw(0)).tolist() == [0] * 5


def test_the_same_heat_maps_are_wholly_alike():
    found = similarity(draw(0), 3 * draw(0))
    assert found.cosine.mean == pytest.approx(1)
    assert found.rank_correlation.mean == pytest.approx(1)
    assert similarity(draw(0), -draw(0)).cosine.mean == pytest.approx(-1)


def test_the_interval_is_that_of_resampled_means():
    values = np.random.default_rng(5).normal(2.0, 1.0, 200)
    found = mean_with_interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.count == 200
    error = values.std() / 200**0.5
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.03)
    assert mean_with_interval(values) == found


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 12])
def test_an_interval_holds_its_promise_or_there_is_none(count):
    """Of few images, the bootstrap's interval misses the true mean far more often than in 5 % of cases."""
    drawn = np.random.default_rng(0).normal(0.5, 0.2, (200, count))
    found = [mean_with_interval(values, seed) for seed, values in enumerate(drawn)]
    assert all(one.mean == pytest.approx(values.mean()) for one, values in zip(found, drawn, strict=True))
    assert {one.count for one in found} == {count}
    if count < FEWEST_OF_INTERVAL:
        assert {(one.low, one.high) for one in found} == {(None, None)}
    else:
        assert sum(one.low <= 0.5 <= one.high for one in found) >= 0.85 * len(found)


def test_one_image_has_no_interval():
    one = mean_with_interval([0.5])
    assert (one.low, one.mean, one.high, one.count) == (None, 0.5, None, 1)
    assert interval_in_words(one) == interval_in_words(Interval(mean=0.5, low=0.5, high=0.5, count=1)) == "0.50"
    assert interval_in_words(Interval(mean=0.5, low=0.5, high=0.5, count=7)) == "0.50"  # as earlier versions wrote it
    assert interval_in_words(mean_with_interval([0.5] * 8)) == "0.50 (0.50 to 0.50)"
    assert f"where {FEWEST_OF_INTERVAL} images or more" in intervals_in_words()
