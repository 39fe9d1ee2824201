"""The learned map from student channels to subspace coordinates: orthogonal by construction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RotationKind = Literal["orthogonal", "linear"]
ROTATIONS: tuple[RotationKind, ...] = ("orthogonal", "linear")
NARROW = 64  # channels up to which an inverse costs a call rather than arithmetic


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
        self._rotated: Tensor | None = None  # inside `computed_together`
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
        rotated = self._rotated if self._rotated is not None else _Cayley.apply([self.base], self.free)[0]
        return rotated if self.keeps_length else rotated[: self.dimensions]

    @torch.no_grad()
    def start_from(self, matrix: Tensor) -> None:
        """Set V to a matrix `(K', K)`; for a rotation its rows must be orthonormal."""
        if self.kind == "linear":
            self.free.copy_(matrix)
            return
        complement = torch.linalg.qr(matrix.T, mode="complete").Q.T[self.dimensions :]
        self.base.copy_(torch.cat([matrix, complement]))
        self.free.zero_()


@contextmanager
def computed_together(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context that has the matrices of all narrow rotations among `modules`, computed at once; not in autocast."""
    rotations = [one for one in modules if isinstance(one, Rotation) and one.kind == "orthogonal"]
    narrow = [rotation for rotation in rotations if len(rotation.free) <= NARROW]
    try:
        if narrow:
            rotated = _Cayley.apply([each.base for each in narrow], *[each.free for each in narrow])
            for rotation, matrix in zip(narrow, rotated, strict=True):
                rotation._rotated = matrix
        yield
    finally:
        for rotation in narrow:
            rotation._rotated = None


class _Cayley(torch.autograd.Function):
    """(1 + X/2)⁻¹(1 - X/2) B = 4 (2 + X)⁻¹ B - B, with X = L - Lᵀ of the strictly lower triangle L.

    For several L and B at once: one inverse of a stack forward, two products for each backward, and nothing that waits
    for the device: 2 + X has no eigenvalue below 2 in magnitude, so its inverse needs no check.
    """

    @staticmethod
    def forward(ctx: Any, bases: Sequence[Tensor], *free: Tensor) -> tuple[Tensor, ...]:
        """Orthogonal B `(K, K)` and free `(K, K)`, each pair of its own width, to orthogonal `(K, K)`."""
        widths = [len(each) for each in free]
        lower = free[0].new_zeros(len(free), max(widths), max(widths))
        for padded, each, width in zip(lower, free, widths, strict=True):
            torch.tril(each, -1, out=padded[:width, :width])
        shifted = lower - lower.mT
        shifted.diagonal(dim1=1, dim2=2).add_(2)
        stack = torch.linalg.inv_ex(shifted).inverse
        inverses = [padded[:width, :width] for padded, width in zip(stack, widths, strict=True)]
        products = [(inverse @ base).mul_(4) for inverse, base in zip(inverses, bases, strict=True)]
        ctx.save_for_backward(*inverses, *products)
        return tuple(product - base for product, base in zip(products, bases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient at X is -(2 + X)⁻ᵀ G (4 (2 + X)⁻¹ B)ᵀ."""
        inverses, products = ctx.saved_tensors[: len(gradients)], ctx.saved_tensors[len(gradients) :]
        by_free: list[Tensor] = []
        for gradient, inverse, product in zip(gradients, inverses, products, strict=True):
            by_skew = inverse.T @ (gradient @ product.T)
            by_free.append((by_skew.T - by_skew).tril_(-1))
        return None, *by_free
