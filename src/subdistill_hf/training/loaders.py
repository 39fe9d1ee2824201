"""The loaders of trainings and evaluations: whose pixels they give, which last batches, and who makes the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tqdm.auto import tqdm

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.collate import Collate, Finish, ViewCollator, divided, with_epochs
from subdistill_hf.data.kept_pixels import MOST, keep_pixels
from subdistill_hf.errors import DistillationError
from subdistill_hf.teacher.cache import CachedCollator
from subdistill_hf.teacher.remote_cache import folder_on_disk
from subdistill_hf.teacher.targets import CachedTargets, ComputedTargets

EVALUATION_OPTIONS = {"dataloader_drop_last": False}
"""Arguments of an evaluation's loader, whatever those of the training are: each image counts."""


def evaluation_collator(collate: Collate) -> Collate:
    """The collator without the teacher's pixels, which nobody looks at in an evaluation."""
    return collate.for_student() if isinstance(collate, ViewCollator) else collate


def training_views(
    args: SubDistillConfig,
    dataset: Any,
    collate: Collate,
    targets: ComputedTargets | CachedTargets | None,
    taught: bool,
) -> tuple[Any, Collate]:
    """Training images, and the collator that gives what is needed of them.

    Where the teacher sees each batch, its pixels are in it. Where its targets are cached they are in the batch
    instead; and without a teacher nothing of it. Then the student's pixels of views that come again are kept.

    Args:
        args: the arguments.
        dataset: the training dataset.
        collate: makes the pixels of both networks.
        targets: the source of the teacher's targets, once it is known.
        taught: whether there is a teacher.
    """
    if taught and not isinstance(targets, CachedTargets):
        return dataset, collate
    student = evaluation_collator(collate)
    gather, _ = divided(student, args.device)
    folder = folder_on_disk(args.teacher_cache_dir)
    dataset, student, said = keep_pixels(dataset, student, gather, folder, MOST // args.world_size)
    if said and args.process_index == 0 and not args.disable_tqdm:
        _say_once(said)
    return dataset, CachedCollator(student, targets.cache) if isinstance(targets, CachedTargets) else student


@cache
def _say_once(line: str) -> None:
    """Print a line that was not printed before: the trainings of a run are of the same views."""
    tqdm.write(line)


def training_options(
    args: SubDistillConfig, dataset: Any, batch_size: int, single_value_norm: str | None
) -> dict[str, Any]:
    """The options of a training loader, where they are not those of the arguments.

    A last batch of one image is left out where the student cannot be trained on it, and workers are started
    again in each epoch where that has other views: they would keep those of the first.

    Args:
        args: the arguments.
        dataset: the training dataset.
        batch_size: images of one batch.
        single_value_norm: the student's batch norm that one image cannot train, if it has one.

    Returns:
        Name of an argument to value.
    """
    images = length_of(dataset)
    # several processes complete their last batches
    single = args.world_size == 1 and images is not None and images % batch_size == 1
    return {
        "dataloader_drop_last": args.dataloader_drop_last or (single_value_norm is not None and single),
        "dataloader_persistent_workers": args.dataloader_persistent_workers and not with_epochs(dataset),
    }


def check_batches(args: SubDistillConfig, images: int | None) -> None:
    """Refuse a training without a step: of no epoch, or of fewer images than a batch where the last is dropped.

    Args:
        args: the arguments.
        images: the number of training images, where it is known.

    Raises:
        DistillationError: naming the arguments.
    """
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise DistillationError(f"num_train_epochs={args.num_train_epochs:g}: there is nothing to train")
    batch = args.train_batch_size * args.world_size
    if images is not None and args.dataloader_drop_last and images < batch:
        raise DistillationError(
            f"{images} training images are fewer than a batch of {batch}, and dataloader_drop_last leaves it out: "
            "there would be nothing to train. Choose a per_device_train_batch_size of at most "
            f"{images // args.world_size}, or leave dataloader_drop_last out"
        )


def length_of(dataset: Any) -> int | None:
    """How many images a dataset has, where it knows."""
    return len(dataset) if hasattr(dataset, "__len__") else None


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object have other values inside the context."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def leave_pixels_to(device: torch.device, loader: Any) -> Finish:
    """Let a loader that was not read yet leave pixels to a device that makes them faster, see `collate.divided`.

    Args:
        device: where the batches go.
        loader: of torch, or what accelerate made of one.

    Returns:
        What finishes a batch of the loader on the device.
    """
    loader = getattr(loader, "base_dataloader", loader)  # accelerate's read from one of torch
    if not hasattr(loader, "collate_fn"):  # of the user
        return lambda batch: batch
    loader.collate_fn, finish = divided(loader.collate_fn, device)
    return finish
