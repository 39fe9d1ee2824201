"""The loss of one layer pair in the teacher's subspace, and of several such pairs in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import Features, at_least_float32
from subdistill_hf.core.hooks import has_hooks
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import SubspaceError
from subdistill_hf.losses.aligned_error import aligned_errors
from subdistill_hf.losses.base import LayerLoss, is_changed
from subdistill_hf.losses.batch_moments import constants
from subdistill_hf.losses.procrustes import ProcrustesRotation, update_rotations
from subdistill_hf.losses.rotations import CayleyMatrices, OrthonormalMap, Rotation, RotationKind, is_narrow

RotationOption = RotationKind | Literal["procrustes", "full_width"]
AnyRotation = Rotation | ProcrustesRotation | OrthonormalMap
Centring = Literal["mean", "batch_norm", "none"]
CENTRINGS: tuple[Centring, ...] = ("mean", "batch_norm", "none")
TargetScale = Literal["unit", "teacher"]
TARGET_SCALES: tuple[TargetScale, ...] = ("unit", "teacher")


def same_positions(student: Features, target: Features) -> tuple[Tensor, Tensor]:
    """Bring two outputs to the same positions (docs/method.md, "Positions of two layers").

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
    """How student features are centred before they are rotated, with the running mean that evaluation uses.

    In training the statistics are those of the batch (of all processes together when there are several) and
    gradients flow through them; in evaluation the running mean is subtracted and nothing is divided, for both
    centrings, as the released code does.

    Args:
        width: number of channels K.
        centring: `"mean"` (the paper's formula), `"batch_norm"` (the released code, which also divides by the
            standard deviation), or `"none"`.
        momentum: weight of the newest batch in the running mean.
        eps: added to the batch variance under `batch_norm`.

    Raises:
        ValueError: for an unknown centring.
    """

    running_mean: Tensor

    def __init__(self, width: int, centring: Centring, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if centring not in CENTRINGS:
            raise ValueError(f"unknown centring {centring!r}: expected one of {', '.join(CENTRINGS)}")
        self.centring, self.momentum, self.eps = centring, momentum, eps
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, values: Tensor, target: Tensor, rotation: AnyRotation) -> Tensor:
        """Compare h `(B, K, P)`, centred, with t `(B, K', P)`: mean ‖V D(h - m) - t‖².

        It is here that a rotation in closed form takes in the batch, when it is in training mode.
        """
        if isinstance(rotation, ProcrustesRotation) and rotation.training:
            return centred_errors([self], [values], [target], partial(update_rotations, [rotation]), rotation)[0]
        return centred_errors([self], [values], [target], rotation.matrix[None], rotation)[0]

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.running_mean.shape[0]}, centring={self.centring!r}"


def centred_errors(
    centres: Sequence[Centre],
    values: Sequence[Tensor],
    targets: Sequence[Tensor],
    matrices: Tensor | Callable[[Tensor], Tensor],
    rotation: AnyRotation,
) -> Tensor:
    """Compare h, centred, with t in each of L layers of one centring: mean ‖V D(h - m) - t‖², `(L,)`.

    Args:
        centres: of each layer; in training their running means are updated by the batch.
        values: h of each layer, `(B, K, P)`.
        targets: t of each layer, `(B, K', P)`.
        matrices: V of each layer, `(L, K', K)`, or what makes them of a batch's cross-moments.
        rotation: one of those that they are of; all keep lengths, or none.
    """
    first = centres[0]
    from_batch = first.training and first.centring != "none"
    running = None if from_batch else [each.running_mean for each in centres]
    divide = from_batch and first.centring == "batch_norm"
    errors, means = aligned_errors(values, targets, matrices, running, divide, first.eps, rotation.keeps_length)
    if from_batch:
        for centre, mean in zip(centres, means, strict=True):
            centre.running_mean.lerp_(mean, centre.momentum)
    return errors


