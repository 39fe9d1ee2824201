"""Images of the subtask: load, filter before decoding, and split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from subdistill_hf.digits import DIGIT_SUPERCLASSES, load_digits_dataset
from subdistill_hf.errors import SubDistillError
from subdistill_hf.glyphs import CLASS_NAMES, SUPERCLASSES, load_glyphs
from subdistill_hf.subtask import Subtask, SubtaskError, resolve_classes

EMBEDDED_DATASETS = ("glyphs-100", "digits")


class DataError(SubDistillError):
    """A dataset that cannot be used for the subtask."""


@dataclass(frozen=True)
class ImageColumns:
    """The columns of an image dataset: the image, the class, and (if there is one) the superclass."""

    image: str
    label: str
    superclass: str | None = None

    @classmethod
    def of(cls, features: datasets.Features) -> ImageColumns:
        """Find the columns by their types: the only `Image`, the `ClassLabel` with most classes, the next one.

        Raises:
            DataError: when there is no image column or no class column.
        """
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = sorted(
            (name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)),
            key=lambda name: -features[name].num_classes,
        )
        if not images or not labels:
            found = ", ".join(f"{name}: {kind}" for name, kind in features.items())
            raise DataError(f"expected an Image and a ClassLabel column, found {found}")
        return cls(images[0], labels[0], labels[1] if len(labels) > 1 else None)


@dataclass(frozen=True)
class SubtaskData:
    """The images of one subtask; labels are the student's outputs, 0 to C - 1.

    Attributes:
        name: name of the dataset.
        hub_id: its id on the Hub, if it comes from there.
        subtask: the classes.
        class_names: all class names of the dataset.
        train: training images.
        validation: images held out of training, for choosing the checkpoint.
        test: the official test split, for the final figures.
        test_split: its name in the dataset.
        columns: the image and label columns.
    """

    name: str
    hub_id: str | None
    subtask: Subtask
    class_names: tuple[str, ...]
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    test_split: str
    columns: ImageColumns

    def images_per_class(self) -> dict[str, int]:
        """Class name to number of training images."""
        counts = np.bincount(self.train[self.columns.label], minlength=len(self.subtask.names))
        return dict(zip(self.subtask.names, counts.tolist(), strict=True))


def load_subtask(
    dataset: str,
    classes: Sequence[str | int],
    train_images_per_class: int | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    processes: int | None = None,
) -> SubtaskData:
    """Load the images of the subtask's classes only; others are dropped before anything is decoded.

    Args:
        dataset: an embedded dataset, a local folder, or an id of the Hub.
        classes: see `resolve_classes`.
        train_images_per_class: keep at most this many training images of each class, validation included.
        validation_fraction: share of the training images held out for validation, per class, at least one image.
        seed: of the choice of images.
        processes: how many processes generate or read images.

    Raises:
        SubtaskError: for classes that are unknown or have no images.
        DataError: for a dataset that cannot be loaded, or has no images, labels, or test split.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction={validation_fraction}: expected a share between 0 and 1")
    if train_images_per_class is not None and train_images_per_class < 2:
        raise DataError(
            f"train_images_per_class={train_images_per_class}: expected at least 2, for training and validation"
        )
    hub_id = None
    if dataset == "glyphs-100":
        subtask = resolve_classes(classes, CLASS_NAMES, SUPERCLASSES)
        splits = load_glyphs(subtask.dataset_ids, num_proc=processes)
    elif dataset == "digits":
        splits = load_digits_dataset()
        subtask = resolve_classes(classes, splits["train"].features["fine_label"].names, DIGIT_SUPERCLASSES)
    else:
        hub_id = None if Path(dataset).is_dir() else dataset
        splits = _load_splits(dataset)
        subtask = resolve_classes(classes, *_class_names(splits))
    columns = ImageColumns.of(splits["train"].features)
    class_names = tuple(splits["train"].features[columns.label].names)
    test_split, test_rows = _test_rows(splits, columns, subtask, dataset)
    train_rows, validation_rows = _split_rows(
        np.asarray(splits["train"].with_format(None)[columns.label]),
        subtask,
        train_images_per_class,
        validation_fraction,
        seed,
    )
    return SubtaskData(
        name=dataset if hub_id or dataset in EMBEDDED_DATASETS else Path(dataset).name,
        hub_id=hub_id,
        subtask=subtask,
        class_names=class_names,
        train=_with_subtask_labels(splits["train"].select(train_rows), columns, subtask),
        validation=_with_subtask_labels(splits["train"].select(validation_rows), columns, subtask),
        test=_with_subtask_labels(splits[test_split].select(test_rows), columns, subtask),
        test_split=test_split,
        columns=columns,
    )


