"""How alike heat maps are: cosine and rank correlation of each image, means over images with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from subdistill_hf.reporting.explained import FEWEST_OF_INTERVAL, Interval, Similarity

Array = npt.NDArray[np.float64]

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95


def cosines(first: Tensor, second: Tensor) -> Array:
    """The cosine of each pair of heat maps `(N, G, G)`, `(N,)`; 0 where one of them is 0 everywhere."""
    return _cosines(_flat(first), _flat(second))


def rank_correlations(first: Tensor, second: Tensor) -> Array:
    """Spearman's correlation of each pair of heat maps `(N, G, G)`, `(N,)`; 0 where one is the same everywhere."""
    centred = []
    for maps in (first, second):
        ranked = np.stack([_ranks(values) for values in _flat(maps)])
        centred.append(ranked - ranked.mean(axis=1, keepdims=True))
    return _cosines(*centred)


def similarity(first: Tensor, second: Tensor) -> Similarity:
    """How alike heat maps `(N, G, G)` are, over all images."""
    return Similarity(
        cosine=mean_with_interval(cosines(first, second)),
        rank_correlation=mean_with_interval(rank_correlations(first, second)),
    )


def mean_with_interval(values: Sequence[float] | Array, seed: int = 0) -> Interval:
    """The mean of independent values, with the percentile interval of a bootstrap of `RESAMPLES` samples.

    Of fewer than `FEWEST_OF_INTERVAL` values there is no interval: the samples are drawn from too few to vary as much
    as the mean does, and a single one is always itself.

    Args:
        values: `(N,)`, at least one.
        seed: of the bootstrap.
    """
    known = np.asarray(values, dtype=np.float64)
    if len(known) < FEWEST_OF_INTERVAL:
        return Interval(mean=float(known.mean()), count=len(known))
    random = np.random.default_rng(seed)
    means = known[random.integers(0, len(known), (RESAMPLES, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean=float(known.mean()), low=float(low), high=float(high), count=len(known))


def _cosines(a: Array, b: Array) -> Array:
    """The cosine of each pair of rows, `(N,)`; 0 where one of them is 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    found: Array = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return found


def _flat(maps: Tensor) -> Array:
    flat: Array = maps.reshape(len(maps), -1).double().cpu().numpy()
    return flat


def _ranks(values: Array) -> Array:
    """The rank of each value, from 0 on; equal values share theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum() - 1
    ranks: Array = (last - (counts - 1) / 2)[places]
    return ranks
