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
    """With x = D(h - m): error = tr(V S Vᵀ) - 2 tr(V C) + mean ‖t‖², where S = mean x xᵀ and C = mean x tᵀ."""

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
        h, t = _rows(values), _rows(target)
        count = len(h)
        own_mean = h.mean(dim=0)
        mean = average_over_processes(own_mean)
        centred = h - (mean if centre is None else centre)
        squares = centred.square().mean(dim=0)
        cross = (centred.T @ t).div_(count)
        products = None if keeps_length else (centred.T @ centred).div_(count)
        scale = None
        if divide:
            scale = torch.rsqrt(average_over_processes(squares) + eps)
            cross = cross.mul_(scale[:, None])
            squares = squares * scale.square()
            products = None if products is None else products * torch.outer(scale, scale)
        image = None if products is None else matrix @ products
        length = squares.sum() if image is None else torch.sum(image * matrix)
        error = length - 2 * torch.sum(matrix.T * cross) + torch.linalg.vector_norm(t).square() / count
        offset = own_mean - mean if several_processes() else None
        ctx.save_for_backward(centred, t, matrix, cross, squares, scale, image, offset)
        ctx.follows_mean, ctx.shape = centre is None, values.shape
        ctx.mark_non_differentiable(mean)
        return error, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """At x the gradient is 2/N (VᵀV x - Vᵀt); D and m add terms in x and a constant."""
        centred, t, matrix, cross, squares, scale, image, offset = ctx.saved_tensors
        twice = 2 * gradient
        step = twice / len(centred)
        by_matrix = (-cross.T if image is None else image - cross.T) * twice
        pull = matrix if scale is None else matrix * scale  # of t
        own = torch.zeros_like(squares)  # of h - m, by channel
        if scale is not None:
            length = squares if image is None else torch.sum(matrix * image, dim=0)
            own = scale.square() * average_over_processes(torch.sum(matrix.T * cross, dim=1) - length)
        if image is None:  # VᵀV = 1
            own = own + (1 if scale is None else scale.square())
        between = None if image is None else pull.T @ pull + torch.diag(own)  # of h - m, across channels
        constant = torch.zeros_like(squares)
        if ctx.follows_mean:
            constant = t.mean(dim=0) @ pull
            if offset is not None:
                constant = constant - (own * offset if between is None else between @ offset)
            constant = average_over_processes(constant)
        if between is None:
            by_values = torch.addcmul(constant * step, centred, own * step)
        else:
            by_values = torch.addmm(constant * step, centred, between * step)
        by_values.addmm_(t, pull * -step)
        images, width, positions = ctx.shape
        return by_values.view(images, positions, width).transpose(1, 2), None, by_matrix, *[None] * 4


def _rows(values: Tensor) -> Tensor:
    """`(B, K, P)` as `(B P, K)`: no copy for tokens and channels-last maps."""
    return values.transpose(1, 2).reshape(-1, values.shape[1])