def _load_splits(dataset: str) -> datasets.DatasetDict:
    """A local folder of images, or a dataset of the Hub."""
    try:
        if Path(dataset).is_dir():
            return datasets.load_dataset("imagefolder", data_dir=dataset)
        return datasets.load_dataset(dataset)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"dataset {dataset!r} cannot be loaded: {error}. Expected {' or '.join(EMBEDDED_DATASETS)}, a folder of "
            "images (train/CLASS/NAME.png, test/CLASS/NAME.png), or the id of an image dataset on the Hub"
        ) from error


def _test_rows(
    splits: datasets.DatasetDict, columns: ImageColumns, subtask: Subtask, dataset: str
) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """The first official split with labelled images of the subtask, and their rows: some keep test labels secret."""
    official = [name for name in ("test", "validation") if name in splits]
    if not official:
        raise DataError(f"dataset {dataset!r} has no test or validation split, only {', '.join(splits)}")
    for name in official:
        labels = np.asarray(splits[name].with_format(None)[columns.label])
        rows = np.flatnonzero(np.isin(labels, subtask.dataset_ids))
        if len(rows):
            return name, rows
    raise DataError(f"the {' and '.join(official)} split of {dataset!r} has no image of the subtask's classes")


def _class_names(splits: datasets.DatasetDict) -> tuple[list[str], dict[str, list[str]]]:
    """All class names, and the classes of each superclass, read from the label columns without decoding images."""
    if "train" not in splits:
        raise DataError(f"expected a train split, found {', '.join(splits)}")
    train = splits["train"]
    columns = ImageColumns.of(train.features)
    names: list[str] = list(train.features[columns.label].names)
    if columns.superclass is None:
        return names, {}
    pairs = set(zip(train[columns.superclass], train[columns.label], strict=True))
    grouped: dict[str, list[str]] = {name: [] for name in train.features[columns.superclass].names}
    for coarse, fine in sorted(pairs):
        grouped[train.features[columns.superclass].names[coarse]].append(names[fine])
    return names, grouped


def _split_rows(
    labels: np.ndarray[Any, np.dtype[np.int64]],
    subtask: Subtask,
    limit: int | None,
    fraction: float,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Rows for training and for validation, stratified by class and the same for a seed."""
    train: list[int] = []
    validation: list[int] = []
    for name, class_id in zip(subtask.names, subtask.dataset_ids, strict=True):
        rows = np.flatnonzero(labels == class_id)
        if len(rows) < 2:
            raise SubtaskError(f"class {name!r} has {len(rows)} training images: expected at least 2")
        rows = np.random.default_rng([seed, class_id]).permutation(rows)[:limit]
        held_out = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        validation += rows[:held_out].tolist()
        train += rows[held_out:].tolist()
    return sorted(train), sorted(validation)


def _with_subtask_labels(dataset: datasets.Dataset, columns: ImageColumns, subtask: Subtask) -> datasets.Dataset:
    """Replace the label column by the student's outputs, and drop the other columns."""
    outputs = {class_id: output for output, class_id in enumerate(subtask.dataset_ids)}
    labels = [outputs[label] for label in dataset[columns.label]]
    kept = dataset.select_columns([columns.image])
    feature = datasets.ClassLabel(names=list(subtask.names))
    with _without_bars():
        return kept.add_column(columns.label, labels, feature=feature)


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bar of `datasets` for a step that takes no time."""
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
