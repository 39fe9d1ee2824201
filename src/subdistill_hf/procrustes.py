"""The rotation of student features onto a subspace in closed form, from what the batches say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subdistill_hf.moments import average_over_processes

PROCRUSTES = "procrustes"


class ProcrustesRotation(nn.Module):
    """V = argmax tr(Vᵀ C) with orthonormal rows, C = E[t (h - mean h)ᵀ]: orthogonal Procrustes (Schönemann, 1966).

    With C = A S Bᵀ (singular values S), V = A Bᵀ. C is a running mean over the batches of training, the newest
    included; it is kept in a buffer, so it travels in checkpoints, and is that of all processes together. No gradient
    flows to V: the student learns against the best rotation of the moment. Where the student is as wide as the
    subspace, this V minimises the squared error of METHOD step 2.

    Args:
        student_width: student channels K.
        dimensions: subspace dimensions K', at most K.
        momentum: weight of the newest batch.
        eps: added to the variance where channels are divided by their standard deviation.
    """

    cross_moment: Tensor

    def __init__(self, student_width: int, dimensions: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if dimensions > student_width:
            raise ValueError(
                f"a student layer of {student_width} channels cannot be rotated onto {dimensions} dimensions"
                f": expected at most {student_width}"
            )
        self.momentum, self.eps = momentum, eps
        self.keeps_length = student_width == dimensions
        self.register_buffer("cross_moment", torch.zeros(dimensions, student_width))

    @property
    @torch.no_grad()
    def matrix(self) -> Tensor:
        """V, `(K', K)`; decomposed in float64, where a small singular value still has a direction."""
        left, _, right = torch.linalg.svd(self.cross_moment.double(), full_matrices=False)
        matrix: Tensor = (left @ right).to(self.cross_moment.dtype)
        return matrix

    @torch.no_grad()
    def follow(self, values: Tensor, target: Tensor, centre: bool = True, divide: bool = False) -> None:
        """Take a batch into the cross-moment.

        Args:
            values: student features h `(B, K, P)`.
            target: coordinates t of the teacher's features `(B, K', P)`.
            centre: subtract the mean of each channel of h.
            divide: also divide by its standard deviation, as batch-norm centring does.
        """
        if centre:
            values = values - average_over_processes(values.mean(dim=(0, 2)))[:, None]
        if divide:
            variance = average_over_processes(values.square().mean(dim=(0, 2)))
            values = values * torch.rsqrt(variance + self.eps)[:, None]
        newest = torch.einsum("bjp,bkp->jk", target, values) / (len(values) * values.shape[2])
        self.cross_moment.lerp_(average_over_processes(newest), self.momentum)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.cross_moment.shape[1]}, {self.cross_moment.shape[0]}"
