"""The squared error between rotated student features and teacher targets, from second moments of a batch.

Centring, rotation and squared error need K variances and one `(K, K')` matrix of the features. So the features are
read a few times in all, and no scaled or rotated copies of them are made or kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subdistill_hf.subspaces import several_processes


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
        count = values.shape[0] * values.shape[2]
        own_mean = values.sum(dim=2).sum(dim=0).div_(count)
        mean = _average(own_mean)
        centred = values - (mean if centre is None else centre)[:, None]
        squares = torch.linalg.vector_norm(centred, dim=2).square_().sum(dim=0).div_(count)
        cross = _sum_of_products(centred, target).div_(count)
        products = None if keeps_length else _sum_of_products(centred, centred).div_(count)
        scale = None
        if divide:
            scale = torch.rsqrt(_average(squares) + eps)
            cross = cross.mul_(scale[:, None])
            squares = squares * scale.square()
            products = None if products is None else products * torch.outer(scale, scale)
        image = None if products is None else matrix @ products
        length = squares.sum() if image is None else torch.sum(image * matrix)
        error = length - 2 * torch.sum(matrix.T * cross) + torch.linalg.vector_norm(target).square() / count
        offset = own_mean - mean if several_processes() else None
        ctx.save_for_backward(centred, target, matrix, cross, squares, scale, image, offset)
        ctx.follows_mean = centre is None
        ctx.mark_non_differentiable(mean)
        return error, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """At x the gradient is 2/N (VᵀV x - Vᵀt); D and m add terms in x and a constant."""
        centred, target, matrix, cross, squares, scale, image, offset = ctx.saved_tensors
        twice = 2 * gradient
        step = twice / (centred.shape[0] * centred.shape[2])
        by_matrix = (-cross.T if image is None else image - cross.T) * twice
        pull = matrix.T if scale is None else matrix.T * scale[:, None]  # of t
        between = None if image is None else pull @ pull.T  # of h - m, across channels
        own: Tensor | None = None  # of h - m, by channel
        if scale is not None:
            length = squares if image is None else torch.sum(matrix * image, dim=0)
            own = scale.square() * _average(torch.sum(matrix.T * cross, dim=1) - length)
        if image is None:
            own = torch.ones_like(squares) if own is None else own + scale.square()
        constant = None
        if ctx.follows_mean:
            constant = pull @ target.mean(dim=(0, 2))
            if offset is not None:
                constant = constant - (0 if own is None else own * offset)
                constant = _average(constant - (0 if between is None else between @ offset))
            constant = (constant * step)[:, None]
        by_values = _affine(
            centred,
            target,
            None if own is None else (own * step)[:, None],
            None if between is None else between * step,
            pull * -step,
            constant,
        )
        return by_values, None, by_matrix, None, None, None, None


def _affine(
    centred: Tensor, target: Tensor, own: Tensor | None, between: Tensor | None, pull: Tensor, constant: Tensor | None
) -> Tensor:
    """own ⊙ x + between x + pull t + constant, at each position."""
    if between is not None:
        values = torch.matmul(between if own is None else between + torch.diag(own[:, 0]), centred)
        values = values if constant is None else values.add_(constant)
    else:
        assert own is not None
        values = centred * own if constant is None else torch.addcmul(constant, centred, own)
    if _tokens(target):
        return values + torch.matmul(target.transpose(1, 2), pull.T).transpose(1, 2)
    return values.baddbmm_(pull.expand(len(target), -1, -1), target)


def _average(statistic: Tensor) -> Tensor:
    """The average over processes; exact when they hold batches of one size, which `accelerate` ensures."""
    if not several_processes():
        return statistic
    total = statistic.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def _sum_of_products(first: Tensor, second: Tensor) -> Tensor:
    """Sum over images and positions of x yᵀ: `(B, K, P)` and `(B, K', P)` to `(K, K')`."""
    images, width, positions = first.shape
    both_tokens = _tokens(first) and _tokens(second)
    if both_tokens or width * second.shape[1] > 4 * positions * (width + second.shape[1]):
        rows = first.transpose(1, 2).reshape(images * positions, -1)
        return rows.T @ second.transpose(1, 2).reshape(images * positions, -1)
    return torch.bmm(first, second.transpose(1, 2)).sum(dim=0)


def _tokens(values: Tensor) -> bool:
    """Whether `(B, K, P)` lies in memory as tokens do, `(B, P, K)`."""
    return values.transpose(1, 2).is_contiguous()
