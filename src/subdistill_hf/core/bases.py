"""What spans a subspace: each basis maps moments to a symmetric matrix, whose leading eigenvectors are taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from subdistill_hf.core.moments import Moments


def prca_matrix(moments: Moments) -> Tensor:
    """M = C_ac + C_acᵀ + 2√(τ_c/τ_a) C_a + 2√(τ_a/τ_c) C_c (METHOD step 1.5), positive semi-definite.

    Where the contexts vanish everywhere the ratio is undefined: C_a is used alone, with a warning.
    """
    if _contexts_vanish(moments):
        return moments.covariance
    ratio = torch.sqrt(moments.context_covariance.trace() / moments.covariance.trace())
    cross = moments.cross_covariance
    return cross + cross.T + 2 * ratio * moments.covariance + (2 / ratio) * moments.context_covariance


def prca_signed_matrix(moments: Moments) -> Tensor:
    """C_ac + C_acᵀ: plain PRCA; eigenvalues have both signs and are sorted from the largest down."""
    if _contexts_vanish(moments):
        return moments.covariance
    return moments.cross_covariance + moments.cross_covariance.T


def pca_matrix(moments: Moments) -> Tensor:
    """C_a: principal component analysis."""
    return moments.covariance


def gradient_pca_matrix(moments: Moments) -> Tensor:
    """C_c: the directions of the margin's gradient alone."""
    return moments.covariance if _contexts_vanish(moments) else moments.context_covariance


def _contexts_vanish(moments: Moments) -> bool:
    """Whether the contexts are zero at every position; warns, since a basis made of them is then C_a's."""
    activation_trace = float(moments.covariance.trace())
    context_trace = float(moments.context_covariance.trace())
    if context_trace > 0 and math.isfinite(activation_trace / context_trace):
        return False
    warnings.warn(
        "the contexts are zero at every position of this layer (a saturated margin, a zero head, or tokens "
        "that the logits do not depend on): the basis falls back to the covariance of the activations",
        stacklevel=3,
    )
    return True


def random_matrix(moments: Moments, seed: int = 0) -> Tensor:
    """A random symmetric matrix: its eigenvectors are a uniformly random basis, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(moments.width, moments.width, dtype=torch.float64, generator=generator)
    return (noise + noise.T).to(moments.mean.device)


def identity_matrix(moments: Moments) -> Tensor:
    """Diagonal with descending entries: the subspace is the layer's first K channels."""
    return torch.arange(moments.width, 0, -1, dtype=torch.float64, device=moments.mean.device).diag()


BASES: dict[str, Callable[[Moments], Tensor]] = {
    "prca": prca_matrix,
    "prca_signed": prca_signed_matrix,
    "pca": pca_matrix,
    "gradient_pca": gradient_pca_matrix,
    "random": random_matrix,
    "identity": identity_matrix,
}
