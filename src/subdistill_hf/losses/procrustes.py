"""The rotation of student features onto a subspace in closed form, from what the batches say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from subdistill_hf.core.distributed import average_over_processes
from subdistill_hf.losses.polar import is_by_products, polar_factor, polar_factors_by_products
from subdistill_hf.losses.rotations import RotationKind

PROCRUSTES: Literal["procrustes"] = "procrustes"
MOST_CHANNELS = 128  # for which the closed form is chosen


class ProcrustesRotation(nn.Module):
    """V = argmax tr(Vᵀ C) with orthonormal rows, C = E[t (h - mean h)ᵀ]: orthogonal Procrustes (Schönemann, 1966).

    With C = A S Bᵀ (singular values S), V = A Bᵀ. C is a running mean over the batches of training, the newest
    included; it is kept in a buffer, so it travels in checkpoints, and is that of all processes together. No gradient
    flows to V: the student learns against the best rotation of the moment. Where the student is as wide as the
    subspace, this V minimises the squared error of METHOD step 2. The loss lets it follow the batches while it is in
    training mode, see `follow_together`.

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
    def follow(self, newest: Tensor) -> None:
        """Take a batch's cross-moment `(K', K)`, of all processes, into the running one."""
        self.cross_moment.lerp_(newest, self.momentum)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.cross_moment.shape[1]}, {self.cross_moment.shape[0]}"


@torch.no_grad()
def follow_together(rotations: Sequence[ProcrustesRotation], newest: Tensor) -> Tensor:
    """Let L rotations follow a batch, and give their matrices.

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
        rotation.follow(newest[index, :dimensions, :width])
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
