"""A learned matrix with orthonormal columns, of any shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FULL_WIDTH = "full_width"


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
