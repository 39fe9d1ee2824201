"""What of a batch is the student's and what the teacher's, and which views an epoch has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

IMAGES = "images"  # as bytes, for processors that are still to be run
LOGITS = "teacher_logits"
TARGETS = "teacher_targets"
NOT_FOR_THE_STUDENT = ("labels", "teacher_pixel_values", "index", "view", LOGITS, TARGETS)

Collate = Callable[[list[Any]], Mapping[str, Any]]
Finish = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def divided(collate: Collate, device: torch.device) -> tuple[Collate, Finish]:
    """What a loader does with examples, and what is left to do with its batches once they are on the device.

    A CUDA device resizes and normalises images many times faster than the loader does. Collators that can leave it
    that work have `unfinished` and `finish`, as `ViewCollator` has; others do all of it.
    """
    if device.type != "cuda" or not hasattr(collate, "unfinished"):
        return collate, lambda batch: batch
    unfinished: Any = collate.unfinished()
    return unfinished, unfinished.finish


def divided_for_teacher(
    collate: Collate, device: torch.device
) -> tuple[Collate, Callable[[Mapping[str, Any]], Tensor]]:
    """As `divided`; what is left takes a loader's batch to the teacher's pixels on the device."""
    gather, finish = divided(collate, device)

    def pixels(batch: Mapping[str, Any]) -> Tensor:
        names = [name for name in (IMAGES, "pixel_values", "teacher_pixel_values") if name in batch]
        there = {name: batch[name].to(device, non_blocking=device.type == "cuda") for name in names}
        return teacher_pixels(finish(there))

    return gather, pixels


class EpochsOfViews(TrainerCallback):
    """Moves the training dataset to the views of each epoch.

    accelerate does so too, but not with several processes, and not in the epoch in which a run is resumed.
    """

    epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin with the epoch in which a run is resumed."""
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **given: Any) -> None:
        """Move on."""
        for dataset in with_epochs(train_dataloader.dataset):
            dataset.set_epoch(self.epoch)
        self.epoch += 1


def with_epochs(dataset: Any) -> list[Any]:
    """The datasets in a dataset that have other views in each epoch: itself, or what a `Subset` or others hold."""
    if hasattr(dataset, "set_epoch"):
        return [dataset]
    inner = [*getattr(dataset, "datasets", ()), *([dataset.dataset] if hasattr(dataset, "dataset") else ())]
    return [found for each in inner for found in with_epochs(each)]


def for_student(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the student takes of a batch."""
    return {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_STUDENT}


def teacher_pixels(inputs: Mapping[str, Any]) -> Tensor:
    """The teacher's own pixels of a batch, or else the student's."""
    pixels: Tensor = inputs["teacher_pixel_values"] if "teacher_pixel_values" in inputs else inputs["pixel_values"]
    return pixels


def for_teacher(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is the teacher's of a batch: its pixels, and targets that come with it."""
    targets = {name: inputs[name] for name in (LOGITS, TARGETS) if name in inputs}
    return {"pixel_values": teacher_pixels(inputs), **targets}
