"""The loss of one layer pair in the teacher's subspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import Features, at_least_float32
from subdistill_hf.core.hooks import has_hooks
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.losses.aligned_error import aligned_errors, constants
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.losses.orthonormal import OrthonormalMap
from subdistill_hf.losses.procrustes import ProcrustesRotation, follow_together
from subdistill_hf.losses.rotations import Rotation, RotationKind, is_narrow, stacked_matrices

RotationOption = RotationKind | Literal["procrustes", "full_width"]
AnyRotation = Rotation | ProcrustesRotation | OrthonormalMap
Centring = Literal["mean", "batch_norm", "none"]
CENTRINGS: tuple[Centring, ...] = ("mean", "batch_norm", "none")


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
        return centred_errors([self], [values], [target], [rotation])[0]

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.running_mean.shape[0]}, centring={self.centring!r}"


def centred_errors(
    centres: Sequence[Centre], values: Sequence[Tensor], targets: Sequence[Tensor], rotations: Sequence[AnyRotation]
) -> Tensor:
    """Compare h, centred, with t in each of L layers of one centring: mean ‖V D(h - m) - t‖², `(L,)`.

    Args:
        centres: of each layer; in training their running means follow the batch.
        values: h of each layer, `(B, K, P)`.
        targets: t of each layer, `(B, K', P)`.
        rotations: of each layer, with V `(K', K)`; several must be of one kind and one mode, and keep lengths.
    """
    first = centres[0]
    from_batch = first.training and first.centring != "none"
    running = None if from_batch else [each.running_mean for each in centres]
    divide = from_batch and first.centring == "batch_norm"
    matrices, keeps_length = _matrices(rotations), rotations[0].keeps_length
    errors, means = aligned_errors(values, targets, matrices, running, divide, first.eps, keeps_length)
    if from_batch:
        for centre, mean in zip(centres, means, strict=True):
            centre.running_mean.lerp_(mean, centre.momentum)
    return errors


def _matrices(rotations: Sequence[AnyRotation]) -> Tensor | Callable[[Tensor], Tensor]:
    """V of each layer, or what makes them of a batch's cross-moments."""
    following = [each for each in rotations if isinstance(each, ProcrustesRotation) and each.training]
    if following:
        return partial(follow_together, following)
    if len(rotations) == 1:
        return rotations[0].matrix[None]
    return stacked_matrices(rotations)  # type: ignore[arg-type]


class SubspaceAlignment(LayerLoss):
    """L = (1/e)·mean over images and positions of ‖V(h - mean h) - Uᵀ(a - μ)‖² (METHOD step 2).

    Predicting the mean costs exactly 1 under centring `mean` at full resolution, whatever the layer.

    Args:
        subspace: the teacher layer's subspace, of dimension K' at most the student's width.
        student_width: channels K of the student layer.
        centring: see `Centre`.
        rotation: see `Rotation`; `"procrustes"`, see `ProcrustesRotation`; or `"full_width"`, an orthonormal map
            to a subspace that may be wider than the student, such as all of the teacher's space (an ablation).
        normalise: divide by the energy e (off is an ablation of the paper).
    """

    replayable = True

    def __init__(
        self,
        subspace: Subspace,
        student_width: int,
        centring: Centring,
        rotation: RotationOption = "orthogonal",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.subspace = subspace
        self.centre = Centre(student_width, centring)
        self.rotation: AnyRotation
        if rotation == "procrustes":
            self.rotation = ProcrustesRotation(student_width, subspace.dimensions)
        elif rotation == "full_width":
            self.rotation = OrthonormalMap(subspace.dimensions, student_width)
        else:
            self.rotation = Rotation(student_width, subspace.dimensions, rotation)
        self.energy = subspace.energy if normalise else 1.0

    def read(self, teacher: Features) -> Features:
        """t = Uᵀ(a - μ), `(B, K', P)`, of the teacher's features `(B, d, P)`."""
        return teacher.with_values(self.subspace.project(teacher.values))

    def identity(self) -> str:
        """Digest of the subspace."""
        return f"subspace {self.subspace.digest}"

    def compare(self, student: Features, target: Features) -> Tensor:
        """The loss of student features `(B, K, P')` against t `(B, K', P)`."""
        h, t = self.same_positions(student, target)
        error: Tensor = self.centre(h, t, self.rotation)
        return error / self.energy

    def same_positions(self, student: Features, target: Features) -> tuple[Tensor, Tensor]:
        """Student features and t at the same positions, in the precision of the rotation."""
        dtype = self.centre.running_mean.dtype
        h, t = same_positions(student, target)
        return h.to(dtype), t.to(dtype)

    @property
    def companions(self) -> tuple[Any, ...] | None:
        """What alignments that `compare_together` takes have in common; `None` for one that is compared by itself.

        That is one with a wide layer, another kind of map, a rotation in closed form that does not follow the batches,
        or parts that the user changed: subclasses, other methods, hooks.
        """
        parts: tuple[nn.Module, ...] = (self, self.centre, self.rotation)
        kind = type(self.rotation)
        if (type(self), type(self.centre)) != (SubspaceAlignment, Centre) or _changed(parts):
            return None
        if kind is not Rotation and not (kind is ProcrustesRotation and self.rotation.training):
            return None
        mean = self.centre.running_mean
        if not self.rotation.keeps_length or not is_narrow(len(mean), mean.device) or not self.centre.eps:
            return None
        return kind, self.centre.training, self.centre.centring, self.centre.eps, mean.dtype


def is_replayable(loss: nn.Module) -> bool:
    """Whether a CUDA graph can hold what a layer's loss does and how it reads the teacher: no part was changed."""
    return bool(vars(type(loss)).get("replayable")) and not _changed(list(loss.modules()))


def _changed(modules: Sequence[nn.Module]) -> bool:
    """Whether a module has hooks, or methods of its own."""
    return any(
        has_hooks(module) or not vars(module).keys().isdisjoint(("forward", "compare", "read", "target"))
        for module in modules
    )


def companions(alignments: Sequence[nn.Module]) -> list[list[int]]:
    """Which alignments are compared together: groups of two or more, by index."""
    groups: dict[Any, list[int]] = {}
    for index, alignment in enumerate(alignments):
        if isinstance(alignment, SubspaceAlignment) and (common := alignment.companions) is not None:
            groups.setdefault(common, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def compare_together(
    alignments: Sequence[SubspaceAlignment], students: Sequence[Features], targets: Sequence[Features]
) -> Tensor:
    """The losses `(L,)` of several layers whose `companions` are the same, as each `compare` gives it, in fewer calls.

    Args:
        alignments: one per layer.
        students: features `(B, K, P')` of each layer.
        targets: t `(B, K', P)` of each layer.
    """
    aligned = [
        alignment.same_positions(at_least_float32(student), at_least_float32(target))
        for alignment, student, target in zip(alignments, students, targets, strict=True)
    ]
    centres, rotations = [each.centre for each in alignments], [each.rotation for each in alignments]
    errors = centred_errors(centres, [h for h, _ in aligned], [t for _, t in aligned], rotations)
    return errors / constants(tuple(each.energy for each in alignments), errors.dtype, errors.device)
