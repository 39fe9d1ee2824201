"""A few images of a training, looked at before it begins; the training then sees what it would have seen."""

from __future__ import annotations

import hashlib
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from subdistill_hf.config.training import LABELS
from subdistill_hf.data.collate import PIXELS, Collate, is_stream
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DistillationError

EXAMPLES = 2  # that student and teacher are run on
LOOKED_AT = 8  # images that tell a dataset from another, and labels where a dataset does not list them


def example_batch(dataset: Any, collate: Collate) -> dict[str, Any]:
    """Two collated examples of a dataset.

    Raises:
        DistillationError: when the dataset is empty, its batches have no `pixel_values`, or a stream can be read only
            once, so that the training would miss what was read here.
    """
    if is_stream(dataset):
        return _first_of_stream(dataset, collate)
    return _collated([dataset[index] for index in range(min(EXAMPLES, len(dataset)))], collate)


def example_of_loader(loader: Any) -> dict[str, Any]:
    """The first two examples of a loader that the user made.

    Raises:
        DistillationError: when it gives no batch, or its batches have no `pixel_values`.
    """
    batch = next(iter(loader), None)
    if batch is None:
        raise DistillationError("get_train_dataloader gives no batch")
    _check_batch(batch, "get_train_dataloader")
    return {name: value[:EXAMPLES] if isinstance(value, Tensor) else value for name, value in batch.items()}


def _collated(examples: list[Any], collate: Collate) -> dict[str, Any]:
    if not examples:
        raise DistillationError("the training dataset is empty")
    batch = collate(examples)
    _check_batch(batch, "data_collator")
    return dict(batch)


def _check_batch(batch: Any, maker: str) -> None:
    """Refuse what is no batch of images with their labels, if they have some, naming who made it."""
    if not isinstance(batch, Mapping) or PIXELS not in batch:
        found = (
            ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"{type(batch).__name__}, which has no names"
        )
        raise DistillationError(f"{maker}: expected batches with `{PIXELS}`, found {found}")
    for name in (PIXELS, LABELS):
        if not isinstance(batch.get(name), Tensor | None):
            raise DistillationError(
                f"{maker} gives `{name}` as {type(batch[name]).__name__}: expected a tensor, as torch.as_tensor(...) "
                "makes it"
            )


def _first_of_stream(stream: Any, collate: Collate) -> dict[str, Any]:
    """The first examples of a stream, which is opened a second time to see whether they come again."""
    first = iter(stream)
    batch = _collated(list(itertools.islice(first, EXAMPLES)), collate)
    second = iter(stream)
    again = None if second is first else list(itertools.islice(second, 1))
    advice = (
        "pass fit_dataset=..., images that may be read before the training begins, or a stream that starts from its "
        "first image whenever it is read"
    )
    if not again:
        raise DistillationError(
            f"the training stream can be read only once, and the training would miss images: {advice}"
        )
    pixels = collate(again)["pixel_values"]
    if not torch.equal(torch.as_tensor(pixels)[0], torch.as_tensor(batch["pixel_values"])[0]):
        warnings.warn(
            "the training stream gives other images each time it is read. If it can be read only once, the training "
            f"misses those that are read before it begins: {advice}",
            stacklevel=2,
        )
    return batch


# Labels


def known_labels(dataset: Any, collate: Collate) -> Any | None:
    """The labels of a dataset's images: all that it lists, or else those of a few examples.

    Args:
        dataset: images; of a stream nothing is read.
        collate: makes batches, which have the labels that count.

    Returns:
        Labels `(N,)`, or shares of the classes `(N, C)`; `None` where there are none.
    """
    if is_stream(dataset) or len(dataset) == 0:
        return None
    with unchanged_random_numbers():
        examples = [dataset[index] for index in _spread(len(dataset))]
        labels = collate(examples).get(LABELS)
    if labels is None or torch.as_tensor(labels).is_floating_point():
        return labels
    listed = _listed_labels(dataset)
    seen = torch.as_tensor(labels).flatten().tolist()
    # a collator may number them anew: what is listed counts where it is what batches have
    same = listed is not None and [listed[index] for index in _spread(len(dataset))] == seen
    return listed if same else labels


def _listed_labels(dataset: Any) -> list[int] | None:
    """The labels of all images, where a dataset has them apart from the images."""
    if isinstance(dataset, ViewDataset):
        return dataset.labels
    if isinstance(dataset, datasets.Dataset):
        for name in (LABELS, "label"):
            if name in dataset.column_names:
                return list(dataset.with_format(None)[name])
    return None


# Which images they are


def described_images(dataset: Any, collate: Collate) -> dict[str, Any]:
    """The identity of the images of a training, JSON-able.

    A `ViewDataset` has a digest of all images and labels. Of other datasets a few examples are read twice; where they
    come out the same, as without a random augmentation, there is a digest of them.

    Args:
        dataset: the training dataset; of a stream nothing is known but that it is one.
        collate: makes its batches.
    """
    if is_stream(dataset):
        return {"stream": type(dataset).__name__}
    described = {"images": len(dataset)}
    if isinstance(dataset, ViewDataset):
        return {**described, "digest": _digest([dataset.fingerprint, dataset.labels])}
    if hasattr(dataset, "set_epoch") or not len(dataset):
        return described
    with unchanged_random_numbers():
        first, second = (_digest(collate([dataset[index] for index in _spread(len(dataset))])) for _ in range(2))
    return {**described, "examples": first} if first == second else described


def _spread(images: int) -> list[int]:
    """The numbers of a few images from the first to the last."""
    count = min(images, LOOKED_AT)
    return [index * (images - 1) // max(count - 1, 1) for index in range(count)]


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """The contents of a batch as bytes."""
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield str(name).encode()
            yield from _parts(value[name])
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
        yield f"{array.dtype}{tuple(array.shape)}".encode()
        yield array.flatten().view(torch.uint8).numpy().tobytes() if isinstance(array, Tensor) else array.tobytes()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for entry in value:
            yield from _parts(entry)
    elif isinstance(value, str | bytes | int | float | bool) or value is None:
        yield repr(value).encode()


@contextmanager
def unchanged_random_numbers() -> Iterator[None]:
    """Whatever is drawn inside the context from the generators of Python, numpy and torch, they are as before it."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
