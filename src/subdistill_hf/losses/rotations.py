"""Learned maps from student channels to subspace coordinates: orthogonal by construction, or free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RotationKind = Literal["orthogonal", "linear"]
ROTATIONS: tuple[RotationKind, ...] = ("orthogonal", "linear")
FULL_WIDTH = "full_width"
NARROW, NARROW_ON_ACCELERATORS = 64, 128  # channels


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

    Raises:
        ValueError: for an unknown kind, or more dimensions than channels.
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
        self.cayley = CayleyMatrices()
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
        rotated = self.cayley([self])[0]
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


class OrthonormalMap(nn.Module):
    """A learned matrix P with orthonormal columns (rows where it is wide), at a cost linear in its longer side.

    P = (1 + W/2)⁻¹(1 - W/2) B, with B the matrix it starts from and W = F Bᵀ - B Fᵀ for a free F of B's shape: the
    Cayley transform of a skew-symmetric matrix of rank 2K, inverted at that rank (Wen & Yin, 2013, lemma 4).

    Args:
        outputs: rows.
        inputs: columns.
    """

    base: Tensor

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.wide = outputs < inputs
        self.keeps_length = not self.wide
        shape = (inputs, outputs) if self.wide else (outputs, inputs)
        self.register_buffer("base", nn.init.orthogonal_(torch.empty(shape)))
        self.free = nn.Parameter(torch.zeros(shape))

    @property
    def matrix(self) -> Tensor:
        """P, `(outputs, inputs)`."""
        left, right = torch.cat([self.free, self.base], dim=1), torch.cat([self.base, -self.free], dim=1)
        small = torch.eye(left.shape[1], dtype=left.dtype, device=left.device) + 0.5 * right.T @ left
        # 1 + W/2 has an inverse whatever F is, so there is nothing to check, and no device to wait for
        tall: Tensor = self.base - left @ torch.linalg.solve_ex(small, right.T @ self.base).result
        return tall.T if self.wide else tall


class CayleyMatrices:
    """Makes the matrices of orthogonal rotations from their parameters, and can keep what that takes.

    The batches of one optimiser step see the same rotations, so the inverses need not be computed for each.

    Attributes:
        keep: whether the inverses of a call are kept for the next ones, until `forget`. Whoever sets it knows that no
            parameter changes in between.
    """

    def __init__(self) -> None:
        self.keep = False
        self._kept: _Inverses | None = None

    def __call__(self, rotations: Sequence[Rotation]) -> Tensor:
        """The square matrices of L orthogonal rotations, `(L, K, K)`; zeros lie behind those that are narrower.

        Args:
            rotations: the same in every call.
        """
        free = [rotation.free for rotation in rotations]
        inverses = self._kept
        recorded = free[0].is_cuda and torch.cuda.is_current_stream_capturing()  # for other parameters than these
        if inverses is None or recorded:
            inverses = _Inverses.of(free, [rotation.base for rotation in rotations])
        if self.keep and not recorded:
            self._kept = inverses
        matrices: Tensor = _Cayley.apply(inverses, *free)
        return matrices

    def forget(self) -> None:
        """Drop what was kept: the parameters may be others from now on."""
        self._kept = None


@dataclass(frozen=True)
class _Inverses:
    """Stacks `(L, K, K)` from which Cayley transforms and their gradients are made, with X = F - Fᵀ.

    Attributes:
        inverse: (2 + X)⁻¹.
        product: 4 (2 + X)⁻¹ B.
        base: B.
    """

    inverse: Tensor
    product: Tensor
    base: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, free: Sequence[Tensor], bases: Sequence[Tensor]) -> _Inverses:
        """Of parameters `(K, K)`, of which F is the strictly lower triangle, and B `(K, K)`, of each its own width."""
        widest = max(len(each) for each in free)
        lower, base = free[0].new_zeros(2, len(free), widest, widest)
        for index, (each, start) in enumerate(zip(free, bases, strict=True)):
            width = len(each)
            torch.tril(each, -1, out=lower[index, :width, :width])
            base[index, :width, :width] = start
        shifted = lower - lower.mT
        shifted.diagonal(dim1=1, dim2=2).add_(2)
        inverse = torch.linalg.inv_ex(shifted).inverse
        return cls(inverse, torch.bmm(inverse, base).mul_(4), base)


class _Cayley(torch.autograd.Function):
    """(1 + X/2)⁻¹(1 - X/2) B = 4 (2 + X)⁻¹ B - B, with X = F - Fᵀ of the strictly lower triangle F.

    For several F and B at once: one inverse of a stack forward, two products of stacks backward, and nothing that
    waits for the device: 2 + X has no eigenvalue below 2 in magnitude, so its inverse needs no check.
    """

    @staticmethod
    def forward(ctx: Any, inverses: _Inverses, *free: Tensor) -> Tensor:
        """Parameters `(K, K)`, each of its own width, to orthogonal `(K, K)` in a stack."""
        ctx.widths = [len(each) for each in free]
        ctx.save_for_backward(inverses.inverse, inverses.product)
        return inverses.product - inverses.base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient at X is -(2 + X)⁻ᵀ G (4 (2 + X)⁻¹ B)ᵀ."""
        inverse, product = ctx.saved_tensors
        by_skew = torch.bmm(inverse.mT, torch.bmm(gradient, product.mT))
        by_lower = (by_skew.mT - by_skew).tril_(-1)
        return None, *[by_lower[index, :width, :width] for index, width in enumerate(ctx.widths)]
