"""The learned map from student channels to subspace coordinates: orthogonal by construction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

KeptMatrices = dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]]
_KEPT: ContextVar[KeptMatrices | None] = ContextVar("kept matrices", default=None)

RotationKind = Literal["orthogonal", "linear"]
NARROW, NARROW_ON_ACCELERATORS = 64, 128  # channels
ROTATIONS: tuple[RotationKind, ...] = ("orthogonal", "linear")


def is_narrow(channels: int, device: torch.device) -> bool:
    """Whether a layer's matrices cost calls rather than arithmetic, so that those of several are made at once."""
    return channels <= (NARROW if device.type == "cpu" else NARROW_ON_ACCELERATORS)


class Rotation(nn.Module):
    """A learned linear map V from student channels to subspace coordinates.

    V is `(K', K)` with K' ≤ K: square orthogonal when the student is as wide as the subspace, orthonormal rows
    when the student is wider than the teacher's layer (K > d, so K' = d). It starts as a random orthogonal matrix B
    and becomes Q B, where Q is the Cayley transform (1 + X/2)⁻¹(1 - X/2) of a free skew-symmetric matrix X. It is kept
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
        rotated = stacked_matrices([self])[0]
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
def matrices_kept(kept: KeptMatrices) -> Iterator[None]:
    """Inside, the matrices of rotations are made once and kept: for batches between which no rotation changes.

    Args:
        kept: what was made so far, to which more is added; emptied by whoever changes the rotations.
    """
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def stacked_matrices(rotations: Sequence[Rotation]) -> Tensor:
    """The square matrices of L orthogonal rotations at once, `(L, K, K)`; zeros lie behind those that are narrower."""
    stack: Tensor = _Cayley.apply([each.base for each in rotations], *[each.free for each in rotations])
    return stack


class _Cayley(torch.autograd.Function):
    """(1 + X/2)⁻¹(1 - X/2) B = 4 (2 + X)⁻¹ B - B, with X = L - Lᵀ of the strictly lower triangle L.

    For several L and B at once: one inverse of a stack forward, two products of stacks backward, and nothing that
    waits for the device: 2 + X has no eigenvalue below 2 in magnitude, so its inverse needs no check.
    """

    @staticmethod
    def forward(ctx: Any, bases: Sequence[Tensor], *free: Tensor) -> Tensor:
        """Orthogonal B `(K, K)` and free `(K, K)`, each pair of its own width, to orthogonal `(K, K)` in a stack."""
        ctx.widths = [len(each) for each in free]
        kept = _KEPT.get()
        if kept is None or (free[0].is_cuda and torch.cuda.is_current_stream_capturing()):
            inverse, product, base = _Cayley.solve(bases, free)
        else:
            which = tuple(each.data_ptr() for each in free)
            if which not in kept:
                kept[which] = _Cayley.solve(bases, free)
            inverse, product, base = kept[which]
        ctx.save_for_backward(inverse, product)
        rotated: Tensor = product - base
        return rotated

    @staticmethod
    def solve(bases: Sequence[Tensor], free: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Stacks of (2 + X)⁻¹, of 4 (2 + X)⁻¹ B and of B."""
        widest = max(len(each) for each in free)
        lower, base = free[0].new_zeros(2, len(free), widest, widest)
        for index, (each, start) in enumerate(zip(free, bases, strict=True)):
            width = len(each)
            torch.tril(each, -1, out=lower[index, :width, :width])
            base[index, :width, :width] = start
        shifted = lower - lower.mT
        shifted.diagonal(dim1=1, dim2=2).add_(2)
        inverse = torch.linalg.inv_ex(shifted).inverse
        return inverse, torch.bmm(inverse, base).mul_(4), base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient at X is -(2 + X)⁻ᵀ G (4 (2 + X)⁻¹ B)ᵀ."""
        inverse, product = ctx.saved_tensors
        by_skew = torch.bmm(inverse.mT, torch.bmm(gradient, product.mT))
        by_lower = (by_skew.mT - by_skew).tril_(-1)
        return None, *[by_lower[index, :width, :width] for index, width in enumerate(ctx.widths)]
