"""What excites the leading directions of a layer's subspace: the places of images, and their relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.relevance import activations_and_contexts
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.other_images import OTHER
from subdistill_hf.explain.networks import BATCH
from subdistill_hf.reporting.explained import ExcitedPlace, ExplainedDirection
from subdistill_hf.teacher.teacher import Teacher

DIRECTIONS: Final = 3
PLACES: Final = 3


@dataclass(frozen=True)
class Excitation:
    """What some images do to the leading directions of a layer.

    Attributes:
        grid: rows and columns of the layer.
        largest: coordinate, relevance and place on the grid where the coordinate is largest, `(N, L, 3)`.
        smallest: the same where it is smallest.
        relevance: of all places of an image together, `(N, L)`.
        mean: coordinate over the places of an image, `(N, L)`.
        answers: of the teacher, `(N,)`.
    """

    grid: tuple[int, int]
    largest: Tensor
    smallest: Tensor
    relevance: Tensor
    mean: Tensor
    answers: Tensor


def excitations(
    teacher: Teacher,
    layers: Sequence[LayerShape],
    subspaces: Mapping[str, Subspace],
    images: Any,
    collate: ViewCollator,
) -> dict[str, Excitation]:
    """What images do to the leading directions of teacher layers, by layer, in one pass.

    The relevance of a place along a direction u is u·(a - μ) times u·c, where c is the gradient of the margin
    (docs/method.md, "Margin and context"). Class and register tokens have no place, and count in the sums alone.

    Args:
        teacher: the teacher.
        layers: of it.
        subspaces: of the layers, by name.
        images: N images.
        collate: makes the teacher's batches.
    """
    answers: list[Tensor] = []

    def forward(batch: Mapping[str, Tensor]) -> Tensor:
        logits = teacher.logits(batch["pixel_values"])
        answers.append(logits.detach().argmax(dim=1).cpu())
        return logits

    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, collate_fn=collate)
    stream = activations_and_contexts(
        forward,
        teacher.model,
        [layer.name for layer in layers],
        ({"pixel_values": batch["pixel_values"].to(teacher.device)} for batch in loader),
        [layer.name for layer in layers if layer.channels_last],
    )
    found: dict[str, list[tuple[Tensor, ...]]] = {layer.name: [] for layer in layers}
    for batch in stream:
        for layer in layers:
            activation, context = batch[layer.name]
            assert context is not None
            leading = subspaces[layer.name].truncated(min(DIRECTIONS, subspaces[layer.name].dimensions))
            coordinates = leading.project(activation.values.double()).cpu()
            along = torch.einsum("dk,bdp->bkp", leading.basis.double(), context.values.double().cpu())
            found[layer.name].append(_extremes(coordinates, coordinates * along, activation.prefix))
    excited = {}
    for layer in layers:
        largest, smallest, relevance, mean = (torch.cat([*parts]) for parts in zip(*found[layer.name], strict=True))
        excited[layer.name] = Excitation(layer.grid, largest, smallest, relevance, mean, torch.cat(answers))
    return excited


def _extremes(coordinates: Tensor, relevance: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest, smallest, relevance and mean of an `Excitation`, of `(B, L, P)` each."""
    on_grid, of_places = coordinates[:, :, prefix:], relevance[:, :, prefix:]
    ends = []
    for places in (on_grid.argmax(dim=2), on_grid.argmin(dim=2)):
        at = places[:, :, None]
        ends.append(torch.stack([on_grid.gather(2, at)[..., 0], of_places.gather(2, at)[..., 0], places.double()], 2))
    return ends[0], ends[1], relevance.sum(dim=2), on_grid.mean(dim=2)


def described_directions(
    excited: Excitation, subspace: Subspace, images: Any, classes: Sequence[str]
) -> list[ExplainedDirection]:
    """The leading directions of a layer, with the places that excite them most and least.

    Args:
        excited: of N images.
        subspace: of the layer.
        images: a subset of a `ViewDataset`.
        classes: of the student.
    """

    def places(ends: Tensor, number: int, descending: bool) -> tuple[ExcitedPlace, ...]:
        order = ends[:, number, 0].argsort(descending=descending, stable=True)[:PLACES].tolist()
        return tuple(_place(ends[image, number], image) for image in order)

    def _place(values: Tensor, image: int) -> ExcitedPlace:
        row, column = divmod(int(values[2]), excited.grid[1])
        label = images.dataset.labels[images.indices[image]]
        return ExcitedPlace(
            image=f"test image {images.indices[image]}",
            label=classes[label] if label >= 0 else None,
            row=row,
            column=column,
            coordinate=float(values[0]),
            relevance=float(values[1]),
        )

    answered = sorted(set(excited.answers.tolist()))
    names = (*classes, OTHER)
    return [
        ExplainedDirection(
            number=number + 1,
            energy=float(subspace.energies[number]),
            eigenvalue=float(subspace.eigenvalues[number]),
            relevance=float(excited.relevance[:, number].mean()),
            by_class={
                names[answer]: float(excited.mean[excited.answers == answer, number].mean()) for answer in answered
            },
            most=places(excited.largest, number, True),
            least=places(excited.smallest, number, False),
        )
        for number in range(excited.mean.shape[1])
    ]
