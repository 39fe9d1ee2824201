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
from torch.nn.utils.rnn import pad_sequence

from subdistill_hf.core.distributed import average_over_processes

MANY_POSITIONS = 64  # of an image: from here on a CPU sums its products by themselves faster


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
        this process.
    """
    errors, *means = _AlignedErrors.apply(targets, matrices, centres, divide, eps, keeps_length, *values)
    return errors, tuple(means)


class _AlignedErrors(torch.autograd.Function):
    """With x = h - m, A = V D and means over positions: error = tr(A S Aᵀ) - 2 tr(A Cᵀ) + E ‖t‖².

    There S = E x xᵀ and C = E t xᵀ = E t hᵀ - E t mᵀ: x itself is not kept. In float32 that costs digits of C, as many
    as a channel's mean has more than its deviation; S, of which it would cost twice as many, is that of centred
    features. Where m is the mean of h, the gradient through it adds a constant to the gradient at h: what takes the
    mean of t away.
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
        """Read each layer's features and targets, then go on with all layers' moments at once."""
        widths, dimensions = [h.shape[1] for h in values], [t.shape[1] for t in targets]
        shape = len(values), max(dimensions), max(widths)
        cross, target_mean = values[0].new_zeros(shape), values[0].new_zeros(shape[:2])
        own_mean, variance = values[0].new_zeros(2, shape[0], shape[2]).unbind()
        gram = None if keeps_length else values[0].new_zeros(shape[0], shape[2], shape[2])
        shares = constants(tuple(1 / (h.shape[0] * h.shape[2]) for h in values), cross.dtype, cross.device)
        lengths, kept = [], []
        for index, (whole, target) in enumerate(zip(values, targets, strict=True)):
            h, t = _alike_in_memory(whole, target.detach())
            width, dimension = widths[index], dimensions[index]
            mean = own_mean[index, :width]
            if gram is None:
                _means_and_variances(h, mean, variance[index, :width])
            else:
                _means(h, mean)
                x = h - _by_channel(mean, h)
                _sums_of_products(x, x, gram[index, :width, :width], len(whole))
            _means(t, target_mean[index, :dimension])
            lengths.append(_sum_of_squares(t))
            _sums_of_products(t, h, cross[index, :dimension, :width], len(whole))
            kept += [h, t]
        mean = average_over_processes(own_mean)
        centre = mean if centres is None else pad_sequence(list(centres), batch_first=True)
        cross = torch.baddbmm(cross * shares[:, None, None], target_mean[:, :, None], centre[:, None], alpha=-1)
        if gram is not None:
            gram *= shares[:, None, None]
            variance = gram.diagonal(dim1=1, dim2=2)
        if centre is not own_mean:
            away = own_mean - centre
            variance = variance + away.square()
            gram = None if gram is None else torch.baddbmm(gram, away[:, :, None], away[:, None])
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
        errors = torch.addcmul(torch.sum(slope - overlap, dim=1), torch.stack(lengths), shares)
        offset = average_over_processes(target_mean) if centres is None else None
        ctx.save_for_backward(*kept, scaled, scale, cross, image, slope, shares, centre, offset)
        ctx.learned = rotation is matrices
        ctx.shapes = [(h.shape, h.is_contiguous()) for h in values]
        ctx.set_materialize_grads(False)  # of the means
        means = [each[:width] for each, width in zip(mean.unbind(), widths, strict=True)]
        ctx.mark_non_differentiable(*means)
        return errors, *means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
        """At x the gradient is 2/N (AᵀA x - Aᵀt); D and m add terms in x and a constant."""
        if gradient is None:
            return (None,) * (6 + len(ctx.shapes))
        *kept, scaled, scale, cross, image, slope, shares, centre, offset = ctx.saved_tensors
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
        constant = -(own * centre if between is None else torch.bmm(between, centre[:, :, None])[:, :, 0])
        if offset is not None:
            constant = torch.baddbmm(constant[:, :, None], pull, offset[:, :, None], alpha=-1)[:, :, 0]
        pulls, owns, shifts = pull.unbind(), own.unbind(), constant.unbind()
        by_values = []
        for index, (shape, contiguous) in enumerate(ctx.shapes):
            h, t = kept[2 * index : 2 * index + 2]
            images, width, positions = shape
            by_h = _by_channel(shifts[index][:width], h)
            if between is None:
                by_h = torch.addcmul(by_h, h, _by_channel(owns[index][:width], h))
            else:
                by_h = _plus_product(by_h, between[index, :width, :width], h)
            by_h = _plus_product(by_h, pulls[index][:width, : t.shape[1]], t)
            if by_h.dim() == 2:
                by_h = by_h.view(images, positions, width).mT
            # a gradient in another layout would slow down the layers that it goes to
            by_values.append(by_h.contiguous() if contiguous else by_h)
        return None, by_matrices, *[None] * 4, *by_values


