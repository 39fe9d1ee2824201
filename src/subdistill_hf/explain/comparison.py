"""Teacher and student, explained on the same images: heat maps of both, a ceiling, and pixel flipping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subdistill_hf.config.explainers import EXPLAINERS
from subdistill_hf.explain.explainers import GRID
from subdistill_hf.explain.faithfulness import flipping_curve, random_rankings, rankings_of
from subdistill_hf.explain.heatmaps import on_grid, seen_by
from subdistill_hf.explain.networks import BATCH, ExplainedNetwork
from subdistill_hf.explain.pair import Pair
from subdistill_hf.explain.relevance import Explained, explain_images
from subdistill_hf.reporting.explained import RANDOM, FlippingCurve


@dataclass(frozen=True)
class Both:
    """Teacher and student, explained.

    Attributes:
        teacher: the teacher's explanations.
        student: the student's.
        again: the teacher's heat maps when it is explained a second time, `(N, G, G)`.
        heatmaps: of teacher and student on the grid, `(N, G, G)` each.
    """

    teacher: Explained
    student: Explained
    again: Tensor
    heatmaps: tuple[Tensor, Tensor]


def explain_both(
    pair: Pair, images: Sequence[Tensor], targets: Sequence[int], method: str, seed: int, show: bool = True
) -> Both:
    """Explain teacher and student, and the teacher a second time.

    Args:
        pair: teacher and student.
        images: N byte images.
        targets: N classes.
        method: a key of `EXPLAINERS`.
        seed: of a sampled method; each of the three explanations has one of its own.
        show: show bars.
    """
    teacher, again = explain_twice(pair.teacher, images, targets, method, seed, show)
    # a seed of its own: with the teacher's, both would share what is drawn, and seem more alike than they are
    student = explain_images(pair.student, images, targets, method, seed + 2, show=show)
    return Both(
        teacher,
        student,
        heatmaps_of(pair.teacher, again, images),
        (heatmaps_of(pair.teacher, teacher.relevance, images), heatmaps_of(pair.student, student.relevance, images)),
    )


def explain_twice(
    network: ExplainedNetwork, images: Sequence[Tensor], targets: Sequence[int], method: str, seed: int, show: bool
) -> tuple[Explained, Tensor]:
    """Explain a network, and once more for a ceiling: with the next seed, or on mirrored images.

    Args:
        network: the network.
        images: N byte images.
        targets: N classes.
        method: a key of `EXPLAINERS`.
        seed: of a sampled method.
        show: show bars.

    Returns:
        The explanations, and the relevances of the second time `(N, H, W)`, mirrored back.
    """
    found = explain_images(network, images, targets, method, seed, show=show)
    if EXPLAINERS[method].sampled:
        return found, explain_images(network, images, targets, method, seed + 1, show=show).relevance
    mirrored = [image.flip(2) for image in images]
    return found, explain_images(network, mirrored, targets, method, seed, show=show).relevance.flip(2)


def heatmaps_of(network: ExplainedNetwork, relevance: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Relevances on the grid, in the frame of the images, `(N, G, G)`."""
    sizes = dict.fromkeys(image.shape[1:] for image in images)
    seen = {size: seen_by(network.classifier.processor, *size) for size in sizes}
    maps = zip(relevance, images, strict=True)
    return torch.cat([on_grid(one[None], seen[image.shape[1:]], GRID, GRID) for one, image in maps])


def share_on_mark(network: ExplainedNetwork, relevance: Tensor, mark: Tensor) -> float:
    """The share of an image's absolute relevance `(H', W')` that lies on its mark, a mask of the image `(H, W)`."""
    absolute = relevance.abs()[None]
    on_image = on_grid(absolute, seen_by(network.classifier.processor, *mark.shape), *mark.shape)[0]
    return float(on_image[mark].sum() / absolute.sum()) if float(absolute.sum()) > 0 else 0.0


def curves(
    pair: Pair, images: Sequence[Tensor], targets: Sequence[int], both: Both, method: str, seed: int
) -> tuple[FlippingCurve, ...]:
    """The pixel-flipping curves of teacher and student, by their heat maps and at random."""
    found = []
    for whose, network, explained in (
        ("teacher", pair.teacher, both.teacher),
        ("student", pair.student, both.student),
    ):
        order = rankings_of(explained.relevance)
        for name, rankings in ((method, order), (RANDOM, random_rankings(len(order), order.shape[1], seed))):
            found.append(flipping_curve(network, whose, name, images, targets, rankings, BATCH))
    return tuple(found)
