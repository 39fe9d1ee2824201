"""What every loss of a layer pair is to the trainer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import Features, at_least_float32, without_autocast


class LayerLoss(nn.Module):
    """A loss of one layer pair, with whatever it learns.

    A subclass says what of the teacher it compares with (`read`; it may be computed once per view and kept), and how
    (`compare`). Both run outside autocast, in float32 where the features have less.

    Args:
        teacher_width: channels d of the teacher layer.
        student_width: channels K of the student layer; a loss that learns nothing needs neither.

    Attributes:
        replayable: whether both launch the same kernels whatever the values are, and never wait for the device, so
            that a CUDA graph can hold them. It is not inherited: each class says so of itself.
    """

    replayable: bool = False

    def __init__(self, teacher_width: int = 0, student_width: int = 0) -> None:
        super().__init__()

    @torch.no_grad()
    def target(self, teacher: Features) -> Features:
        """What is compared with of the teacher's features `(B, d, P)`, without gradient."""
        with without_autocast(teacher.values.device):
            return self.read(at_least_float32(teacher))

    def forward(self, student: Features, target: Features) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: student features `(B, K, P')`; gradients flow to them.
            target: what `target` gave.
        """
        with without_autocast(student.values.device):
            return self.compare(at_least_float32(student), at_least_float32(target))

    def read(self, teacher: Features) -> Features:
        """The target of features `(B, d, P)`: by default a copy, since a later layer may change them in place."""
        return teacher.with_values(teacher.values.clone())

    def identity(self) -> str:
        """What `read` depends on beside the teacher's features: by default nothing."""
        return "activations"

    def compare(self, student: Features, target: Features) -> Tensor:
        """The loss of student features `(B, K, P')` against what `read` gave."""
        raise NotImplementedError
