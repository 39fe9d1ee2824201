"""The squared error between rotated student features and teacher targets, from second moments of a batch.

Centring, rotation and squared error need K variances and one `(K', K)` matrix of the features. So the features are
read a few times in all, no scaled or rotated copies of them are kept for the backward pass, and what is left, of the
size of the matrices, is done for all layers at once: small layers cost calls, not arithmetic.

Formulas and names are those of docs/method.md, "The aligned error"; matrices have small letters here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from subdistill_hf.core.distributed import average_over_processes
from subdistill_hf.losses.batch_moments import BatchMoments, by_channel, plus_product


def aligned_errors(
    values: Sequence[Tensor],
    targets: Sequence[Tensor],
    matrices: Tensor | Callable[[Tensor], Tensor],
    centres: Sequence[Tensor] | None = None,
    divide: bool = False,
    eps: float = 1e-5,
    keeps_length: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compare student features h with targets t under a linear map V, in each of L layers.

    Layers may be of different widths: stacked matrices are as large as the largest, with zeros behind the others.

    Args:
        values: h of each layer, `(B, K, P)`.
        targets: t of each layer, `(B, K', P)`; no gradient flows to them.
        matrices: V, `(L, K', K)`; or a function that makes V, without gradient, of the cross-moments E t (D (h - m))ᵀ,
            `(L, K', K)`. These are of the images of this process: it is the function that averages over processes.
        centres: m of each layer, `(K,)`; by default the mean of h over images, positions and processes, with gradients
            through it.
        divide: let D divide by the standard deviation of the batch (of all processes), with gradients; else D = 1.
        eps: added to the variance.
        keeps_length: VᵀV = 1 in every layer, so that ‖V x‖ = ‖x‖ needs no covariances between channels.

    Returns:
        The mean over images and positions of ‖V D(h - m) - t‖², `(L,)`, whose gradients flow to h and V, and the mean
        of h over images, positions and processes in each layer, `(K,)`. With several processes an error is that of
        this process.
    """
    errors, *means = _AlignedErrors.apply(targets, matrices, centres, divide, eps, keeps_length, *values)
    return errors, tuple(means)


class _AlignedErrors(torch.autograd.Function):
    """With x = h - m and A = V D: error = tr(A S Aᵀ) - 2 tr(A Cᵀ) + E ‖t‖², for S = E x xᵀ and C = E t xᵀ."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Sequence[Tensor],
        matrices: Tensor | Callable[[Tensor], Tensor],
        centres: Sequence[Tensor] | None,
        divide: bool,
        eps: float,
        keeps_length: bool,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        """Read each layer's features and targets, then combine all layers' moments at once."""
        batch = BatchMoments(values, targets, covariances=not keeps_length)
        mean = average_over_processes(batch.mean)
        m = mean if centres is None else pad_sequence(list(centres), batch_first=True)
        s, variance, c = batch.about(m)
        d = torch.rsqrt(average_over_processes(variance) + eps)[:, None] if divide else None
        v = matrices if isinstance(matrices, Tensor) else matrices(c if d is None else c * d)
        a = v if d is None else v * d
        a_s = None if s is None else a @ s
        # the diagonals of AᵀA S and of AᵀC, `(L, K)`
        without_covariances = variance if d is None else variance * d[:, 0].square()  # VᵀV = 1
        p = without_covariances if a_s is None else torch.sum(a_s * a, dim=1)
        q = torch.sum(c * a, dim=1)
        g = p - q
        errors = torch.addcmul(torch.sum(g - q, dim=1), batch.t_square, batch.shares)
        errors = _within_bounds(errors, p.sum(dim=1), batch.t_square * batch.shares)
        t_mean = average_over_processes(batch.t_mean) if centres is None else None
        ctx.save_for_backward(*batch.h, *batch.t, a, d, c, a_s, g, batch.shares, m, t_mean)
        ctx.needs_v = v is matrices
        ctx.shapes = [(h.shape, h.is_contiguous()) for h in values]
        ctx.set_materialize_grads(False)  # of the means
        means = [each[: h.shape[1]] for each, h in zip(mean.unbind(), values, strict=True)]
        ctx.mark_non_differentiable(*means)
        return errors, *means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
        """At x the gradient is 2/N (AᵀA x - Aᵀt - D² g x); what flows through m is a constant."""
        if gradient is None:
            return (None,) * (6 + len(ctx.shapes))
        *features, a, d, c, a_s, g, shares, m, t_mean = ctx.saved_tensors
        step = (gradient * 2)[:, None]
        by_v = None
        if ctx.needs_v:
            by_v = (-c if a_s is None else a_s - c) * step[:, :, None]
            by_v = by_v if d is None else by_v * d
        step = step * shares[:, None]
        minus_a = a.mT * -step[:, :, None]  # what t is multiplied by
        diagonal = torch.zeros_like(g)  # what x is multiplied by, channel by channel
        if d is not None:
            diagonal = d[:, 0].square() * average_over_processes(-g)
        if a_s is None:  # AᵀA = D²
            diagonal = diagonal + (1 if d is None else d[:, 0].square())
        diagonal = diagonal * step
        between = None if a_s is None else torch.diag_embed(diagonal) - minus_a @ a  # ... and across channels
        constant = -(diagonal * m if between is None else torch.bmm(between, m[:, :, None])[:, :, 0])
        if t_mean is not None:
            constant = torch.baddbmm(constant[:, :, None], minus_a, t_mean[:, :, None], alpha=-1)[:, :, 0]
        by_values = []
        constants, diagonals, matrices = constant.unbind(), diagonal.unbind(), minus_a.unbind()
        for index, (shape, contiguous) in enumerate(ctx.shapes):
            h, t = features[index], features[index + len(ctx.shapes)]
            images, width, positions = shape
            by_h = by_channel(constants[index][:width], h)
            if between is None:
                by_h = torch.addcmul(by_h, h, by_channel(diagonals[index][:width], h))
            else:
                by_h = plus_product(by_h, between[index, :width, :width], h)
            by_h = plus_product(by_h, matrices[index][:width, : t.shape[1]], t)
            if by_h.dim() == 2:
                by_h = by_h.view(images, positions, width).mT
            # a gradient in another layout would slow down the layers that it goes to
            by_values.append(by_h.contiguous() if contiguous else by_h)
        return None, by_v, *[None] * 4, *by_values


def _within_bounds(errors: Tensor, x_square: Tensor, t_square: Tensor) -> Tensor:
    """Keep each error E ‖A x - t‖² where E ‖A x‖² and E ‖t‖² allow it to be: from (√p - √t)² to (√p + √t)².

    Where the mean of h is many times its deviation, as in a training that diverges, rounding leaves nothing of C.
    """
    x_norm, t_norm = x_square.clamp_min_(0).sqrt_(), t_square.sqrt()
    return errors.clamp_((x_norm - t_norm).square_(), (x_norm + t_norm).square_())
