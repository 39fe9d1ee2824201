"""The interface of every loss of a layer pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import Features, at_least_float32, without_autocast
from subdistill_hf.core.hooks import has_hooks

METHODS_OF_A_LOSS = ("forward", "loss", "make_target", "target")


class LayerLoss(nn.Module):
    """A loss of one layer pair, with whatever it learns.

    A subclass says what of the teacher it compares with (`target`; it may be computed once per view and kept), and how
    (`loss`). Both run outside autocast, in float32 where the features have less; callers use `make_target`, and call
    the module.

    Args:
        teacher_width: channels d of the teacher layer.
        student_width: channels K of the student layer; a loss that learns nothing needs neither.

    Attributes:
        teacher_scale: what `target` multiplies the teacher's values by; 1 unless it is set before the first target.
        scale_free: whether the loss is the same whatever the teacher's scale is, so that nothing is measured for it.
        replayable: whether both launch the same kernels whatever the values are, and never wait for the device, so
            that a CUDA graph can hold them. It is not inherited: each class says so of itself.
    """

    scale_free: bool = False
    replayable: bool = False

    def __init__(self, teacher_width: int = 0, student_width: int = 0) -> None:
        super().__init__()
        self.teacher_scale = 1.0

    def bring_to_unit_scale(self, width: int, energy: float) -> None:
        """Scale the features to variance 1 in a channel, on average (docs/method.md, "The scale of the target").

        Args:
            width: channels d of the teacher layer.
            energy: variance of its features in all channels together, where they are compared.
        """
        self.teacher_scale = math.sqrt(width / energy)

    def target(self, teacher: Features) -> Features:
        """The target of teacher features `(B, d, P)`: by default a scaled copy; a later layer may change them."""
        return teacher.with_values(teacher.values * self.teacher_scale)

    def identity(self) -> str:
        """Identity of the target, beside the teacher's features and `teacher_scale`: by default nothing more."""
        return "activations"

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of student features `(B, K, P')` against what `target` gave, a scalar."""
        raise NotImplementedError

    @torch.no_grad()
    def make_target(self, teacher: Features) -> Features:
        """The target of the teacher's features `(B, d, P)`, without gradient."""
        with without_autocast(teacher.values.device):
            return self.target(at_least_float32(teacher))

    def forward(self, student: Features, target: Features) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: student features `(B, K, P')`; gradients flow to them.
            target: what `make_target` gave.
        """
        with without_autocast(student.values.device):
            return self.loss(at_least_float32(student), at_least_float32(target))


def is_replayable(loss: nn.Module) -> bool:
    """Whether a CUDA graph can hold what a layer's loss does and how it reads the teacher: no part was changed."""
    return bool(vars(type(loss)).get("replayable")) and not is_changed(list(loss.modules()))


def is_changed(modules: Sequence[nn.Module]) -> bool:
    """Whether one of some modules has hooks, or methods that were put on the instance."""
    return any(has_hooks(module) or not vars(module).keys().isdisjoint(METHODS_OF_A_LOSS) for module in modules)
