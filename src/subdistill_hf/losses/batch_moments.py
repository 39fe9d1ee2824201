"""First and second moments of student features and teacher targets over a batch, for all layers in stacks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

MANY_POSITIONS = 64  # of an image: from here on a CPU sums its products by themselves faster


class BatchMoments:
    """Moments of the features h and targets t of L layers, over the images and positions of a batch.

    Stacks are as large as the largest layer, with zeros behind the others.

    Args:
        values: h of each layer, `(B, K, P)`.
        targets: t of each layer, `(B, K', P)`.
        covariances: take the covariances between channels of h, not their variances alone.

    Attributes:
        h: features of each layer as they lie in memory, images `(B, K, P)` or rows `(B P, K)`.
        t: targets of each layer, likewise.
        mean: of the features, `(L, K)`.
        variance: of the features, about their mean, `(L, K)`.
        covariance: of the features, `(L, K, K)`, or `None`.
        product: E t hᵀ, `(L, K', K)`.
        t_mean: of the targets, `(L, K')`.
        t_square: Σ ‖t‖² over images and positions, `(L,)`.
        shares: 1 / (B P), `(L,)`.
    """

    def __init__(self, values: Sequence[Tensor], targets: Sequence[Tensor], covariances: bool) -> None:
        zeros = values[0].new_zeros
        layers, width, dimensions = len(values), max(h.shape[1] for h in values), max(t.shape[1] for t in targets)
        self.mean, self.variance = zeros(2, layers, width).unbind()
        self.covariance = zeros(layers, width, width) if covariances else None
        self.product, self.t_mean = zeros(layers, dimensions, width), zeros(layers, dimensions)
        self.h, self.t, t_squares = [], [], []
        for index, (whole, target) in enumerate(zip(values, targets, strict=True)):
            h, t = _alike_in_memory(whole, target.detach())
            images, k, k_t = len(whole), whole.shape[1], target.shape[1]
            mean = self.mean[index, :k]
            if self.covariance is None:
                _means_and_variances(h, mean, self.variance[index, :k])
            else:
                _means(h, mean)
                centred = h - by_channel(mean, h)
                _sums_of_products(centred, centred, self.covariance[index, :k, :k], images)
            _means(t, self.t_mean[index, :k_t])
            t_squares.append(_sum_of_squares(t))
            _sums_of_products(t, h, self.product[index, :k_t, :k], images)
            self.h.append(h)
            self.t.append(t)
        self.shares = constants(
            tuple(1 / (h.shape[0] * h.shape[2]) for h in values), self.product.dtype, self.product.device
        )
        self.t_square = torch.stack(t_squares)
        self.product *= self.shares[:, None, None]
        if self.covariance is not None:
            self.covariance *= self.shares[:, None, None]
            self.variance = self.covariance.diagonal(dim1=1, dim2=2)

    def about(self, m: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the second moments of x = h - m for a point m, `(L, K)`.

        Returns:
            S = E x xᵀ, `(L, K, K)`, or `None` without covariances; its diagonal, `(L, K)`; C = E t xᵀ, `(L, K', K)`.
        """
        s, variance = self.covariance, self.variance
        if m is not self.mean:
            away = self.mean - m
            variance = variance + away.square()
            s = None if s is None else torch.baddbmm(s, away[:, :, None], away[:, None])
        return s, variance, torch.baddbmm(self.product, self.t_mean[:, :, None], m[:, None], alpha=-1)


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


def by_channel(numbers: Tensor, like: Tensor) -> Tensor:
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
    x = values - by_channel(means, values)
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


def plus_product(values: Tensor, matrix: Tensor, others: Tensor) -> Tensor:
    """v + M w at each position, with M `(K, K')`; v is `(K,)` by channel, or of each position and then overwritten."""
    into = values if values.dim() == others.dim() else None
    if others.dim() == 2:
        return torch.addmm(values, others, matrix.T, out=into)
    return torch.baddbmm(values, matrix.expand(len(others), -1, -1), others, out=into)
