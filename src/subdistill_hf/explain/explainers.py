"""The explainers: each gives every pixel of an input its share of the evidence (docs/method.md, "Explanations")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Final

import torch
from torch import Tensor

from subdistill_hf.config.explainers import EXPLAINERS
from subdistill_hf.config.extras import require_extra
from subdistill_hf.explain.errors import ExplainError

Evidence = Callable[[Tensor, Tensor], Tensor]
"""Function of inputs `(B, c, H, W)` and target classes `(B,)`, to evidence `(B,)`."""

GRID: Final = 8
"""Rows and columns of the patches, and of the heat maps that are compared."""
NODES: Final = 2
"""Gradients that integrate one segment of the way from the baseline, at the nodes of Gauss and Legendre."""
FIRST_SEGMENTS: Final = 8
MOST_EVALUATIONS: Final = 4096
MOST_KEPT: Final = 2**25
"""Relevances of segments that are kept at once."""
PERMUTATIONS: Final = 25


@dataclass(frozen=True)
class Inputs:
    """Inputs of a network, and what is explained of them.

    Attributes:
        pixels: `(B, c, H, W)`.
        baseline: inputs that say nothing, `(B, c, H, W)`.
        targets: classes `(B,)`.
        differences: evidence minus that of the baseline, `(B,)`: what complete relevances add up to.
    """

    pixels: Tensor
    baseline: Tensor
    targets: Tensor
    differences: Tensor

    def at(self, places: Tensor) -> Inputs:
        """Those at some places of the batch."""
        return Inputs(self.pixels[places], self.baseline[places], self.targets[places], self.differences[places])


@dataclass(frozen=True)
class Relevance:
    """The relevance of pixels.

    Attributes:
        values: `(B, H, W)`, summed over the channels.
        evaluations: of the network, for the image that took most.
    """

    values: Tensor
    evaluations: int


@dataclass(frozen=True)
class Explainer(ABC):
    """A way to explain.

    Attributes:
        tolerance: how far the relevances of an image may be from adding up, in logits, before a complete method
            takes more steps.
        batch_size: inputs of one pass of the network.
        seed: of what is drawn.
    """

    tolerance: float = 0.0
    batch_size: int = 64
    seed: int = 0

    @abstractmethod
    def explain(self, evidence: Evidence, inputs: Inputs) -> Relevance:
        """The relevance of each pixel of some inputs, no more than `batch_size`."""


class GradientTimesInput(Explainer):
    """The gradient of the evidence times the difference to the baseline (Shrikumar et al., 2017).

    One pass. The relevances are those of a linear network, and add up to its evidence only there.
    """

    def explain(self, evidence: Evidence, inputs: Inputs) -> Relevance:
        """See `Explainer`."""
        pixels = inputs.pixels.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(evidence(pixels, inputs.targets).sum(), pixels)
        return Relevance(((inputs.pixels - inputs.baseline) * gradient).sum(dim=1), 1)


class IntegratedGradients(Explainer):
    """The mean gradient on the way from the baseline, times the difference to it (Sundararajan et al., 2017, eq. 1).

    The way is cut into segments, of which each is integrated by itself. While the relevances of an image do not add up
    within the tolerance, the segments that are off are halved, up to `MOST_EVALUATIONS` gradients. So many steps are
    taken where the gradient jumps, as it does at a layer norm of a grey patch, and few elsewhere.
    """

    def explain(self, evidence: Evidence, inputs: Inputs) -> Relevance:
        """See `Explainer`."""
        height, width = inputs.pixels.shape[2:]
        together = max(1, MOST_KEPT // (MOST_EVALUATIONS // NODES * height * width))
        found = [self._integrate(evidence, inputs.at(some)) for some in batches(len(inputs.pixels), together)]
        values = torch.cat([relevance.values for relevance in found])
        return Relevance(values, max(relevance.evaluations for relevance in found))

    def _integrate(self, evidence: Evidence, inputs: Inputs) -> Relevance:
        """The integrals of a few images, whose segments are all kept."""
        ends = torch.linspace(0, 1, FIRST_SEGMENTS + 1, dtype=inputs.pixels.dtype, device=inputs.pixels.device)
        count, images = len(inputs.pixels), torch.arange(len(inputs.pixels), device=ends.device)
        new = Segments(images.repeat_interleave(FIRST_SEGMENTS), ends[:-1].repeat(count), ends[1:].repeat(count))
        done = new.where(torch.zeros_like(new.image, dtype=torch.bool))
        spent = torch.zeros(count, dtype=torch.int64, device=ends.device)
        values, errors = torch.zeros_like(inputs.pixels[:0, 0]), torch.zeros_like(ends[:0])
        while True:
            found, off = self._segments(evidence, inputs, new)
            done, values, errors = done.and_these(new), torch.cat([values, found]), torch.cat([errors, off])
            spent += NODES * torch.bincount(new.image, minlength=count)
            totals = torch.zeros_like(inputs.differences).index_add(0, done.image, errors)
            rows = torch.bincount(done.image, minlength=count)
            halve = (errors.abs() > (self.tolerance / rows)[done.image]) & (totals.abs() > self.tolerance)[done.image]
            needed = 2 * NODES * torch.bincount(done.image[halve], minlength=count)
            halve &= (spent + needed <= MOST_EVALUATIONS)[done.image]
            if not halve.any():
                break
            new, done, values, errors = done.where(halve).halved(), done.where(~halve), values[~halve], errors[~halve]
        total = torch.zeros_like(inputs.pixels[:, 0]).index_add(0, done.image, values)
        return Relevance(total, int(spent.max()))

    def _segments(self, evidence: Evidence, inputs: Inputs, segments: Segments) -> tuple[Tensor, Tensor]:
        """The integral over each of N segments `(N, H, W)`, and how far it is from adding up `(N,)`."""
        from captum.attr import IntegratedGradients as Captum

        captum: Any = Captum(evidence)
        values, errors = [], []
        for rows in batches(len(segments.image), max(1, self.batch_size // NODES)):
            some = segments.where(rows)
            of = inputs.at(some.image)
            way = of.pixels - of.baseline
            start, end = (of.baseline + share[:, None, None, None] * way for share in (some.start, some.end))
            found = captum.attribute(end, baselines=start, additional_forward_args=of.targets, n_steps=NODES).sum(
                dim=1
            )
            with torch.no_grad():
                change = evidence(end, of.targets) - evidence(start, of.targets)
            values.append(found.detach())
            errors.append(found.detach().sum(dim=(1, 2)) - change)
        return torch.cat(values), torch.cat(errors)


@dataclass(frozen=True)
class Segments:
    """Parts of the ways from baselines to inputs.

    Attributes:
        image: the place of the input, `(N,)`.
        start: shares of the way, `(N,)`.
        end: where each part ends, `(N,)`.
    """

    image: Tensor
    start: Tensor
    end: Tensor

    def where(self, chosen: Tensor) -> Segments:
        """Some of them: a mask or places."""
        return Segments(self.image[chosen], self.start[chosen], self.end[chosen])

    def and_these(self, others: Segments) -> Segments:
        """These, and others behind them."""
        pairs = ((self.image, others.image), (self.start, others.start), (self.end, others.end))
        return Segments(*(torch.cat(pair) for pair in pairs))

    def halved(self) -> Segments:
        """Both halves of each."""
        middle = (self.start + self.end) / 2
        return Segments(self.image, self.start, middle).and_these(Segments(self.image, middle, self.end))


class ShapleySampling(Explainer):
    """Shapley values of patches, sampled (Castro et al., 2009; Strumbelj and Kononenko, 2010).

    A patch is given the mean change of the evidence when it takes the place of the baseline's, in the order of random
    permutations. Its pixels share that alike. The values of each permutation add up exactly.
    """

    def explain(self, evidence: Evidence, inputs: Inputs) -> Relevance:
        """See `Explainer`."""
        from captum.attr import ShapleyValueSampling

        height, width = inputs.pixels.shape[2:]
        patches = patches_of(height, width).to(inputs.pixels.device)
        count = int(patches.max()) + 1

        def of_coalitions(present: Tensor, pixels: Tensor, baseline: Tensor, targets: Tensor) -> Tensor:
            seen = present[:, patches.flatten()].reshape(-1, 1, height, width)
            return evidence(baseline + seen * (pixels - baseline), targets)

        sampler: Any = ShapleyValueSampling(of_coalitions)
        everything = torch.ones(len(inputs.pixels), count, device=patches.device, dtype=inputs.pixels.dtype)
        with torch.random.fork_rng(devices=[]):  # captum draws from torch's own generator
            torch.manual_seed(self.seed)
            found = sampler.attribute(
                everything,
                baselines=torch.zeros_like(everything),
                additional_forward_args=(inputs.pixels, inputs.baseline, inputs.targets),
                n_samples=PERMUTATIONS,
                perturbations_per_eval=max(1, self.batch_size // len(everything)),
            )
        each = found / torch.bincount(patches.flatten(), minlength=count)
        values = each[:, patches.flatten()].reshape(-1, height, width)
        return Relevance(values, PERMUTATIONS * count + 1)


def batches(count: int, size: int) -> Iterator[Tensor]:
    """The places 0 to `count` - 1, at most `size` at a time."""
    for first in range(0, count, size):
        yield torch.arange(first, min(first + size, count))


def patches_of(height: int, width: int, grid: int = GRID) -> Tensor:
    """The number of the patch of each pixel, row by row from 0 on, `(H, W)`.

    Args:
        height: of the input.
        width: of the input.
        grid: rows and columns, at most as many as there are pixels.
    """
    rows, columns = (torch.arange(side) * min(grid, side) // side for side in (height, width))
    return rows[:, None] * min(grid, width) + columns


def make_explainer(method: str, **settings: Any) -> Explainer:
    """The explainer of a name.

    Args:
        method: a key of `EXPLAINERS`.
        settings: the attributes of `Explainer`.

    Raises:
        ExplainError: for an unknown name.
        MissingExtraError: when the packages that it needs are not installed.
    """
    if method not in EXPLAINERS:
        raise ExplainError(f"unknown method {method!r}: expected one of {', '.join(EXPLAINERS)}")
    entry = EXPLAINERS[method]
    if entry.extra is not None:
        require_extra(entry.extra, f"method {method!r}")
    make: Any = resolve_name(entry.make) if isinstance(entry.make, str) else entry.make
    explainer: Explainer = make(**settings)
    return explainer
