"""The squared error between rotated student features and teacher targets, from second moments of a batch.

Centring, rotation and squared error need K variances and one `(K', K)` matrix of the features. So the features are
read a few times in all, no scaled or rotated copies of them are kept for the backward pass, and what is left, of the
size of the matrices, is done for all layers at once: small layers cost calls, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subdistill_hf.moments import average_over_processes


def aligned_errors(
    values: Sequence[Tensor],
    targets: Sequence[Tensor],
    matrices: Tensor | Callable[[Tensor], Tensor],
    centres: Sequence[Tensor] | None = None,
    divide: bool = False,
    eps: float = 1e-5,
    keeps_length: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compare student features h with targets t under a linear map V, in each of L layers (METHOD step 2).

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
        this process but for a term whose mean over the processes is zero.
    """
    errors, *means = _AlignedErrors.apply(targets, matrices, centres, divide, eps, keeps_length, *values)
    return errors, tuple(means)


class _AlignedErrors(torch.autograd.Function):
    """With x = h - m, A = V D and means over positions: error = tr(A S Aᵀ) - 2 tr(A Cᵀ) + E ‖t‖².

    There S = E x xᵀ and C = E t xᵀ. Where m is the mean of h, the gradient through it adds a constant to the gradient
    at h: what takes the mean of t away.
    """

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
        """Centre first: float32 would lose the variance of a channel with a large mean."""
        widest, most = max(h.shape[1] for h in values), max(t.shape[1] for t in targets)
        cross = values[0].new_zeros(len(values), most, widest)
        gram = None if keeps_length else values[0].new_zeros(len(values), widest, widest)
        variance = values[0].new_zeros(len(values), widest) if gram is None else gram.diagonal(dim1=1, dim2=2)
        means, lengths, offsets = [], [], []
        kept: list[Tensor] = []
        shares = constants(tuple(1 / (h.shape[0] * h.shape[2]) for h in values), cross.dtype, cross.device)
        for index, (whole, target) in enumerate(zip(values, targets, strict=True)):
            h, t = _alike_in_memory(whole, target.detach())
            width, dimensions = h.shape[1], t.shape[1]
            mean = average_over_processes(h.mean(dim=(0, 2), keepdim=True))
            means.append(mean)
            lengths.append(torch.linalg.vector_norm(t))
            x = h - (mean if centres is None else centres[index][:, None])
            if centres is None:
                offsets.append(average_over_processes(t.mean(dim=(0, 2))))
            if gram is None:
                _sums_of_squares(x, variance[index, :width])
            else:
                _sum_of_products(x, x, gram[index, :width, :width])
            _sum_of_products(t, x, cross[index, :dimensions, :width])
            kept += [x, t]
        cross *= shares[:, None, None]
        if gram is None:
            variance *= shares[:, None]
        else:
            gram *= shares[:, None, None]
        scale = torch.rsqrt(average_over_processes(variance) + eps)[:, None] if divide else None
        rotation = matrices if isinstance(matrices, Tensor) else matrices(cross if scale is None else cross * scale)
        scaled = rotation
        if scale is not None:
            scaled = rotation * scale
            variance = variance * scale[:, 0].square()
        image = None if gram is None else scaled @ gram
        # both by channel
        length = variance if image is None else torch.sum(image * scaled, dim=1)
        overlap = torch.sum(cross * scaled, dim=1)
        slope = length - overlap
        errors = torch.addcmul(torch.sum(slope - overlap, dim=1), torch.stack(lengths).square_(), shares)
        ctx.save_for_backward(*kept, scaled, scale, cross, image, slope, shares, *offsets)
        ctx.learned = rotation is matrices
        ctx.shapes = [(h.shape, h.is_contiguous()) for h in values]
        batch_means = tuple(mean.flatten() for mean in means)
        ctx.mark_non_differentiable(*batch_means)
        ctx.set_materialize_grads(False)  # of the means
        return errors, *batch_means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
        """At x the gradient is 2/N (AᵀA x - Aᵀt); D and m add terms in x and a constant."""
        if gradient is None:
            return (None,) * (6 + len(ctx.shapes))
        count = len(ctx.shapes)
        kept, (scaled, scale, cross, image, slope, shares, *offsets) = (
            ctx.saved_tensors[: 2 * count],
            ctx.saved_tensors[2 * count :],
        )
        step = (gradient * 2)[:, None]
        by_matrices = None
        if ctx.learned:
            by_matrices = (-cross if image is None else image - cross) * step[:, :, None]
            by_matrices = by_matrices if scale is None else by_matrices * scale
        step = step * shares[:, None]
        pull = scaled.mT * -step[:, :, None]  # of t
        own = torch.zeros_like(slope)  # of x, by channel
        if scale is not None:
            own = scale[:, 0].square() * average_over_processes(-slope)
        if image is None:  # VᵀV = 1
            own = own + (1 if scale is None else scale[:, 0].square())
        own = own * step
        between = None if image is None else torch.diag_embed(own) - pull @ scaled  # of x, across channels
        by_values = []
        for index, (shape, contiguous) in enumerate(ctx.shapes):
            x, t = kept[2 * index : 2 * index + 2]
            width, dimensions = x.shape[1], t.shape[1]
            of_target = pull[index, :width, :dimensions]
            of_mean = -(of_target @ offsets[index]) if offsets else x.new_zeros(width)
            by_x = _affine(of_mean, of_target, t)
            if between is None:
                by_x.addcmul_(x, own[index, :width, None])
            else:
                by_x += torch.matmul(between[index, :width, :width], x)
            if by_x.shape != shape:
                images, _, positions = shape
                by_x = by_x.mT.view(images, positions, width).mT
            # a gradient in another layout would slow down the layers that it goes to
            by_values.append(by_x.contiguous() if contiguous else by_x)
        return None, by_matrices, *[None] * 4, *by_values


@cache  # without a limit: a CUDA graph reads what it has recorded, of a few bytes each
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Some numbers as a tensor; made once, for no step to wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _sums_of_squares(x: Tensor, out: Tensor) -> None:
    """Of each channel of `(B, K, P)`, into `(K,)`: in one kernel, or on a CPU in the steps that are fast there."""
    if x.device.type == "cpu":
        torch.sum(x.square(), dim=(0, 2), out=out)
    else:
        torch.linalg.vector_norm(x, dim=(0, 2), out=out).square_()


def _sum_of_products(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Σ l rᵀ over images and positions of `(B, K', P)` and `(B, K, P)`, into `(K', K)`."""
    if len(left) == 1:
        torch.mm(left[0], right[0].T, out=out)
    else:
        torch.sum(torch.bmm(left, right.mT), dim=0, out=out)


def _affine(constant: Tensor, matrix: Tensor, values: Tensor) -> Tensor:
    """c + M v at each position: `(K,)`, `(K, K')` and `(B, K', P)` to `(B, K, P)` that lies in memory as v does."""
    if len(values) == 1:
        return torch.addmm(constant, values[0].T, matrix.T).T[None]
    return torch.baddbmm(constant[:, None], matrix.expand(len(values), -1, -1), values)


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
