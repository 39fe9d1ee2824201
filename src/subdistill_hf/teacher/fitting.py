"""The moments of all teacher layers in one pass over the images, and the subspaces that they determine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from subdistill_hf.acceleration.batch_size import within_memory
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.activations import Features
from subdistill_hf.core.distributed import largest_of_processes
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.moments import Moments, collect_moments
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.relevance import activations_and_contexts
from subdistill_hf.core.subspaces import Subspace, fit_layer
from subdistill_hf.data.collate import Collate, divided_for_teacher, is_stream, teacher_pixels
from subdistill_hf.errors import DistillationError, SubspaceError
from subdistill_hf.formatting import memory
from subdistill_hf.teacher.sharding import first_of, repeating_last
from subdistill_hf.teacher.teacher import Teacher

Stream = Iterator[dict[str, tuple[Features, Features | None]]]

MOST_STREAMED = 100_000  # images; the moments of more would be the same
BATCH_BYTES = 2**30
"""Memory that the passes of a batch may take on a CPU, about. Moments are sums, so that batches may be of any size."""
MOST_OF_PIXELS = 200
"""How many times the memory of its pixels a network takes at most; a ResNet-50 takes about 170 times."""
MEASURED = 1.5
"""How much more was taken than what is counted: copies inside operations (peaks of the process, 2026-11-29)."""


@dataclass(frozen=True)
class FitRequest:
    """How the images are read for a fit.

    Attributes:
        positions: positions drawn per image; all with `None`.
        seed: of the draws, and of random bases.
        batch_size: images of one pass, fewer where memory is short.
        rank: number of this process.
        processes: number of processes, each of which reads its share of the images.
        most_streamed: images that are read of a stream, which may have no end.
        show: show a bar.
    """

    positions: int | None
    seed: int
    batch_size: int
    rank: int = 0
    processes: int = 1
    most_streamed: int = MOST_STREAMED
    show: bool = True

    @classmethod
    def for_training(cls, args: SubDistillConfig) -> FitRequest:
        """How a training with these arguments reads them; of a stream as many as it will take."""
        taken = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(
            positions=args.positions,
            seed=args.seed,
            batch_size=args.per_device_eval_batch_size,
            rank=args.process_index,
            processes=args.world_size,
            most_streamed=min(taken, MOST_STREAMED) if taken > 0 else MOST_STREAMED,
            show=args.process_index == 0 and not args.disable_tqdm,
        )


def fit_moments(
    teacher: Teacher,
    layers: Sequence[LayerShape],
    dataset: Any,
    collate: Collate,
    request: FitRequest,
    without_prefix: Collection[str] = (),
    with_context: bool = True,
    pooled: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Moments]:
    """The moments of teacher layers, by name (docs/method.md, "Moments").

    Each process reads its share of the images; the moments are merged, so the result is that of one process.

    Args:
        teacher: the teacher.
        layers: layers of it.
        dataset: images, as a training would read them.
        collate: gives `teacher_pixel_values`, or else `pixel_values`.
        request: how.
        without_prefix: names of layers whose class and register tokens are left out.
        with_context: `False` skips the backward pass, for bases that need no contexts.
        pooled: names of layers, with grids to which their activations are pooled; the moments of what is pooled,
            without contexts, come too, by `pooled_name`.

    Raises:
        DistillationError: when the images cannot be shared by the processes.
        SubspaceError: when there are no images, or values that are not finite.
    """
    share = _share(dataset, request)

    def stream(batch_size: int, share: Any, show: bool) -> Stream:
        batches = _batches(share, collate, batch_size, teacher.device, show)
        own = math.ceil(len(share) / batch_size) if teacher.is_sharded else None
        if own is not None:
            batches = repeating_last(batches, largest_of_processes(own))
        found = activations_and_contexts(
            forward=lambda batch: teacher.logits(batch["pixel_values"]),
            model=teacher.model,
            layers=[layer.name for layer in layers],
            batches=batches,
            channels_last=[layer.name for layer in layers if layer.channels_last],
            with_context=with_context,
        )
        return found if own is None else first_of(found, own)

    def moments(batch_size: int) -> dict[str, Moments]:
        found = _with_pooled(stream(batch_size, share, request.show), pooled or {}, without_prefix)
        drawn = request.positions, request.seed, request.rank, request.processes
        return collect_moments(found, without_prefix, *drawn)

    batch_size = request.batch_size
    if teacher.is_sharded:  # a process that began again with smaller batches would leave the others alone
        return moments(batch_size)
    if teacher.device.type == "cpu" and _may_take_much(share, collate, batch_size):
        needed = _bytes_of(stream(1, torch.utils.data.Subset(share, [0]), False), teacher.model)
        batch_size = max(1, min(batch_size, len(share), int(BATCH_BYTES / needed)))
        if request.show:
            tqdm.write(f"subspaces  {len(share)} images in batches of {batch_size}: {memory(batch_size * needed)}")
    return within_memory(moments, batch_size)


def pooled_name(layer: str) -> str:
    """The name of the moments of a layer's pooled activations."""
    return f"{layer} pooled"


def _with_pooled(
    stream: Stream, grids: Mapping[str, tuple[int, int]], without_prefix: Collection[str]
) -> Iterator[dict[str, tuple[Features, Features | None]]]:
    """Add to each batch the activations of some layers, pooled to their grids."""
    for batch in stream:
        added = {}
        for layer, grid in grids.items():
            activation = batch[layer][0]
            activation = activation.without_prefix() if layer in without_prefix else activation
            added[pooled_name(layer)] = (activation.pooled(grid), None)
        yield batch | added