class SubspaceAlignment(LayerLoss):
    """L = (1/e)·mean over images and positions of ‖V D(h - mean h) - t‖² (docs/method.md, "The layer loss").

    Predicting the mean costs 1, whatever the layer; with `target_scale="teacher"` less where a map is pooled.

    Args:
        subspace: the teacher layer's subspace, of dimension K' at most the student's width.
        student_width: channels K of the student layer.
        centring: see `Centre`.
        rotation: see `Rotation`; `"procrustes"`, see `ProcrustesRotation`; or `"full_width"`, an orthonormal map
            to a subspace that may be wider than the student, such as all of the teacher's space (an ablation).
        normalise: divide by the energy e of the target (off is an ablation of the paper).
        target_scale: `"teacher"`, t = Uᵀ(a - μ), as published; or `"unit"`, the same scaled to an energy of the
            smaller of K and K', that of normalised features.

    Raises:
        ValueError: for an unknown centring or scale.
        SubspaceError: for a target without energy, which cannot be scaled.
    """

    replayable = True

    def __init__(
        self,
        subspace: Subspace,
        student_width: int,
        centring: Centring,
        rotation: RotationOption = "orthogonal",
        normalise: bool = True,
        target_scale: TargetScale = "teacher",
    ) -> None:
        super().__init__()
        if target_scale not in TARGET_SCALES:
            raise ValueError(f"unknown target_scale {target_scale!r}: expected one of {', '.join(TARGET_SCALES)}")
        self.subspace = subspace
        self.centre = Centre(student_width, centring)
        self.rotation: AnyRotation
        if rotation == "procrustes":
            self.rotation = ProcrustesRotation(student_width, subspace.dimensions)
        elif rotation == "full_width":
            self.rotation = OrthonormalMap(subspace.dimensions, student_width)
        else:
            self.rotation = Rotation(student_width, subspace.dimensions, rotation)
        energy = subspace.energy
        if target_scale == "unit":
            energy = float(min(student_width, subspace.dimensions))
            if not subspace.energy_compared > 0:
                raise SubspaceError(
                    "the teacher's layer does not vary once it is pooled to the student's grid: choose another layer, "
                    "or target_scale='teacher'"
                )
            self.teacher_scale = math.sqrt(energy / subspace.energy_compared)
        self.energy = energy if normalise else 1.0

    def target(self, teacher: Features) -> Features:
        """t, the scaled Uᵀ(a - μ), `(B, K', P)`, of the teacher's features `(B, d, P)`."""
        coordinates = self.subspace.project(teacher.values)
        return teacher.with_values(coordinates if self.teacher_scale == 1 else coordinates * self.teacher_scale)

    def identity(self) -> str:
        """Digest of the subspace."""
        return f"subspace {self.subspace.digest}"

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of student features `(B, K, P')` against t `(B, K', P)`."""
        h, t = self.same_positions(student, target)
        error: Tensor = self.centre(h, t, self.rotation)
        return error / self.energy

    def same_positions(self, student: Features, target: Features) -> tuple[Tensor, Tensor]:
        """Student features and t at the same positions, in the precision of the rotation."""
        dtype = self.centre.running_mean.dtype
        h, t = same_positions(student, target)
        return h.to(dtype), t.to(dtype)


class SubspaceBatch:
    """Losses in the subspaces of several narrow layers, computed in one call: they cost calls, not arithmetic.

    Args:
        losses: of layers of one kind, see `batched_layers`.
    """

    def __init__(self, losses: Sequence[SubspaceAlignment]) -> None:
        self._losses = tuple(losses)
        self._parts = [part for each in losses for part in (each, each.centre, each.rotation)]
        self.cayley = CayleyMatrices()

    def is_possible(self) -> bool:
        """Whether one call gives what each loss would: all in one mode, none with hooks."""
        first = self._losses[0]
        centre, rotation = first.centre.training, first.rotation.training
        one_mode = all((each.centre.training, each.rotation.training) == (centre, rotation) for each in self._losses)
        updates = rotation or not isinstance(first.rotation, ProcrustesRotation)
        return one_mode and updates and not any(map(has_hooks, self._parts))

    def __call__(self, students: Sequence[Features], targets: Sequence[Features]) -> Tensor:
        """The loss of each layer, `(L,)`.

        Args:
            students: features `(B, K, P')` of each layer; gradients flow to them.
            targets: t `(B, K', P)` of each layer.
        """
        compared = [
            each.same_positions(at_least_float32(student), at_least_float32(target))
            for each, student, target in zip(self._losses, students, targets, strict=True)
        ]
        values, coordinates = [h for h, _ in compared], [t for _, t in compared]
        centres, rotations = [each.centre for each in self._losses], [each.rotation for each in self._losses]
        errors = centred_errors(centres, values, coordinates, self._matrices(rotations), rotations[0])
        return errors / constants(tuple(each.energy for each in self._losses), errors.dtype, errors.device)

    def _matrices(self, rotations: Sequence[AnyRotation]) -> Tensor | Callable[[Tensor], Tensor]:
        if isinstance(rotations[0], ProcrustesRotation):
            return partial(update_rotations, cast(Sequence[ProcrustesRotation], rotations))
        return self.cayley(cast(Sequence[Rotation], rotations))


def batched_layers(losses: Sequence[nn.Module]) -> list[list[int]]:
    """Which losses a `SubspaceBatch` can compute in one call: groups of two or more, by index.

    Left out are wide layers, other maps than rotations, other methods, and what the user changed.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, loss in enumerate(losses):
        if isinstance(loss, SubspaceAlignment) and (kind := _kind_of(loss)) is not None:
            groups.setdefault(kind, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _kind_of(loss: SubspaceAlignment) -> Hashable:
    """The kind that losses of one batch have in common; `None` for one that is computed by itself."""
    parts = (loss, loss.centre, loss.rotation)
    if (type(loss), type(loss.centre)) != (SubspaceAlignment, Centre) or is_changed(parts):
        return None
    if type(loss.rotation) not in (Rotation, ProcrustesRotation) or not loss.rotation.keeps_length:
        return None
    mean = loss.centre.running_mean
    if not is_narrow(len(mean), mean.device) or not loss.centre.eps:
        return None
    return type(loss.rotation), loss.centre.centring, loss.centre.eps, mean.dtype
