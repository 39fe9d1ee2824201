"""What the head of a frozen classifier reads, recorded once for all images.

Where the head alone is trained, all that lies before it gives the same for an image in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from subdistill_hf.acceleration.batch_size import within_memory
from subdistill_hf.acceleration.memory_format import leave_channels_last, take_memory_format
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.activations import logits_of
from subdistill_hf.core.distributed import gathered
from subdistill_hf.core.hooks import evaluation_mode, hooked
from subdistill_hf.data.collate import Collate, divided_for_teacher
from subdistill_hf.data.views import ViewDataset

Heads = Mapping[str, nn.Module]
"""The modules that give a classifier its outputs, by name; most have one (`models.adapters.head_modules`)."""

CLOSE = 1e-4  # of the largest logit
CPU_BATCH = 32
"""The largest batch on a CPU: those of 64 took a quarter longer, for the memory that they ask the system for."""


@dataclass(frozen=True)
class HeadInputs:
    """What the heads read for N images, in the order of the images.

    Attributes:
        values: name of a head to its inputs `(N, d)`, or `(N, d, height, width)` of a convolution; float32, on the
            CPU.
        labels: `(N,)`.
    """

    values: Mapping[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor | slice) -> dict[str, Tensor]:
        """The inputs of some images, by the name of the head."""
        return {name: values[rows] for name, values in self.values.items()}

    @property
    def scale(self) -> float:
        """The root of the mean square of all values; 1 where all are 0."""
        count = sum(values.numel() for values in self.values.values())
        squares = sum(float(values.square().sum(dtype=torch.float64)) for values in self.values.values())
        return (squares / count) ** 0.5 or 1.0

    @classmethod
    def joined(cls, parts: Sequence[HeadInputs]) -> HeadInputs:
        """Those of several passes, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
        return cls(values, torch.cat([part.labels for part in parts]))


@dataclass(frozen=True)
class RecordingRequest:
    """How the images are read.

    Attributes:
        device: where the classifier runs.
        batch_size: images of one pass, fewer where memory is short.
        workers: processes that decode and augment images; with 0 this one does.
        rank: number of this process.
        processes: number of processes, each of which reads its share of the images.
        show: show a bar.
    """

    device: torch.device
    batch_size: int
    workers: int = 0
    rank: int = 0
    processes: int = 1
    show: bool = False

    @property
    def largest_batch(self) -> int:
        """The batch size that is tried first."""
        return min(self.batch_size, CPU_BATCH) if self.device.type == "cpu" else self.batch_size

    @classmethod
    def for_training(cls, args: SubDistillConfig) -> RecordingRequest:
        """How a training with these arguments reads them."""
        return cls(
            device=args.device,
            batch_size=args.per_device_eval_batch_size,
            workers=args.dataloader_num_workers,
            rank=args.process_index,
            processes=args.world_size,
            show=args.process_index == 0 and not args.disable_tqdm,
        )


def logits_of_heads(heads: Heads, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits `(B, C)` that heads give: the mean over the heads, and over the positions of a convolution.

    Args:
        heads: name to module.
        inputs: name to `(B, d)` or `(B, d, height, width)`.
    """
    outputs = [head(inputs[name]) for name, head in heads.items()]
    return torch.stack([each.flatten(2).mean(2) if each.dim() > 2 else each for each in outputs]).mean(0)


@torch.no_grad()
def bytes_of_inputs(model: nn.Module, heads: Heads, size: tuple[int, int]) -> int | None:
    """How much memory the inputs of one image take.

    Args:
        model: a classifier.
        heads: its heads.
        size: height and width of its images.

    Returns:
        Bytes; `None` where `logits_of_heads` does not give the model's logits, since something comes after the heads
        or passes them by. Such heads cannot be trained from what they read.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *size, generator=generator).to(next(model.parameters()).device)
    with evaluation_mode(model), _recorded(heads) as inputs:
        logits = logits_of(model(pixel_values=pixels))
    if inputs.keys() != heads.keys() or any(len(values) != len(pixels) for values in inputs.values()):
        return None
    found = logits_of_heads(heads, inputs)
    if found.shape != logits.shape or (found - logits).abs().max() > CLOSE * logits.abs().max():
        return None
    return sum(values[0].numel() * torch.float32.itemsize for values in inputs.values())


@torch.no_grad()
def record_head_inputs(
    model: nn.Module,
    heads: Heads,
    passes: Sequence[tuple[ViewDataset, int]],
    collate: Collate,
    request: RecordingRequest,
) -> list[HeadInputs]:
    """Run a classifier over images, in evaluation mode, and keep what its heads read.

    Args:
        model: the classifier, on the device of the request.
        heads: its heads.
        passes: images, and which view of each is read.
        collate: gives `pixel_values` for the classifier, and `index`.
        request: how.

    Returns:
        The inputs of each pass in the first process, nothing in others.
    """
    gather, pixels_of = divided_for_teacher(collate, request.device)
    first = pixels_of(gather(passes[0][0].__getitems__([0])))

    def work(batch_size: int) -> list[HeadInputs]:
        found = []
        total = sum(len(images) for images, _ in passes)
        with tqdm(total=total, desc="teacher", unit=" images", disable=not request.show) as bar:
            for images, view in passes:
                images.set_epoch(view)
                share = torch.utils.data.Subset(images, _places_of_process(len(images), request))
                loader = torch.utils.data.DataLoader(share, batch_size, num_workers=request.workers, collate_fn=gather)
                values: dict[str, Tensor] = {}
                for places, inputs in _inputs_of(model, heads, loader, pixels_of, request.device):
                    _keep(values, places, inputs, len(images) if request.rank == 0 else 0)
                    bar.update(min(len(places), total - bar.n))
                found.append(HeadInputs(values, torch.tensor(images.labels)))
        return found if request.rank == 0 else []

    try:
        with evaluation_mode(model):
            take_memory_format(model, lambda: model(pixel_values=first), request.device, False, None)
            return within_memory(work, request.largest_batch)
    finally:
        leave_channels_last(model)


def _inputs_of(
    model: nn.Module,
    heads: Heads,
    batches: Iterator[Mapping[str, Any]] | Any,
    pixels_of: Callable[[Mapping[str, Any]], Tensor],
    device: torch.device,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Numbers of images, of all processes, and what the heads read for them."""
    for batch in batches:
        with _recorded(heads) as inputs:
            model(pixel_values=pixels_of(batch))
        places = gathered(torch.as_tensor(batch["index"]).to(device))
        yield places.cpu(), {name: gathered(values.float()).cpu() for name, values in inputs.items()}


def _keep(values: dict[str, Tensor], places: Tensor, inputs: Mapping[str, Tensor], images: int) -> None:
    """Put the inputs of a batch where they belong among those of all images; with 0 images nothing is kept."""
    for name, found in inputs.items() if images else ():
        if name not in values:
            values[name] = torch.empty(images, *found.shape[1:])
        values[name][places] = found


@contextmanager
def _recorded(heads: Heads) -> Iterator[dict[str, Tensor]]:
    """What the heads read in the forward passes inside the context, by name."""
    inputs: dict[str, Tensor] = {}

    def store(name: str, given: Any, output: Any) -> None:
        inputs[name] = given[0].clone()  # a later operation may change it in place

    with hooked(heads, store):
        yield inputs


def _places_of_process(images: int, request: RecordingRequest) -> list[int]:
    """The images that a process reads: as many in each process, so that a few may be read twice."""
    turns = -(-images // request.processes)
    return [(request.rank + turn * request.processes) % images for turn in range(turns)]
