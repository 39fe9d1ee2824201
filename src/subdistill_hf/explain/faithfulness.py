"""Whether heat maps show what a network looks at: pixel flipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from subdistill_hf.explain.agreement import mean_with_interval
from subdistill_hf.explain.explainers import batches, patches_of
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.reporting.explained import FlippingCurve

POINTS: Final = 17
"""At most so many shares of the patches are flipped."""


def random_rankings(images: int, patches: int, seed: int = 0) -> Tensor:
    """An order of the patches for each image, drawn at random, `(N, P)`."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([random.permutation(patches) for _ in range(images)]))


def rankings_of(relevance: Tensor) -> Tensor:
    """The patches of each input, the most relevant first, `(N, P)`.

    Args:
        relevance: of the pixels of the network's input, `(N, H, W)`.
    """
    patches = patches_of(*relevance.shape[1:]).flatten()
    sums = torch.zeros(len(relevance), int(patches.max()) + 1, dtype=relevance.dtype)
    sums.index_add_(1, patches, relevance.flatten(1))
    return sums.argsort(dim=1, descending=True, stable=True)


@torch.no_grad()
def flipped_probabilities(
    network: ExplainedNetwork, images: Sequence[Tensor], targets: Sequence[int], rankings: Tensor, batch_size: int
) -> tuple[list[float], Tensor]:
    """The probability of a class of each image while its patches turn grey, one after the other.

    Args:
        network: the network.
        images: N byte images.
        targets: N classes.
        rankings: the patches of each image in the order in which they go, `(N, P)`.
        batch_size: images of one pass.

    Returns:
        The shares of the patches that are grey, and the probabilities `(N, points)`.
    """
    count = rankings.shape[1]
    points = np.unique(np.linspace(0, count, min(POINTS, count + 1)).round().astype(int)).tolist()
    place_of = rankings.argsort(dim=1)  # of each patch, in the order
    found = []
    for places in batches(len(images), batch_size):
        some = [images[place] for place in places.tolist()]
        pixels, baseline = network.pixels(some), network.baseline(some)
        when = place_of[places][:, patches_of(*pixels.shape[2:]).flatten()].reshape(-1, 1, *pixels.shape[2:])
        wanted = torch.tensor([targets[place] for place in places.tolist()], device=network.device)
        columns = []
        for point in points:
            left = torch.where((when < point).to(network.device), baseline, pixels)
            probabilities = network.logits(left).double().softmax(dim=1)
            columns.append(probabilities.gather(1, wanted[:, None])[:, 0].cpu())
        found.append(torch.stack(columns, dim=1))
    return [point / count for point in points], torch.cat(found)


def flipping_curve(
    network: ExplainedNetwork,
    whose: str,
    ranking: str,
    images: Sequence[Tensor],
    targets: Sequence[int],
    rankings: Tensor,
    batch_size: int,
) -> FlippingCurve:
    """The curve of some rankings and the area under it, by the trapezoidal rule.

    Args:
        network: the network.
        whose: `teacher` or `student`.
        ranking: what the rankings are of.
        images: N byte images.
        targets: N classes.
        rankings: the patches of each image, `(N, P)`.
        batch_size: images of one pass.
    """
    shares, probabilities = flipped_probabilities(network, images, targets, rankings, batch_size)
    areas = torch.trapezoid(probabilities, torch.tensor(shares, dtype=torch.float64), dim=1)
    return FlippingCurve(
        network=whose,
        ranking=ranking,
        flipped=tuple(shares),
        probability=tuple(probabilities.mean(dim=0).tolist()),
        area=float(areas.mean()),
        interval=mean_with_interval(areas.numpy()),
    )
