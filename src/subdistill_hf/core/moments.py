"""Streaming moments of activations and contexts: one pass, any number of images, any number of processes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from subdistill_hf.core.activations import Features
from subdistill_hf.core.distributed import several_processes
from subdistill_hf.errors import SubspaceError


@dataclass(eq=False)  # tensors have no single answer to `==`
class Moments:
    """First and second moments of one layer's activations a and contexts c, in float64.

    Updated batch by batch and merged across shards; the memory is three d-by-d matrices, whatever the number
    of images. Sums are kept about the running mean, so that a large mean costs no digits.

    Attributes:
        count: number of positions seen, n.
        mean: mean activation `(d,)`, μ.
        scatter: `(d, d)`, the sum of (a - μ)(a - μ)ᵀ.
        context_sum: `(d,)`, the sum of c.
        context_scatter: `(d, d)`, the sum of c cᵀ (not centred: docs/method.md, "Moments").
        cross_scatter: `(d, d)`, the sum of (a - μ) cᵀ.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    context_sum: Tensor
    context_scatter: Tensor
    cross_scatter: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        """Moments of nothing, for activations of `width` channels."""
        vector, matrix = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in (width, (width, width)))
        return cls(0, vector, matrix, vector.clone(), matrix.clone(), matrix.clone())

    @classmethod
    def of(cls, activation: Tensor, context: Tensor | None = None, check: bool = True) -> Moments:
        """The moments of one batch.

        Args:
            activation: `(B, d, P)`, or `(d, N)` positions side by side.
            context: the margin's derivative, same shape; `None` counts as zero.
            check: look at once whether the values are finite, for which an accelerator waits.

        Raises:
            SubspaceError: for values that are not finite.
        """
        a = _columns(activation)
        mean = a.mean(dim=1)
        centred = a - mean[:, None]
        scatter = centred @ centred.T
        if context is None:
            zero = torch.zeros_like(scatter)
            moments = cls(a.shape[1], mean, scatter, torch.zeros_like(mean), zero, zero.clone())
        else:
            c = _columns(context)
            moments = cls(a.shape[1], mean, scatter, c.sum(dim=1), c @ c.T, centred @ c.T)
        if check:
            moments.check_finite()
        return moments

    def check_finite(self) -> None:
        """Refuse moments of values that are not finite; sums stay so, whatever is added.

        Raises:
            SubspaceError: for values that are not finite.
        """
        if not (math.isfinite(float(self.scatter.trace())) and math.isfinite(float(self.context_scatter.trace()))):
            raise SubspaceError("an activation or a context is NaN or infinite: check the teacher and its input")

    @property
    def width(self) -> int:
        """Number of channels d."""
        return int(self.mean.shape[0])

    def update(self, activation: Tensor, context: Tensor | None = None, check: bool = True) -> None:
        """Add one batch, in place; arguments as for `of`."""
        self.add(Moments.of(activation, context, check))

    def add(self, other: Moments) -> None:
        """Add the positions of `other`, in place."""
        if other.count == 0:
            return
        total = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * (other.count / total)
        self.scatter = self.scatter + other.scatter
        self.cross_scatter = self.cross_scatter + other.cross_scatter
        for part in (self, other):  # sums about the part's mean become sums about the common mean
            shift = part.mean - mean
            self.scatter += part.count * torch.outer(shift, shift)
            self.cross_scatter += torch.outer(shift, part.context_sum)
        self.context_sum = self.context_sum + other.context_sum
        self.context_scatter = self.context_scatter + other.context_scatter
        self.count, self.mean = total, mean

    @classmethod
    def merged(cls, shards: Iterable[Moments]) -> Moments:
        """The moments of all shards together, as if one process had seen all positions."""
        shards = list(shards)
        total = cls.empty(shards[0].width, shards[0].mean.device)
        for shard in shards:
            total.add(shard)
        return total

    def synchronised(self) -> Moments:
        """The moments over all processes of the default process group (itself when there is only one)."""
        if not several_processes():
            return self
        names = ("mean", "scatter", "context_sum", "context_scatter", "cross_scatter")
        parts: list[list[Tensor]] = []
        for tensor in (
            torch.tensor([self.count], device=self.mean.device),
            *(getattr(self, name) for name in names),
        ):
            gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(gathered, tensor.contiguous())
            parts.append(gathered)
        return Moments.merged(Moments(int(shard[0]), *shard[1:]) for shard in zip(*parts, strict=True))

    @property
    def covariance(self) -> Tensor:
        """C_a = E[(a - μ)(a - μ)ᵀ], `(d, d)`."""
        return self.scatter / self.count

    @property
    def context_covariance(self) -> Tensor:
        """C_c = E[c cᵀ], `(d, d)`."""
        return self.context_scatter / self.count

    @property
    def cross_covariance(self) -> Tensor:
        """C_ac = E[(a - μ) cᵀ], `(d, d)`."""
        return self.cross_scatter / self.count


def _columns(values: Tensor) -> Tensor:
    """`(B, d, P)` or `(d, N)` as `(d, N)` in float64 (on the CPU where the device has no float64)."""
    if values.device.type == "mps":
        values = values.cpu()
    if values.dim() == 3:
        values = values.transpose(0, 1).flatten(1)
    return values.to(torch.float64)


def _drawn(images: int, places: int, positions: int, generator: torch.Generator, rank: int, processes: int) -> Tensor:
    """Positions of each image `(B, positions)`; for the images of other processes they are drawn too, and left out."""
    orders = [torch.randperm(places, generator=generator)[:positions] for _ in range(images * processes)]
    return torch.stack(orders[rank::processes])


def collect_moments(
    stream: Iterable[Mapping[str, tuple[Features, Features | None]]],
    without_prefix: Collection[str] = (),
    positions: int | None = None,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> dict[str, Moments]:
    """Accumulate the moments of every layer over a stream of activations and contexts.

    Args:
        stream: batches of layer name to `(activation, context)`, as `relevance.activations_and_contexts`
            yields.
        without_prefix: layers whose class and register tokens are left out, because the loss leaves them out.
        positions: how many positions to draw per image, without replacement and the same for a and c (the
            released code draws 20); all of them with `None`.
        seed: of the draw; it depends neither on how the images are batched nor on the number of processes.
        rank: number of this process, whose images are those of numbers rank, rank + processes, and so on.
        processes: that share the images.

    Raises:
        SubspaceError: when the stream is empty, or has values that are not finite.
    """
    moments: dict[str, Moments] = {}
    generators: dict[str, torch.Generator] = {}
    for batch in stream:
        for name, (activation, context) in batch.items():
            if name in without_prefix:
                activation = activation.without_prefix()
                context = None if context is None else context.without_prefix()
            a, c = activation.values, None if context is None else context.values
            if positions is not None and positions < a.shape[2]:
                generator = generators.setdefault(name, torch.Generator().manual_seed(seed))
                drawn = _drawn(a.shape[0], a.shape[2], positions, generator, rank, processes)
                index = drawn.to(a.device)[:, None, :].expand(-1, a.shape[1], -1)
                a, c = a.gather(2, index), None if c is None else c.gather(2, index)
            at_once = a.device.type == "cpu"
            if name in moments:
                moments[name].update(a, c, check=at_once)
            else:
                moments[name] = Moments.of(a, c, check=at_once)
    if not moments:
        raise SubspaceError("there are no images to estimate the subspaces from")
    merged = {name: layer.synchronised() for name, layer in moments.items()}
    for layer in merged.values():
        layer.check_finite()
    return merged
