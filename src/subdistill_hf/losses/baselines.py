"""The layer losses that SubDistill is compared with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subdistill_hf.core.activations import Features
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.losses.rotations import OrthonormalMap
from subdistill_hf.losses.subspace import same_positions

VID_INITIAL_VARIANCE = 5.0
VID_LEAST_VARIANCE = 1e-5


class FitNet(LayerLoss):
    """Mean over images and positions of ‖W h + b - a‖² (Romero et al., 2015, equation 3).

    The regressor is a 1x1 convolution without activation; the larger map is pooled to the smaller first. At unit scale
    the square is averaged over channels, not summed: predicting the mean costs 1.

    Args:
        teacher_width: channels d of the teacher layer.
        student_width: channels K of the student layer.
        activation: put a ReLU after the regressor (a variant).
    """

    replayable = True

    def __init__(self, teacher_width: int, student_width: int, activation: bool = False) -> None:
        super().__init__()
        self.regressor = nn.Conv1d(student_width, teacher_width, 1)
        self.activation = nn.ReLU() if activation else nn.Identity()
        self.energy = 1.0  # that the loss is divided by

    def bring_to_unit_scale(self, width: int, energy: float) -> None:
        """Scale the teacher's features, and divide by the energy that they have then."""
        super().bring_to_unit_scale(width, energy)
        self.energy = float(width)

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of `(B, K, P')` against `(B, d, P)`."""
        h, a = same_positions(student, target)
        error: Tensor = (self.activation(self.regressor(h)) - a).square().sum(dim=1)
        return error.mean() / self.energy


class AttentionTransfer(LayerLoss):
    """Mean squared difference of attention maps (Zagoruyko & Komodakis, 2017, activation-based, p = 2).

    The attention of a position is the mean square over its channels; an image's map has unit Euclidean norm. The
    larger map is pooled to the smaller first. Nothing is learned beside the student.
    """

    scale_free = True
    replayable = True

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of `(B, K, P')` against `(B, d, P)`."""
        h, a = same_positions(student, target)
        return F.mse_loss(_attention(h), _attention(a))


def _attention(values: Tensor) -> Tensor:
    """`(B, d, P)` to maps `(B, P)` of unit norm."""
    return F.normalize(values.square().mean(dim=1), dim=1)


class VariationalInformation(LayerLoss):
    """VID: mean of ((f(h) - a)²/v + log v)/2, a bound on mutual information (Ahn et al., 2019, equation 4).

    f is three 1x1 convolutions without bias, with ReLUs between; v, a variance for each teacher channel, is the
    softplus of a learned number plus 1e-5. The larger map is pooled to the smaller first.

    Args:
        teacher_width: channels d of the teacher layer.
        student_width: channels K of the student layer.
    """

    replayable = True

    def __init__(self, teacher_width: int, student_width: int) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv1d(student_width, teacher_width, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(teacher_width, teacher_width, 1, bias=False),
            nn.ReLU(),
            nn.Conv1d(teacher_width, teacher_width, 1, bias=False),
        )
        start = math.log(math.expm1(VID_INITIAL_VARIANCE - VID_LEAST_VARIANCE))
        self.log_scale = nn.Parameter(torch.full((teacher_width,), start))

    @property
    def variance(self) -> Tensor:
        """v of each teacher channel `(d,)`."""
        return F.softplus(self.log_scale) + VID_LEAST_VARIANCE

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of `(B, K, P')` against `(B, d, P)`."""
        h, a = same_positions(student, target)
        variance = self.variance[:, None]
        likelihood: Tensor = (self.regressor(h) - a).square() / variance + variance.log()
        return 0.5 * likelihood.mean()


class OrthogonalProjection(LayerLoss):
    """VkD: smooth L1 distance of projected and standardised averages over positions (Miles et al., 2024).

    The student's average over its grid is projected by a learned matrix `(d, K)` with orthonormal columns (rows
    where K > d), an orthogonal parametrisation; the teacher's is standardised over its channels.

    Args:
        teacher_width: channels d of the teacher layer.
        student_width: channels K of the student layer.
    """

    replayable = True

    def __init__(self, teacher_width: int, student_width: int) -> None:
        super().__init__()
        self.projection = OrthonormalMap(teacher_width, student_width)

    def identity(self) -> str:
        """The name of the target."""
        return "standardised average"

    def target(self, teacher: Features) -> Features:
        """The standardised average `(B, d, 1)`."""
        average = teacher.without_prefix().values.mean(dim=2) * self.teacher_scale
        return Features(F.layer_norm(average, average.shape[1:])[:, :, None], (1, 1))

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of `(B, K, P')` against what `target` gave."""
        projected = F.linear(student.without_prefix().values.mean(dim=2), self.projection.matrix)
        return F.smooth_l1_loss(projected, target.values[:, :, 0])


class SimilarityPreserving(LayerLoss):
    """SPKD: ‖G_s - G_t‖_F / B², with G the Gram matrix of the batch, rows of unit norm (Tung & Mori, 2019).

    Each image is the vector of all its channels and positions, whatever their number. The released code, which this
    follows, does not square the norm; the paper's equation 4 does. With several processes, each compares the
    images of its own batch.
    """

    scale_free = True
    replayable = True

    def loss(self, student: Features, target: Features) -> Tensor:
        """The loss of `(B, K, P')` against `(B, d, P)`."""
        difference = _similarities(student.values) - _similarities(target.values)
        # Its gradient is undefined where the two are equal, as they are for a batch of one image.
        norm = (difference.square().sum() + torch.finfo(difference.dtype).tiny).sqrt()
        return norm / len(difference) ** 2


def _similarities(values: Tensor) -> Tensor:
    """`(B, d, P)` to `(B, B)`."""
    images = values.flatten(1)
    return F.normalize(images @ images.T, dim=1)
