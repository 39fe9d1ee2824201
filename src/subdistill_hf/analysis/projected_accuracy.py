"""The accuracy of a teacher with one of its layers projected, for many projections in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from tqdm.auto import tqdm

from subdistill_hf.acceleration.batch_size import within_memory
from subdistill_hf.analysis.projection import projected
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.teacher.teacher import Teacher

TOGETHER = 8  # projections that share a pass up to their layer

Projections = tuple[LayerShape, Sequence[Subspace]]  # a layer, and what it is projected on, one after the other


@torch.no_grad()
def projected_accuracies(
    teacher: Teacher,
    projections: Sequence[Projections],
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int,
) -> tuple[float, list[list[float]]]:
    """The teacher's accuracy among the subtask's classes: as it is, and with each projection by itself.

    Each batch is prepared once and sees all projections. Each process reads its share of the images.

    Args:
        teacher: the teacher, restricted to the subtask.
        projections: layers, each with the subspaces that it is projected on.
        dataset: images with labels that are outputs of the restricted teacher.
        collate: gives `pixel_values` of the teacher, and `labels`.
        batch_size: images of one pass, fewer where memory is short.

    Returns:
        The accuracy without a projection, and for each layer the accuracy with each of its subspaces.
    """
    process = PartialState()
    share = torch.utils.data.Subset(dataset, range(process.process_index, len(dataset), process.num_processes))
    passes = [
        (layer, subspaces[start : start + together])
        for layer, subspaces in projections
        for together in [_together(teacher, layer, subspaces, collate([dataset[0], dataset[len(dataset) - 1]]))]
        for start in range(0, len(subspaces), together)
    ]
    total = 1 + sum(len(subspaces) for _, subspaces in projections)

    def count_correct(batch_size: int) -> Tensor:
        counts = torch.zeros(total, dtype=torch.int64, device=teacher.device)
        loader = torch.utils.data.DataLoader(share, batch_size=batch_size, collate_fn=collate)
        with tqdm(
            total=total * len(share),
            desc="projections",
            unit=" images",
            disable=not process.is_main_process,
            leave=False,
        ) as bar:
            for batch in loader:
                pixels, labels = (batch[name].to(teacher.device) for name in ("pixel_values", "labels"))
                found = [(teacher.logits(pixels).argmax(dim=1) == labels).sum()[None]]
                for layer, subspaces in passes:
                    logits = _projected_logits(teacher, layer, subspaces, pixels)
                    found.append((logits.argmax(dim=2) == labels).sum(dim=1))
                    bar.update(len(subspaces) * len(labels))
                counts += torch.cat(found)
        return counts

    accuracies = (reduce(within_memory(count_correct, batch_size), "sum").double() / len(dataset)).tolist()
    unprojected, rest = accuracies[0], iter(accuracies[1:])
    return unprojected, [[next(rest) for _ in subspaces] for _, subspaces in projections]


def _projected_logits(teacher: Teacher, layer: LayerShape, subspaces: Sequence[Subspace], pixels: Tensor) -> Tensor:
    """Subtask logits `(n, B, C)` with the layer projected on each of n subspaces."""
    with projected(teacher.model, layer.name, subspaces, layer.channels_last):
        logits = teacher.logits(pixels)
    return logits.reshape(len(subspaces), len(pixels), logits.shape[1])


def _together(
    teacher: Teacher, layer: LayerShape, subspaces: Sequence[Subspace], example: Mapping[str, Tensor]
) -> int:
    """How many projections of a layer can share the pass up to it: one where what is before the layer joins later."""
    pixels, pair = example["pixel_values"].to(teacher.device), [subspaces[0], subspaces[-1]]
    alone = torch.cat([_projected_logits(teacher, layer, [subspace], pixels) for subspace in pair])
    try:
        both = _projected_logits(teacher, layer, pair, pixels)
    except RuntimeError:  # two batches after the layer do not fit the one before it
        return 1
    return TOGETHER if torch.allclose(both, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())) else 1
