"""The squared error between rotated student features and teacher targets, from second moments of a batch.

Centring, rotation and squared error need K variances and one `(K, K')` matrix of the features. So the features are
read a few times in all, and no scaled or rotated copies of them are made or kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subdistill_hf.moments import average_over_processes, several_processes


def aligned_error(
    values: Tensor,
    target: Tensor,
    matrix: Tensor,
    centre: Tensor | None = None,
    divide: bool = False,
    eps: float = 1e-5,
    keeps_length: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compare student features h with targets t under a linear map V (METHOD step 2).

    Args:
        values: h, `(B, K, P)`.
        target: t, `(B, K', P)`; no gradient flows to it.
        matrix: V, `(K', K)`.
        centre: m, `(K,)`; by default the mean of h over images, positions and processes, with gradients through it.
        divide: let D divide by the standard deviation of the batch (of all processes), with gradients; else D = 1.
        eps: added to the variance.
        keeps_length: VᵀV = 1, so that ‖V x‖ = ‖x‖ needs no covariances between channels.

    Returns:
        The mean over images and positions of ‖V D(h - m) - t‖², a scalar whose gradients flow to h and V, and the mean
        of h over images, positions and processes, `(K,)`.
    """
    error, mean = _AlignedError.apply(values, target.detach(), matrix, centre, divide, eps, keeps_length)
    return error, mean


class _AlignedError(torch.autograd.Function):
    """With x = h - m, A = V D and sums over N positions: N error = tr(A S Aᵀ) - 2 tr(A Cᵀ) + Σ ‖t‖².

    There S = Σ x xᵀ and C = Σ t xᵀ.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        target: Tensor,
        matrix: Tensor,
        centre: Tensor | None,
        divide: bool,
        eps: float,
        keeps_length: bool,
    ) -> tuple[Tensor, Tensor]:
        """Centre first: float32 would lose the variance of a channel with a large mean."""
        h, t = _alike_in_memory(values, target)
        count = h.shape[0] * h.shape[2]
        own_mean = h.mean(dim=2).mean(dim=0)
        mean = average_over_processes(own_mean)
        x = h - (mean if centre is None else centre)[:, None]
        squares = torch.linalg.vector_norm(x, dim=2).square().sum(dim=0)
        scaled, scale = matrix, None
        if divide:
            scale = torch.rsqrt(average_over_processes(squares / count) + eps)
            scaled = matrix * scale
            squares = squares * scale.square()
        cross = torch.bmm(t, x.mT).sum(dim=0)
        image = None if keeps_length else scaled @ torch.bmm(x, x.mT).sum(dim=0)
        # both by channel
        length = squares if image is None else torch.sum(image * scaled, dim=0)
        overlap = torch.sum(cross * scaled, dim=0)
        slope = length - overlap
        error = (torch.sum(slope - overlap) + torch.linalg.vector_norm(t).square()) / count
        offset = own_mean - mean if several_processes() else None
        ctx.save_for_backward(x, t, scaled, scale, cross, image, slope, offset)
        ctx.follows_mean, ctx.shape, ctx.contiguous = centre is None, values.shape, values.is_contiguous()
        ctx.mark_non_differentiable(mean)
        return error, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """At x the gradient is 2/N (AᵀA x - Aᵀt); D and m add terms in x and a constant."""
        x, t, scaled, scale, cross, image, slope, offset = ctx.saved_tensors
        count = x.shape[0] * x.shape[2]
        step = gradient * (2 / count)
        by_matrix = (-cross if image is None else image - cross) * step
        pull = scaled * step  # of t
        own = torch.zeros_like(slope)  # of x, by channel
        if scale is not None:
            by_matrix = by_matrix * scale
            own = scale.square() * average_over_processes(slope / -count)
        if image is None:  # VᵀV = 1
            own = own + (1 if scale is None else scale.square())
        own = own * step
        between = None if image is None else scaled.T @ pull + torch.diag(own)  # of x, across channels
        constant = torch.zeros_like(own)
        if ctx.follows_mean:
            constant = t.mean(dim=2).mean(dim=0) @ pull
            if offset is not None:
                constant = constant - (own * offset if between is None else between @ offset)
            constant = average_over_processes(constant)
        if between is None:
            by_values = torch.addcmul(constant[:, None], x, own[:, None])
        else:
            by_values = torch.empty_like(x)
            torch.baddbmm(constant[:, None], between.expand(len(x), -1, -1), x, out=by_values)
        by_values.baddbmm_(pull.T.expand(len(x), -1, -1), t, alpha=-1)
        if by_values.shape != ctx.shape:
            images, width, positions = ctx.shape
            by_values = by_values.mT.view(images, positions, width).mT
        if ctx.contiguous:  # a gradient in another layout would slow down the layers that it goes to
            by_values = by_values.contiguous()
        return by_values, None, by_matrix, *[None] * 4


def _alike_in_memory(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Images of positions `(B, K, P)`, or one image of all positions `(1, K, B P)`, whichever lies in memory so.

    Many channels of few positions are made one image: a product for each image would be larger than the image.
    """
    channels = max(values.shape[1], target.shape[1])
    if values.is_contiguous() and channels <= 2 * values.shape[2]:
        return values, target
    return _one_image(values), _one_image(target)


def _one_image(values: Tensor) -> Tensor:
    """`(B, K, P)` as `(1, K, B P)`, channels last: no copy for tokens and channels-last maps."""
    return values.mT.reshape(1, -1, values.shape[1]).mT
