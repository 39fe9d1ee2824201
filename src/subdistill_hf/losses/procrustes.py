"""The rotation of student features onto a subspace in closed form, and the polar factor that it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from subdistill_hf.core.distributed import average_over_processes
from subdistill_hf.losses.rotations import RotationKind

PROCRUSTES: Literal["procrustes"] = "procrustes"
MOST_CHANNELS = 128  # for which the closed form is chosen

# Of polar factors by products
SMALLEST = 1e-7  # of the Frobenius norm: below it, the singular values of a float32 matrix are noise
LARGEST_SCALE = 1.69  # at √3 a singular value of 1 would go to 0 and lose its digits
STEPS = 21  # that many bring `SMALLEST` to 1 - 2e-11


class ProcrustesRotation(nn.Module):
    """V = argmax tr(Vᵀ C) with orthonormal rows, C = E[t (h - mean h)ᵀ]: orthogonal Procrustes (Schönemann, 1966).

    Source: docs/method.md, "The rotation in closed form". With C = A S Bᵀ (singular values S), V = A Bᵀ. C is a
    running mean over the batches of training, the newest included; it is kept in a buffer, so it travels in
    checkpoints, and is that of all processes together. No gradient flows to V: the student learns against the best
    rotation of the moment. Where the student is as wide as the subspace, this V minimises the squared error. The loss
    updates it while it is in training mode, see `update_rotations`.

    Args:
        student_width: student channels K.
        dimensions: subspace dimensions K', at most K.
        momentum: weight of the newest batch.
    """

    cross_moment: Tensor

    def __init__(self, student_width: int, dimensions: int, momentum: float = 0.1) -> None:
        super().__init__()
        if dimensions > student_width:
            raise ValueError(
                f"a student layer of {student_width} channels cannot be rotated onto {dimensions} dimensions"
                f": expected at most {student_width}"
            )
        self.momentum = momentum
        self.keeps_length = student_width == dimensions
        self.register_buffer("cross_moment", torch.zeros(dimensions, student_width))

    @property
    @torch.no_grad()
    def matrix(self) -> Tensor:
        """V, `(K', K)`."""
        return polar_factor(self.cross_moment)

    @torch.no_grad()
    def update(self, newest: Tensor) -> None:
        """Take a batch's cross-moment `(K', K)`, of all processes, into the running one."""
        self.cross_moment.lerp_(newest, self.momentum)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.cross_moment.shape[1]}, {self.cross_moment.shape[0]}"


@torch.no_grad()
def update_rotations(rotations: Sequence[ProcrustesRotation], newest: Tensor) -> Tensor:
    """Update L rotations by a batch, and give their matrices.

    Args:
        rotations: of each layer.
        newest: cross-moments of the images of this process, `(L, K', K)`, with zeros behind narrower layers.

    Returns:
        V of each layer, the batch included, in a stack like that of the moments.
    """
    newest = average_over_processes(newest)
    at_once = is_by_products(newest.device)
    stack = torch.zeros_like(newest)
    for index, rotation in enumerate(rotations):
        dimensions, width = rotation.cross_moment.shape
        rotation.update(newest[index, :dimensions, :width])
        stack[index, :dimensions, :width] = rotation.cross_moment if at_once else rotation.matrix
    return polar_factors_by_products(stack) if at_once else stack


def suited_rotation(widths: Iterable[int], device: torch.device) -> RotationKind | Literal["procrustes"]:
    """The rotation of a user who leaves it open: in closed form up to `MOST_CHANNELS`, otherwise learned.

    There the closed form gives better students (`benchmarks/results/glyphs_rotation` and `glyphs_rotation_wide`) and
    costs about as much as the learned one. The polar factors of wide layers cost far more.

    Args:
        widths: channels K of the student's layers; none where nothing is rotated.
        device: where the student is trained: a CPU, or a device that makes polar factors by products.
    """
    able = device.type == "cpu" or is_by_products(device)
    return PROCRUSTES if able and 0 < max(widths, default=0) <= MOST_CHANNELS else "orthogonal"


# Polar factors: the nearest matrix with orthonormal rows or columns, A Bᵀ of C = A S Bᵀ (S: singular values)


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
