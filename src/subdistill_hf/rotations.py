"""The learned map from student channels to subspace coordinates: orthogonal by construction."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RotationKind = Literal["orthogonal", "linear"]
ROTATIONS: tuple[RotationKind, ...] = ("orthogonal", "linear")


class Rotation(nn.Module):
    """A learned linear map V from student channels to subspace coordinates.

    V is `(K', K)` with K' ≤ K: square orthogonal when the student is as wide as the subspace, orthonormal rows
    when the student is wider than the teacher's layer (K > d, so K' = d). It starts as a random orthogonal matrix B
    and becomes B Q, where Q is the Cayley transform (1 + X/2)⁻¹(1 - X/2) of a free skew-symmetric matrix X. It is kept
    in float32 and applied outside autocast.

    Args:
        student_width: student channels K.
        dimensions: subspace dimensions K'.
        kind: `"orthogonal"`, or `"linear"` for a free map (an ablation of the paper).
    """

    base: Tensor

    def __init__(self, student_width: int, dimensions: int, kind: RotationKind = "orthogonal") -> None:
        super().__init__()
        if kind not in ROTATIONS:
            raise ValueError(f"unknown rotation {kind!r}: expected one of {', '.join(ROTATIONS)}")
        if dimensions > student_width and kind == "orthogonal":
            raise ValueError(
                f"a student layer of {student_width} channels cannot be rotated onto {dimensions} dimensions"
                f": expected at most {student_width}"
            )
        self.kind, self.dimensions = kind, dimensions
        self.keeps_length = kind == "orthogonal" and student_width == dimensions
        start = nn.init.orthogonal_(torch.empty(max(student_width, dimensions), student_width))
        if kind == "orthogonal":
            self.free = nn.Parameter(torch.zeros(student_width, student_width))
            self.register_buffer("base", start)
        else:
            self.free = nn.Parameter(start[:dimensions].clone())

    @property
    def matrix(self) -> Tensor:
        """V, `(K', K)`."""
        if self.kind == "linear":
            return self.free
        orthogonal: Tensor = _Cayley.apply(self.free)
        return torch.matmul(orthogonal[: self.dimensions], self.base)

    @torch.no_grad()
    def start_from(self, matrix: Tensor) -> None:
        """Set V to a matrix `(K', K)`; for a rotation its rows must be orthonormal."""
        if self.kind == "linear":
            self.free.copy_(matrix)
            return
        complement = torch.linalg.qr(matrix.T, mode="complete").Q.T[self.dimensions :]
        self.base.copy_(torch.cat([matrix, complement]))
        self.free.zero_()


class _Cayley(torch.autograd.Function):
    """(1 + X/2)⁻¹(1 - X/2) = 2 (1 + X/2)⁻¹ - 1, with X = L - Lᵀ of the strictly lower triangle L.

    One inverse forward, two products backward, and nothing that waits for the device: 1 + X/2 has no eigenvalue
    below 1 in magnitude, so its inverse needs no check.
    """

    @staticmethod
    def forward(ctx: Any, free: Tensor) -> Tensor:
        """`(K, K)` to an orthogonal `(K, K)`."""
        lower = free.tril(-1)
        shifted = (lower - lower.T).mul_(0.5)
        shifted.diagonal().add_(1)
        inverse = torch.linalg.inv_ex(shifted).inverse
        ctx.save_for_backward(inverse)
        rotation: Tensor = 2 * inverse
        rotation.diagonal().sub_(1)
        return rotation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """With M⁻¹ = (1 + X/2)⁻¹, the gradient at X is -M⁻ᵀ G M⁻ᵀ."""
        (inverse,) = ctx.saved_tensors
        by_skew: Tensor = inverse.T @ gradient @ inverse.T
        return (by_skew.T - by_skew).tril_(-1)
