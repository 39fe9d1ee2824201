"""The loss of one layer pair, and the losses on the logits."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from subdistill_hf.activations import Features
from subdistill_hf.layer_loss import LayerLoss
from subdistill_hf.procrustes import ProcrustesRotation
from subdistill_hf.subspaces import Subspace, several_processes

Centring = Literal["mean", "batch_norm", "none"]
RotationKind = Literal["orthogonal", "linear"]
CENTRINGS: tuple[Centring, ...] = ("mean", "batch_norm", "none")
ROTATIONS: tuple[RotationKind, ...] = ("orthogonal", "linear")


def same_positions(student: Features, target: Features) -> tuple[Tensor, Tensor]:
    """Bring two outputs to the same positions (METHOD step 2, spatial alignment).

    Equal geometries are taken as they are, class and register tokens included. Otherwise the prefix tokens
    are kept only where both sides have the same number of them, and on each axis the larger grid is
    average-pooled to the smaller.

    Args:
        student: `(B, K, P')`.
        target: `(B, K, P)`, a teacher's projected features.

    Returns:
        Values `(B, K, P'')` of both sides.
    """
    if (student.grid, student.prefix) != (target.grid, target.prefix):
        if student.prefix != target.prefix:
            student, target = student.without_prefix(), target.without_prefix()
        grid = (min(student.grid[0], target.grid[0]), min(student.grid[1], target.grid[1]))
        student, target = student.pooled(grid), target.pooled(grid)
    return student.values, target.values


class Centre(nn.Module):
    """Subtract the mean over batch and positions; with `batch_norm` also divide by the standard deviation.

    In training the statistics are those of the batch (of all processes together when there are several) and
    gradients flow through them; in evaluation the running mean is subtracted and nothing is divided, for both
    centrings, as the released code does.

    Args:
        width: number of channels K.
        centring: `"mean"` (the paper's formula), `"batch_norm"` (the released code), or `"none"`.
        momentum: weight of the newest batch in the running mean.
        eps: added to the batch variance under `batch_norm`.
    """

    running_mean: Tensor

    def __init__(self, width: int, centring: Centring = "mean", momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if centring not in CENTRINGS:
            raise ValueError(f"unknown centring {centring!r}: expected one of {', '.join(CENTRINGS)}")
        self.centring, self.momentum, self.eps = centring, momentum, eps
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, values: Tensor) -> Tensor:
        """Centre `(B, K, P)`."""
        if self.centring == "none":
            return values
        if not self.training:
            return values - self.running_mean[:, None]
        fused = values.shape[0] * values.shape[2] > 1 and not several_processes()  # torch refuses a lone position
        if self.centring == "batch_norm" and fused:
            unused = torch.ones_like(self.running_mean)  # the running variance: evaluation divides by nothing
            return F.batch_norm(values, self.running_mean, unused, None, None, True, self.momentum, self.eps)
        mean = _mean_over_processes(values.mean(dim=(0, 2)))
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
        centred = values - mean[:, None]
        if self.centring == "batch_norm":
            variance = _mean_over_processes(centred.square().mean(dim=(0, 2)))
            centred = centred * torch.rsqrt(variance + self.eps)[:, None]
        return centred

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.running_mean.shape[0]}, centring={self.centring!r}"


def _mean_over_processes(mean: Tensor) -> Tensor:
    """Average a statistic over the processes of the default group; gradients flow to every process's share.

    Exact when the processes hold batches of one size, which `accelerate` ensures.
    """
    if not several_processes():
        return mean
    return _AverageOverProcesses.apply(mean)  # type: ignore[no-any-return]


class _AverageOverProcesses(torch.autograd.Function):
    """All-reduce to the average, forward and backward."""

    @staticmethod
    def forward(ctx: object, mean: Tensor) -> Tensor:
        """Average over processes."""
        total = mean.clone()
        torch.distributed.all_reduce(total)
        return total / torch.distributed.get_world_size()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """The loss is averaged over processes too, so the gradient of the average is the average gradient."""
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total / torch.distributed.get_world_size()


class Rotation(nn.Module):
    """A learned linear map V from student channels to subspace coordinates, orthogonal by parametrisation.

    V is `(K', K)` with K' ≤ K: square orthogonal when the student is as wide as the subspace, orthonormal
    rows when the student is wider than the teacher's layer (K > d, so K' = d). It is kept in float32 and
    applied outside autocast.

    Args:
        student_width: student channels K.
        dimensions: subspace dimensions K'.
        kind: `"orthogonal"`, or `"linear"` for a free map (an ablation of the paper).
    """

    def __init__(self, student_width: int, dimensions: int, kind: RotationKind = "orthogonal") -> None:
        super().__init__()
        if kind not in ROTATIONS:
            raise ValueError(f"unknown rotation {kind!r}: expected one of {', '.join(ROTATIONS)}")
        if dimensions > student_width and kind == "orthogonal":
            raise ValueError(
                f"a student layer of {student_width} channels cannot be rotated onto {dimensions} dimensions"
                f": expected at most {student_width}"
            )
        self.linear = nn.Linear(student_width, dimensions, bias=False)
        nn.init.orthogonal_(self.linear.weight)
        if kind == "orthogonal":
            # Cayley is the cheapest of torch's maps at these widths (benchmarks/speed.py, "rotation").
            parametrizations.orthogonal(self.linear, orthogonal_map="cayley")

    @property
    def matrix(self) -> Tensor:
        """V, `(K', K)`."""
        return self.linear.weight

    def forward(self, values: Tensor) -> Tensor:
        """V h: `(B, K, P)` to `(B, K', P)`."""
        return torch.matmul(self.linear.weight, values)


class SubspaceAlignment(LayerLoss):
    """L = (1/e)·mean over images and positions of ‖V(h - mean h) - Uᵀ(a - μ)‖² (METHOD step 2).

    Predicting the mean costs exactly 1 under centring `mean` at full resolution, whatever the layer.

    Args:
        subspace: the teacher layer's subspace, of dimension K' at most the student's width.
        student_width: channels K of the student layer.
        centring: see `Centre`.
        rotation: see `Rotation`, or `"procrustes"`, see `ProcrustesRotation`.
        normalise: divide by the energy e (off is an ablation of the paper).
    """

    def __init__(
        self,
        subspace: Subspace,
        student_width: int,
        centring: Centring = "mean",
        rotation: RotationKind | Literal["procrustes"] = "orthogonal",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.subspace = subspace
        self.centre = Centre(student_width, centring)
        self.rotation: Rotation | ProcrustesRotation
        if rotation == "procrustes":
            self.rotation = ProcrustesRotation(student_width, subspace.dimensions)
        else:
            self.rotation = Rotation(student_width, subspace.dimensions, rotation)
        self.energy = subspace.energy if normalise else 1.0

    @torch.no_grad()
    def target(self, teacher: Features) -> Features:
        """t = Uᵀ(a - μ) of the teacher's features `(B, d, P)`, without gradient, `(B, K', P)`."""
        with torch.autocast(teacher.values.device.type, enabled=False):
            return teacher.with_values(self.subspace.project(teacher.values.float()))

    def forward(self, student: Features, target: Features) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: student features `(B, K, P')`; gradients flow to them.
            target: what `target` gave, `(B, K', P)`.
        """
        with torch.autocast(student.values.device.type, enabled=False):
            dtype = self.centre.running_mean.dtype
            h, t = same_positions(student.with_values(student.values.to(dtype)), target)
            if isinstance(self.rotation, ProcrustesRotation) and self.training:
                centring = self.centre.centring
                self.rotation.follow(h.detach(), t.to(dtype), centring != "none", centring == "batch_norm")
            s = torch.matmul(self.rotation.matrix, self.centre(h))
            error: Tensor = F.mse_loss(s, t.to(dtype), reduction="sum") / (s.shape[0] * s.shape[2])
            return error / self.energy


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), averaged over the batch (METHOD step 3).

    Args:
        student: logits of the subtask's classes `(B, C)`.
        teacher: the teacher's logits restricted to the same classes, in the same order, `(B, C)`.
        temperature: T.
    """
    divergence = F.kl_div(
        F.log_softmax(student.float() / temperature, dim=1),
        F.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence
