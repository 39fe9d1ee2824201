"""Activations and contexts that several test modules draw, and what they compare bases by."""

import torch

from subdistill_hf.core.moments import Moments


def moments_in_batches(activation, context, split):
    moments = Moments.empty(activation.shape[1])
    for a, c in zip(activation.split(split), context.split(split), strict=True):
        moments.update(a, c)
    return moments


def projector(basis):
    return basis @ basis.T


def draw(images=12, width=6, positions=7, seed=0):
    """Correlated activations with a mean, and contexts that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, dtype=torch.float64, generator=generator)
    noise = torch.randn(images, width, positions, dtype=torch.float64, generator=generator)
    activation = mixing @ noise + 3 * torch.randn(width, 1, dtype=torch.float64, generator=generator)
    other = torch.randn(activation.shape, dtype=torch.float64, generator=generator)
    return activation, 0.1 * (other - activation.flip(1))
