"""The nearest matrix with orthonormal rows or columns: the polar factor A Bᵀ of C = A S Bᵀ (S: singular values)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

SMALLEST = 1e-7  # of the Frobenius norm: below it, the singular values of a float32 matrix are noise
LARGEST_SCALE = 1.69  # at √3 a singular value of 1 would go to 0 and lose its digits
STEPS = 21  # that many bring `SMALLEST` to 1 - 2e-11


def is_by_products(device: torch.device) -> bool:
    """Whether polar factors are made by products on a device: a decomposition would wait for it, in every step."""
    return device.type == "cuda"


def polar_factor(matrix: Tensor) -> Tensor:
    """The polar factor of a matrix `(m, n)`; where C leaves a direction open, any that makes it orthonormal.

    It is made on the CPU, in float64, where a small singular value still has a direction.
    """
    doubles = matrix.cpu().double()
    try:
        left, _, right = torch.linalg.svd(doubles, full_matrices=False)
    except RuntimeError:  # of which torch's error of linear algebra is one
        if bool(doubles.isfinite().all()):
            raise
        return torch.full_like(matrix, math.nan)  # for the loss to tell
    factor: Tensor = (left @ right).to(matrix)
    return factor


def polar_factors_by_products(matrices: Tensor) -> Tensor:
    """The polar factors of L matrices, `(L, m, n)`, by products alone, whatever their values.

    The Newton-Schulz iteration X ← X (3 - XᵀX) / 2 in float64, from X = C / ‖C‖, whose singular values are at most 1.
    Each step is scaled so that the smallest of interest grows as fast as can be (Chen and Chow, *A Stable Scaling of
    Newton-Schulz*, 2014). Nothing is looked at, so nothing waits for the device and a CUDA graph can hold it.

    Directions whose singular value is less than `SMALLEST` ‖C‖ are left shorter than 1, those of zero are zero:
    rows and columns of zeros stay so.
    """
    doubles = matrices.double()
    norms = torch.linalg.vector_norm(doubles, dim=(1, 2), keepdim=True)
    x: Tensor = doubles / norms.clamp_min(torch.finfo(torch.float64).tiny)
    for scale in _scales():
        x = torch.baddbmm(x, x, torch.bmm(x.mT, x), beta=1.5 * scale, alpha=-0.5 * scale**3)
    return x.to(matrices.dtype)


@cache
def _scales() -> tuple[float, ...]:
    """Of each step: with low the smallest singular value, the a for which a·low and a go to the same value."""
    scales, low = [], SMALLEST
    for _ in range(STEPS):
        scale = min(math.sqrt(3 / (1 + low + low * low)), LARGEST_SCALE)
        scales.append(scale)
        low = min(_step(scale * low), _step(scale))
    return tuple(scales)


def _step(value: float) -> float:
    """Where a singular value goes."""
    return value * (3 - value * value) / 2