def _may_take_much(share: Any, collate: Collate, batch_size: int) -> bool:
    """Whether a batch may take more than `BATCH_BYTES`, as far as its pixels tell; of a stream none is looked at."""
    if is_stream(share):
        return False
    pixels = teacher_pixels(collate([share[0]]))
    return bool(min(batch_size, len(share)) * pixels.nbytes * MOST_OF_PIXELS > BATCH_BYTES)


def _bytes_of(stream: Stream, model: nn.Module) -> float:
    """The memory that the passes of one image take, about, and its part in the moments.

    Args:
        stream: of that image alone.
        model: the teacher, whose own tensors are there anyway.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in itertools.chain(model.parameters(), model.buffers())}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        (layers,) = stream
    kept = sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)
    sizes = [found.values.numel() for found, _ in layers.values()]
    passes = 2 * sum(found.values.nbytes for found, _ in layers.values())  # the activations, and their contexts
    return MEASURED * (kept + passes + 3 * 8 * max(sizes))  # float64: activations, the same centred, contexts


def fit_pairs(
    teacher: Teacher,
    pairs: Sequence[LayerPair],
    dataset: Any,
    collate: Collate,
    request: FitRequest,
    basis: str,
    full_width: bool = False,
) -> dict[str, Subspace]:
    """The subspaces of the pairs' teacher layers, by name (docs/method.md, "Bases").

    Args:
        teacher: the teacher.
        pairs: teacher layers, with the dimensions that their students allow.
        dataset: images, as a training would read them.
        collate: gives `teacher_pixel_values`, or else `pixel_values`.
        request: how the images are read.
        basis: name of the basis.
        full_width: take all dimensions of a layer, not as many as its student has channels.

    Raises:
        DistillationError: when the images cannot be shared by the processes.
        SubspaceError: when the moments do not determine a subspace.
    """
    moments = _moments_of_pairs(teacher, pairs, dataset, collate, request, BASES[basis].needs_context)
    return {
        pair.teacher.name: fit_layer(
            pair.teacher.name,
            moments[pair.teacher.name],
            pair.teacher.width if full_width else pair.dimensions,
            basis,
            request.seed + number,
            moments.get(pooled_name(pair.teacher.name)),
        )
        for number, pair in enumerate(pairs)
    }


def fit_energies(
    teacher: Teacher, pairs: Sequence[LayerPair], dataset: Any, collate: Collate, request: FitRequest
) -> dict[str, float]:
    """The energies of the pairs' teacher layers where they are compared, by name: variances of all channels together.

    Args:
        teacher: the teacher.
        pairs: teacher layers, with the students' grids to which they are pooled.
        dataset: images, as a training would read them.
        collate: gives `teacher_pixel_values`, or else `pixel_values`.
        request: how the images are read.

    Raises:
        DistillationError: when the images cannot be shared by the processes.
        SubspaceError: when a layer does not vary.
    """
    moments = _moments_of_pairs(teacher, pairs, dataset, collate, request, with_context=False)
    energies = {}
    for pair in pairs:
        name = pair.teacher.name
        energies[name] = float(moments.get(pooled_name(name), moments[name]).covariance.trace())
        if not energies[name] > 0:
            raise SubspaceError(f"layer {name!r} does not vary over the images where it is compared")
    return energies


def _moments_of_pairs(
    teacher: Teacher,
    pairs: Sequence[LayerPair],
    dataset: Any,
    collate: Collate,
    request: FitRequest,
    with_context: bool,
) -> dict[str, Moments]:
    """The moments of the pairs' teacher layers, and of those that are pooled as they are then."""
    return fit_moments(
        teacher,
        [pair.teacher for pair in pairs],
        dataset,
        collate,
        request,
        without_prefix=[pair.teacher.name for pair in pairs if pair.drops_prefix],
        with_context=with_context,
        pooled={pair.teacher.name: pair.pooled_grid for pair in pairs if pair.pooled_grid is not None},
    )


def _share(dataset: Any, request: FitRequest) -> Any:
    """The images of this process."""
    if not is_stream(dataset):
        if len(dataset) < request.processes:
            raise DistillationError(f"{len(dataset)} images cannot be shared by {request.processes} processes")
        return torch.utils.data.Subset(dataset, range(request.rank, len(dataset), request.processes))
    if request.processes > 1:
        raise DistillationError(
            "a streamed dataset cannot be shared by several processes: pass subspaces=..., or for a method without "
            "subspaces target_scale='teacher'"
        )
    return _FirstOf(dataset, request.most_streamed)


class _FirstOf(torch.utils.data.IterableDataset[Any]):
    """The first images of a stream."""

    def __init__(self, stream: Any, images: int) -> None:
        self.stream, self.images = stream, images

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.stream), self.images)


def _batches(
    share: Any, collate: Collate, batch_size: int, device: torch.device, show: bool
) -> Iterator[dict[str, Tensor]]:
    """The teacher's pixels of every image once, in a fixed order."""
    total = len(share) if hasattr(share, "__len__") else None
    gather, pixels_of = divided_for_teacher(collate, device)
    with tqdm(total=total, desc="subspaces", unit=" images", disable=not show, leave=False) as bar:
        own = torch.Generator()  # the loader would draw from that of the training, whose dropout would be another
        for batch in torch.utils.data.DataLoader(share, batch_size=batch_size, collate_fn=gather, generator=own):
            pixels = pixels_of(batch)
            yield {"pixel_values": pixels}
            bar.update(len(pixels))
