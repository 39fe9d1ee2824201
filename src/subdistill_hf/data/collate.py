"""Views become batches: their fields, pixels for both networks, and who makes the pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from subdistill_hf.data.preprocessing import preprocessing_of, process, works_on_tensors

IMAGES = "images"  # as bytes, for processors that are still to be run
PIXELS = "pixel_values"
LOGITS = "teacher_logits"
TARGETS = "teacher_targets"
TEACHER_PIXELS = "teacher_pixel_values"  # where they are not the student's
PLACES = ("index", "view")  # the number of an image in its dataset, and which view of it this is

Collate = Callable[[list[Any]], Mapping[str, Any]]
Finish = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@runtime_checkable
class Divisible(Protocol):
    """A collator that can leave the work of the image processors to the device."""

    def unfinished(self) -> Divisible:
        """The same, leaving images as bytes where `finish` can do the rest."""

    def finish(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do on the device what an `unfinished` collator left."""

    def __call__(self, examples: list[Any]) -> Mapping[str, Any]:
        """A batch of examples."""


class ViewCollator:
    """Collate views into `pixel_values` for the student, `teacher_pixel_values`, `labels`, `index` and `view`.

    Each network gets the input it was trained on, from the same view; when both processors do the same, the
    teacher reads the student's.

    The processors' work can be left to an accelerator, which does it many times faster: see `unfinished`.

    Args:
        processor: the student's image processor.
        teacher_processor: the teacher's, if there is a teacher.
    """

    _finishes = True

    def __init__(self, processor: Any, teacher_processor: Any | None = None) -> None:
        self.processor = processor
        same = teacher_processor is None or preprocessing_of(teacher_processor) == preprocessing_of(processor)
        self.teacher_processor = None if same else teacher_processor

    def for_student(self) -> ViewCollator:
        """The same without the teacher's pixels, for batches that the teacher does not see."""
        collator = copy.copy(self)
        collator.teacher_processor = None
        return collator

    def unfinished(self) -> ViewCollator:
        """The same, leaving images of one size as bytes `(B, 3, H, W)` under `images`, for `finish`.

        Processors that work on PIL images alone do their work at once, and so do collators whose call is their own.
        """
        collator = copy.copy(self)
        processors = [each for each in (self.processor, self.teacher_processor) if each is not None]
        tensors = all(works_on_tensors(each) for each in processors)
        collator._finishes = not tensors or type(self).__call__ is not ViewCollator.__call__
        return collator

    def finish(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Process the images of a batch that an `unfinished` collator made, on the device where they are."""
        rest = {name: value for name, value in batch.items() if name != IMAGES}
        return {**self._pixels(batch[IMAGES]), **rest} if IMAGES in batch else rest

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Process a list of `ViewDataset` items."""
        images = [example["image"] for example in examples]
        if self._finishes or any(image.shape != images[0].shape for image in images):
            batch = self._pixels(images)
        else:
            batch = {IMAGES: torch.stack(images)}
        return {**batch, **labels_and_places(examples)}

    def _pixels(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        images = list(images)
        pixels = {"pixel_values": process(self.processor, images)}
        if self.teacher_processor is not None:
            pixels[TEACHER_PIXELS] = process(self.teacher_processor, images)
        return pixels


def labels_and_places(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The fields of a batch of `ViewDataset` items beside pixels."""
    names = ("labels", *PLACES)
    return {name: torch.utils.data.default_collate([example[name] for example in examples]) for name in names}


def divided(collate: Collate, device: torch.device) -> tuple[Collate, Finish]:
    """The work of a loader on examples, and the rest, on its batches once they are on the device.

    A CUDA device resizes and normalises images many times faster than the loader does. Collators that can leave it
    that work are `Divisible`, as `ViewCollator` is; others do all of it.
    """
    if device.type != "cuda" or not isinstance(collate, Divisible):
        return collate, lambda batch: batch
    unfinished = collate.unfinished()
    return unfinished, unfinished.finish


def divided_for_teacher(
    collate: Collate, device: torch.device
) -> tuple[Collate, Callable[[Mapping[str, Any]], Tensor]]:
    """As `divided`; what is left takes a loader's batch to the teacher's pixels on the device."""
    gather, finish = divided(collate, device)

    def pixels(batch: Mapping[str, Any]) -> Tensor:
        names = [name for name in (IMAGES, "pixel_values", TEACHER_PIXELS) if name in batch]
        there = {name: batch[name].to(device, non_blocking=device.type == "cuda") for name in names}
        return teacher_pixels(finish(there))

    return gather, pixels


def with_epochs(dataset: Any) -> list[Any]:
    """The datasets in a dataset that have other views in each epoch: itself, or what a `Subset` or others hold.

    They hold them as `dataset` or `datasets`, names that a dataset of the user may have for anything else.
    """
    found: list[Any] = []
    seen: set[int] = set()
    left = [dataset]
    while left:
        each = left.pop(0)
        if id(each) in seen or isinstance(each, str | bytes | type(None)):
            continue
        seen.add(id(each))
        if callable(getattr(each, "set_epoch", None)):
            found.append(each)
            continue
        several = getattr(each, "datasets", None)
        several = list(several.values()) if isinstance(several, Mapping) else several
        left += several if isinstance(several, list | tuple) else []
        left.append(getattr(each, "dataset", None))
    return found


def is_stream(dataset: Any) -> bool:
    """Whether images can only be read one after the other, even where their number is known."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def teacher_pixels(inputs: Mapping[str, Any]) -> Tensor:
    """The teacher's own pixels of a batch, or else the student's."""
    pixels: Tensor = inputs[TEACHER_PIXELS] if TEACHER_PIXELS in inputs else inputs["pixel_values"]
    return pixels
