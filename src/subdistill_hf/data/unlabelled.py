"""Images without labels: which are looked at, and in what schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import datasets

from subdistill_hf.config.options import EMBEDDED_DATASETS, DataOptions, TaskOptions
from subdistill_hf.data.columns import ImageColumns, image_column
from subdistill_hf.data.folder_layout import split_named
from subdistill_hf.data.labelled_rows import without_labels
from subdistill_hf.data.loading import OFFICIAL_TEST_SPLITS
from subdistill_hf.data.sources import is_local, open_images
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.data.tables import ImageSource
from subdistill_hf.errors import DataError
from subdistill_hf.formatting import last_part

TRAIN = "train"
COLUMNS = ImageColumns("image", "label")
"""The columns of images that had no labels."""
SPLITS: Final = ("train", "validation", "test")
"""The parts of a run, in the order of `UnlabelledDataset.of_parts`."""


@dataclass(frozen=True)
class UnlabelledImages:
    """Images that a teacher has not looked at yet.

    Attributes:
        name: name of their dataset.
        hub_id: its id on the Hub, if it comes from there.
        revision: its commit there.
        split: the split that they are of.
        rows: the images, in the schema of the subtask's images.
        notices: what of the dataset is not used, or should be known of it.
    """

    name: str
    hub_id: str | None
    revision: str | None
    split: str
    rows: datasets.Dataset
    notices: tuple[str, ...] = ()


def load_unlabelled(
    options: TaskOptions, columns: ImageColumns, names: Sequence[str], seed: int = 0, processes: int | None = None
) -> UnlabelledImages:
    """Draw images from a dataset, whatever they show.

    They are of its train split, or of its only one; of the others a run might be tested on.

    Args:
        options: where they are, how many, and whether to stream them.
        columns: those that the subtask's images have.
        names: of the student's outputs.
        seed: of the draw; the images of a smaller number are among those of a larger one.
        processes: how many processes generate or read images.

    Raises:
        DataError: for a dataset that cannot be loaded, has no images, or several splits and none for training.
    """
    check_apart_from_test(options)
    return draw_images("unlabelled", options, options.unlabelled_images, columns, names, seed, processes)


def draw_images(
    option: str,
    options: TaskOptions,
    most: int,
    columns: ImageColumns,
    names: Sequence[str],
    seed: int = 0,
    processes: int | None = None,
) -> UnlabelledImages:
    """Draw images from a dataset, whatever they show: of its train split, or of its only one.

    Args:
        option: the option that says where they are.
        options: its value, and whether to stream them.
        most: how many, at most.
        columns: those that the subtask's images have.
        names: of the student's outputs.
        seed: of the draw; the images of a smaller number are among those of a larger one.
        processes: how many processes generate or read images.

    Raises:
        DataError: for a dataset that cannot be loaded, has no images, or several splits and none for training.
    """
    place = str(getattr(options, option))
    source = open_images(DataOptions(place, streaming=options.streaming), processes)
    splits = source.splits
    if TRAIN not in splits and len(splits) > 1:
        raise DataError(
            f"{option}={place}: expected a {TRAIN} split or one split alone, found {', '.join(splits)}: give the "
            "folder or files of one of them"
        )
    split = TRAIN if TRAIN in splits else splits[0]
    image = image_column(source.features)
    return _drawn(source, split, image, place, most, columns, names, seed)


def _drawn(
    source: ImageSource,
    split: str,
    image: str,
    place: str,
    most: int,
    columns: ImageColumns,
    names: Sequence[str],
    seed: int,
) -> UnlabelledImages:
    """Some images of a split; the arguments as those of the callers."""
    if reason := source.unusable.get(split, {}).get(image):
        raise DataError(reason)
    rows = source.images(split, image, most, seed)
    if len(rows) == 0:
        raise DataError(f"{place}: the split {split} has no images")
    local = is_local(place)
    return UnlabelledImages(
        name=last_part(place) if local else place,
        hub_id=None if local or place in EMBEDDED_DATASETS else place,
        revision=source.revision,
        split=split,
        rows=without_labels(rows, image, columns, names),
        notices=tuple(f"{place}: {notice}" for notice in source.notices),
    )


@dataclass(frozen=True)
class UnlabelledDataset:
    """A dataset without labels.

    Attributes:
        train: images of its train split.
        test: images of its test split; `None` where a share of the others is to be held out.
        test_split: the name of the test split.
    """

    train: UnlabelledImages
    test: UnlabelledImages | None
    test_split: str | None

    def of_parts(self) -> tuple[UnlabelledImages, UnlabelledImages, UnlabelledImages]:
        """The images that those for training, validation and test are chosen of."""
        return self.train, self.train, self.test or self.train


def load_dataset_without_labels(
    options: DataOptions, most: int, subtask: Subtask, seed: int = 0, processes: int | None = None
) -> UnlabelledDataset:
    """Draw images of the splits for training and test of a dataset, whatever they show, with `COLUMNS`.

    Args:
        options: the dataset and its splits.
        most: how many images of each, at most.
        subtask: the classes.
        seed: of the draw.
        processes: how many processes generate or read images.

    Raises:
        DataError: for a dataset that cannot be loaded, or has no split for training or test.
    """
    source = open_images(options, processes)
    tests = OFFICIAL_TEST_SPLITS if options.test_split is None else (options.test_split,)
    test = next((split for split in tests if split in source.splits and split != options.train_split), None)
    found = ", ".join(source.splits)
    if options.train_split not in source.splits:
        raise DataError(f"expected a {options.train_split} split, found {found}: choose one with --train_split")
    if test is None and options.test_fraction is None:
        raise DataError(
            f"dataset {options.dataset!r} has no {' or '.join(tests)} split, only {found}: choose one with "
            "--test_split, or hold out a share of the training images with --test_fraction 0.2"
        )
    image = image_column(source.features, options.image_column)

    def drawn(split: str) -> UnlabelledImages:
        return _drawn(source, split, image, options.dataset, most, COLUMNS, subtask.names, seed)

    held_out = options.test_fraction is not None
    return UnlabelledDataset(
        drawn(options.train_split), None if test is None or held_out else drawn(test), None if held_out else test
    )


def check_apart_from_test(options: TaskOptions) -> None:
    """Refuse a folder that is the dataset's folder of test or validation images.

    Raises:
        DataError: naming it.
    """
    given, dataset = Path(str(options.unlabelled)), Path(options.dataset)
    if not (given.exists() and dataset.is_dir()):
        return
    given, dataset = given.resolve(), dataset.resolve()
    if given == dataset or not given.is_relative_to(dataset):
        return
    top = given.relative_to(dataset).parts[0]
    if split_named(top) in ("test", "validation") or top == options.test_split:
        raise DataError(
            f"unlabelled={options.unlabelled} is the {split_named(top) or top} folder of the dataset, and a student "
            "that learns from these images cannot be tested on them: give others"
        )