@cache  # without a limit: a CUDA graph reads what it has recorded, of a few bytes each
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Some numbers as a tensor; made once, for no step to wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _alike_in_memory(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Images of positions `(B, K, P)`, or rows of all positions `(B P, K)`, whichever lies in memory so.

    Many channels of few positions are made rows: a product for each image would be larger than the image.
    """
    channels = max(values.shape[1], target.shape[1])
    if values.is_contiguous() and channels <= 2 * values.shape[2]:
        return values, target
    return _rows(values), _rows(target)


def _rows(values: Tensor) -> Tensor:
    """`(B, K, P)` as `(B P, K)`: no copy for tokens and channels-last maps."""
    return values.mT.reshape(-1, values.shape[1])


# What follows is of images `(B, K, P)` or rows `(N, K)` alike.


def _means(values: Tensor, out: Tensor) -> None:
    """Of each channel, into `(K,)`."""
    torch.mean(values, dim=0 if values.dim() == 2 else (0, 2), out=out)


def _by_channel(numbers: Tensor, like: Tensor) -> Tensor:
    """A number for each channel, to be broadcast."""
    return numbers if like.dim() == 2 else numbers[:, None]


def _means_and_variances(values: Tensor, means: Tensor, variances: Tensor) -> None:
    """Of each channel, into `(K,)` each: in the kernels that are fast for where and how the values lie in memory."""
    rows, on_cpu = values.dim() == 2, values.device.type == "cpu"
    if rows and on_cpu:
        mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
        means.copy_(mean)
        variances.copy_(variance)
        return
    _means(values, means)
    x = values - _by_channel(means, values)
    dim = 0 if rows else (0, 2)
    if on_cpu:
        torch.mean(x.square_(), dim=dim, out=variances)
    else:
        torch.linalg.vector_norm(x, dim=dim, out=variances).square_().div_(values.numel() // len(means))


def _sum_of_squares(values: Tensor) -> Tensor:
    """Σ ‖v‖², a scalar: of millions of values the norm loses digits on a CPU."""
    if values.device.type == "cpu":
        flat = values.reshape(-1)
        return torch.dot(flat, flat)
    norm: Tensor = torch.linalg.vector_norm(values)
    return norm.square_()


def _sums_of_products(left: Tensor, right: Tensor, out: Tensor, images: int) -> None:
    """Σ l rᵀ over images and positions, of K' and of K channels, into `(K', K)`.

    On a CPU image by image where they have many positions: one sum over all takes longer there.
    """
    if left.dim() == 2:
        positions = len(left) // images
        if left.device.type != "cpu" or positions < max(MANY_POSITIONS, *out.shape):
            torch.mm(left.T, right, out=out)
            return
        left, right = (rows.view(images, positions, -1).mT for rows in (left, right))
    torch.sum(torch.bmm(left, right.mT), dim=0, out=out)


def _plus_product(values: Tensor, matrix: Tensor, others: Tensor) -> Tensor:
    """v + M w at each position, with M `(K, K')`; v is `(K,)` by channel, or of each position and then overwritten."""
    into = values if values.dim() == others.dim() else None
    if others.dim() == 2:
        return torch.addmm(values, others, matrix.T, out=into)
    return torch.baddbmm(values, matrix.expand(len(others), -1, -1), others, out=into)
