"""Find evaluation images that are training images, as far as a look tells that costs little."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from subdistill_hf.data.collate import Collate, is_stream
from subdistill_hf.data.folder_layout import split_named
from subdistill_hf.data.stored_images import find_repeated
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.training.examples import described_images

logger = logging.getLogger(__name__)

MOST_COMPARED_BYTES = 2**28
_IMAGE = "image"


def tell_overlap(train: Any, evaluated: Mapping[str, Any], collate: Collate) -> None:
    """Log a warning for evaluation images that are training images; none for a set that is named for the training.

    Args:
        train: the training dataset.
        evaluated: datasets of evaluations, by name; the empty name for one alone.
        collate: makes batches of their examples.
    """
    for name, dataset in evaluated.items():
        if dataset is None or split_named(name) == "train":
            continue
        if shared := shared_images(train, dataset, collate):
            logger.warning(
                f"{shared} of the {len(dataset)} evaluation images{f' {name!r}' if name else ''} are training images: "
                "figures of images that a student was trained on say nothing of others. Leave them out of one of both"
            )


def shared_images(train: Any, evaluated: Any, collate: Collate) -> int:
    """How many images of an evaluation are training images.

    Images that are stored, as those of `datasets` and `ViewDataset`, are compared byte by byte. Of other datasets the
    parts of one dataset are told, and the files of torchvision's; and of two that nobody knows a few examples are
    compared. In streams nothing is found.

    Args:
        train: the training dataset.
        evaluated: the dataset of the evaluation.
        collate: makes batches of their examples.
    """
    if is_stream(train) or is_stream(evaluated):
        return 0
    rows = [_rows_of(train), _rows_of(evaluated)]
    if rows[0] is not None and rows[1] is not None:
        first, second = find_repeated([rows[0], rows[1]], _IMAGE, MOST_COMPARED_BYTES).groups
        return int(np.isin(second, first).sum())
    known = set(_keys_of(train))
    if shared := sum(key in known for key in _keys_of(evaluated)):
        return shared
    if len(train) != len(evaluated):
        return 0
    described = [described_images(dataset, collate) for dataset in (train, evaluated)]
    return len(evaluated) if "examples" in described[0] and described[0] == described[1] else 0


def _rows_of(dataset: Any) -> datasets.Dataset | None:
    """The stored images of a dataset, in a column of one name; `None` where it has none."""
    if isinstance(dataset, Subset):
        rows = _rows_of(dataset.dataset)
        return None if rows is None else rows.select(dataset.indices)
    column: str | None = None
    if isinstance(dataset, ViewDataset):
        dataset, column = dataset.images.dataset, dataset.images.columns.image
    elif isinstance(dataset, datasets.Dataset):
        kinds = dataset.features.items()
        column = next((name for name, kind in kinds if isinstance(kind, datasets.Image)), None)
    if column is None:
        return None
    plain: datasets.Dataset = dataset.with_format(None).select_columns([column])
    return plain if column == _IMAGE else plain.rename_column(column, _IMAGE)


def _keys_of(dataset: Any) -> Sequence[Hashable]:
    """A value for each example; equal ones are of the same image."""
    if isinstance(dataset, Subset):
        keys = _keys_of(dataset.dataset)
        return [keys[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return list(chain.from_iterable(map(_keys_of, dataset.datasets)))
    if isinstance(dataset, TensorDataset) and dataset.tensors[0].nbytes <= MOST_COMPARED_BYTES:
        return list(_digests(dataset.tensors[0].detach().cpu().numpy()))
    if isinstance(dataset, list | tuple):
        return [id(example) for example in dataset]
    samples = getattr(dataset, "samples", None)  # of torchvision's folders
    if isinstance(samples, list) and len(samples) == len(dataset) and all(map(_is_sample, samples)):
        return [str(Path(sample[0]).resolve()) for sample in samples]
    return [(id(dataset), index) for index in range(len(dataset))]


def _is_sample(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], str | Path)


def _digests(rows: np.ndarray[Any, Any]) -> Iterator[bytes]:
    for row in rows:
        yield hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()
