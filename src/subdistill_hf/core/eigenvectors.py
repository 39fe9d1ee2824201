"""The leading eigenvectors of a symmetric matrix, without the others where few of many are needed."""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 2048
SHARE = 16
TOLERANCE = 1e-12
DEPTH = 10
RESTARTS = 12


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
    """Rayleigh-Ritz on X, A X ... A^DEPTH X, begun again from the best vectors until they are eigenvectors.

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
