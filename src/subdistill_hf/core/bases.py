"""The matrices of the bases, made of moments, and their leading eigenvectors, which span the subspace."""

from __future__ import annotations

import math
import warnings
from pkgutil import resolve_name

import torch
from torch import Tensor

from subdistill_hf.config.bases import BASES
from subdistill_hf.core.moments import Moments

# When the leading eigenvectors alone are computed, and how; see `leading_eigenvectors`.
LARGE = 2048
SHARE = 16
TOLERANCE = 1e-12
DEPTH = 10
RESTARTS = 12


def prca_matrix(moments: Moments) -> Tensor:
    """M = C_ac + C_acᵀ + 2√(τ_c/τ_a) C_a + 2√(τ_a/τ_c) C_c (docs/method.md, "Bases").

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


def matrix_of(kind: str, moments: Moments, seed: int = 0) -> Tensor:
    """The symmetric matrix `(d, d)` of a basis; the seed counts for a seeded one alone.

    Args:
        kind: name of the basis (a key of `BASES`).
        moments: of the layer.
        seed: of the directions.
    """
    basis = BASES[kind]
    matrix = resolve_name(basis.matrix) if isinstance(basis.matrix, str) else basis.matrix
    found: Tensor = matrix(moments, seed) if basis.seeded else matrix(moments)
    return found


def filled_by_variance(matrix: Tensor, covariance: Tensor, values: Tensor, vectors: Tensor, rounding: float) -> Tensor:
    """Replace directions that a basis leaves open by those of most variance among all that it leaves open.

    At a network's last stage the contexts are differences of the head's rows: of C classes they span C - 1 directions,
    and eigenvectors beyond are rounding.

    Args:
        matrix: of the basis, symmetric `(d, d)`.
        covariance: C_a `(d, d)`.
        values: leading eigenvalues of the matrix `(K,)`.
        vectors: their eigenvectors `(d, K)`.
        rounding: a direction is open where its eigenvalue is at most this share of the largest.

    Returns:
        Orthonormal columns `(d, K)`.
    """
    least = rounding * float(values.abs().max())
    open_places = (values.abs() <= least).nonzero()[:, 0]
    if not rounding or not len(open_places):
        return vectors
    every_value, every_vector = torch.linalg.eigh(matrix)
    left_open = every_vector[:, every_value.abs() <= least]
    open_places = open_places[: left_open.shape[1]]
    _, most_varying = leading_eigenvectors(left_open.T @ covariance @ left_open, len(open_places))
    filled = vectors.clone()
    filled[:, open_places] = left_open @ most_varying
    return filled


def leading_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, in descending order, and their eigenvectors.

    A matrix of at least `LARGE` rows of which at most one in `SHARE` vectors is needed is left to a block Krylov
    method, whose residuals are at most `TOLERANCE` of the largest eigenvalue; where it does not get there, and for all
    other matrices, everything is decomposed.

    Args:
        matrix: symmetric `(d, d)`, float64.
        count: K, at most d.

    Returns:
        Eigenvalues `(K,)` and orthonormal columns `(d, K)`.
    """
    if len(matrix) >= LARGE and SHARE * count <= len(matrix):
        found = _block_krylov(matrix, count)
        if found is not None:
            return found
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


def _block_krylov(matrix: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """Rayleigh-Ritz on X, A X ... A^DEPTH X, restarted from the best vectors until they are eigenvectors.

    More vectors than needed are carried along: what decides is how far the last one needed is from the first one that
    is not carried.
    """
    carried = count + 16
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), carried, dtype=matrix.dtype, generator=generator).to(matrix.device)
    block = torch.linalg.qr(start).Q
    for _ in range(RESTARTS):
        blocks, images = [block], [matrix @ block]
        for _ in range(DEPTH):
            following = images[-1]
            span = torch.cat(blocks, dim=1)
            for _ in range(2):  # once leaves rounding of what is taken away
                following = following - span @ (span.T @ following)
                following = torch.linalg.qr(following).Q
            blocks.append(following)
            images.append(matrix @ following)
        span, image = torch.cat(blocks, dim=1), torch.cat(images, dim=1)
        small = span.T @ image
        values, rotation = torch.linalg.eigh((small + small.T) / 2)
        values, rotation = values.flip(0)[:carried], rotation.flip(1)[:, :carried]
        block = span @ rotation
        residual = image @ rotation[:, :count] - block[:, :count] * values[:count]
        if float(residual.norm(dim=0).max()) <= TOLERANCE * float(values.abs().max()):
            return values[:count], block[:, :count]
        block = torch.linalg.qr(block).Q
    return None
