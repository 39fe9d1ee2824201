"""Images of a dataset's other classes: to train an answer "none of these", and to test how they are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import datasets
import numpy as np

from subdistill_hf.config.options import EMBEDDED_DATASETS, TaskOptions
from subdistill_hf.config.unknown_images import UNKNOWN_IMAGES, UNKNOWN_KINDS
from subdistill_hf.config.validation import LEAST_OTHER_IMAGES
from subdistill_hf.data.class_names import unique_names
from subdistill_hf.data.columns import ImageColumns, Label
from subdistill_hf.data.labelled_rows import as_images, with_names
from subdistill_hf.data.loading import OTHER, OtherImages, SubtaskData, all_classes
from subdistill_hf.data.notices import Notices
from subdistill_hf.data.repeated_images import without_copies
from subdistill_hf.data.sources import open_source
from subdistill_hf.data.tables import Source
from subdistill_hf.data.unlabelled import draw_images
from subdistill_hf.errors import DataError

FAR_SHARE: Final = 0.2
"""Share of the other classes that is kept from training, to be tested with."""
MOST_TESTED: Final = 50
"""Other classes that are tested with, at most, of each kind."""
GLANCED: Final = 200
"""Images of other classes, at most, for a glance at how a student answers them."""
GLANCED_CLASSES: Final = 20
"""The classes of these, at most."""
GLANCED_BYTES: Final = 2**30
"""No glance is taken at datasets whose files are larger: they are read once more for it."""
CLASSES_WORTH: Final = 2
"""Training images of other classes, by default, in classes of the subtask."""
NEAR, FAR, ELSEWHERE = (UNKNOWN_IMAGES[kind] for kind in UNKNOWN_KINDS)
TRAINED: Final = "training images of other classes"


def with_other_classes(data: SubtaskData, options: TaskOptions, seed: int = 0) -> SubtaskData:
    """Add images of the dataset's other classes.

    One class in five is never trained with: its test images are far unknowns, those of the others near ones. Without
    an answer for them all are far. There are about as many test images of each kind as of the subtask, at most. Near
    unknowns need a test split of the dataset's own.

    Args:
        data: the images of the subtask.
        options: the dataset, and how many training images of other classes.
        seed: of the choice of classes and images.

    Returns:
        The images, those of other classes among the training and validation images if they have an answer.

    Raises:
        DataError: when the dataset has no other classes, or no images of them.
    """
    source = open_source(options)
    columns = data.columns
    classes = all_classes(source, columns, options.train_split)
    seen, unseen = _seen_and_unseen(data, options, len(classes.names), seed)
    names = _names_with_other(data)

    def labels(places: Sequence[int]) -> list[Label]:
        return [classes.labels[place] for place in places]

    def tested(places: Sequence[int]) -> datasets.Dataset | None:
        split = data.test_split if data.official_test else options.train_split
        chosen = sorted(np.random.default_rng(seed).permutation(places)[:MOST_TESTED].tolist())
        return _some(source, split, columns, labels(chosen), len(data.test), seed, names) if chosen else None

    # without a test split of its own, test images of these classes could be training images
    drawn = {NEAR: tested(seen) if data.official_test else None, FAR: tested(unseen), TRAINED: None}
    if options.other_class:
        per_class = (len(data.train) + len(data.validation)) / len(data.subtask.names)
        wanted = options.other_images or max(LEAST_OTHER_IMAGES, round(CLASSES_WORTH * per_class))
        drawn[TRAINED] = _some(source, options.train_split, columns, labels(seen), wanted, seed, names)
    data, once = _used_once(data, drawn, options.dataset)
    if FAR not in once:
        raise DataError(f"the {data.test_split} split of {options.dataset!r} has no images of other classes")
    found = OtherImages(
        near=once.get(NEAR),
        far=once[FAR],
        seen=tuple(classes.names[place] for place in seen),
        unseen=tuple(classes.names[place] for place in unseen),
        answered=options.other_class,
    )
    if not options.other_class:
        return replace(data, others=found)
    rows = once.get(TRAINED, ())
    if len(rows) < LEAST_OTHER_IMAGES:
        raise DataError(
            f"expected at least {LEAST_OTHER_IMAGES} images of other classes in the {options.train_split} split of "
            f"{options.dataset!r}, found {len(rows)}"
        )
    found = replace(found, train_images=len(rows) - max(1, round(options.validation_share * len(rows))))
    return _trained_with(replace(data, others=found), rows, names, seed)


def _names_with_other(data: SubtaskData) -> tuple[str, ...]:
    """The names of the labels of images of the classes and of others."""
    return unique_names((*data.subtask.names, OTHER))  # a class may have that name


def _seen_and_unseen(data: SubtaskData, options: TaskOptions, classes: int, seed: int) -> tuple[list[int], list[int]]:
    """The other classes, by their place among all: those that are trained with, and those that are tested with alone.

    Raises:
        DataError: when there are too few, or one of the subtask has the name of the answer for them.
    """
    if options.other_class and OTHER in data.subtask.names:
        raise DataError(
            f"other_class: {OTHER!r} is a class of the subtask already: give that class another name, or leave out "
            "one of both"
        )
    others = [place for place in range(classes) if place not in data.subtask.dataset_ids]
    if not others:
        raise DataError(
            f"{'other_class' if options.other_class else 'test_unknown'}: all classes of {options.dataset!r} are in "
            "the subtask: expected others beside them"
        )
    if not options.other_class:
        return [], others
    order = np.random.default_rng([seed, len(others)]).permutation(others).tolist()
    unseen = sorted(order[: max(1, round(FAR_SHARE * len(order)))])
    seen = sorted(set(order) - set(unseen))
    if not seen:
        raise DataError(
            "other_class: expected at least two other classes in the dataset, to train and to test with. Take fewer "
            "of its classes, or leave it out: the card's threshold, and --unknown_images, need none"
        )
    return seen, unseen


def _used_once(
    data: SubtaskData, drawn: Mapping[str, datasets.Dataset | None], *places: str | None
) -> tuple[SubtaskData, dict[str, datasets.Dataset]]:
    """Images of none of the classes, each in the first part alone that has it, and in none if the run has it already.

    Args:
        data: the images that the run has.
        drawn: what the images are called to the images.
        places: the datasets that all of these are of; embedded ones alone are not compared.

    Returns:
        The images of the run with notices of what was left out, and those parts that have images.
    """
    parts = {name: rows for name, rows in drawn.items() if rows is not None}
    if not set(places) <= set(EMBEDDED_DATASETS):
        kinds = () if data.others is None else data.others.counts()
        known = [data.rows(split) for split in ("taught", "validation", "test", *kinds)]
        parts, found = without_copies(parts, known, data.columns)
        said = Notices([notice for notice in found if notice not in data.notices]).said
        data = replace(data, notices=(*data.notices, *said))
    return data, {name: rows for name, rows in parts.items() if len(rows)}


def _trained_with(data: SubtaskData, rows: datasets.Dataset, names: Sequence[str], seed: int) -> SubtaskData:
    """The images of the subtask with some of other classes among those for training and validation."""
    assert data.others is not None
    held_out = len(rows) - data.others.train_images
    shuffled = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    validation, train = (rows.select(sorted(part.tolist())) for part in (shuffled[:held_out], shuffled[held_out:]))
    return replace(
        data,
        train=datasets.concatenate_datasets([with_names(data.train, data.columns, names), train]),
        validation=datasets.concatenate_datasets([with_names(data.validation, data.columns, names), validation]),
    )


def glance_at_others(data: SubtaskData, options: TaskOptions, seed: int = 0) -> OtherImages | None:
    """A few test images of the dataset's other classes, where they cost next to nothing.

    Args:
        data: the images of the subtask.
        options: the dataset.
        seed: of the choice of classes and images.

    Returns:
        Far unknown images alone; `None` where there are none, where the known ones carry a mark or have no labels, for
        a stream, which would be read to its end, and for large files.

    Raises:
        DataError: for a dataset that cannot be read.
    """
    read = data.test.info.download_size or 0
    if options.streaming or data.labels_by_teacher or data.marking is not None or read > GLANCED_BYTES:
        return None
    source, columns = open_source(options), data.columns
    split = data.test_split if data.official_test else options.train_split
    classes = all_classes(source, columns, options.train_split)
    others = [place for place in range(len(classes.names)) if place not in data.subtask.dataset_ids]
    if not others:
        return None
    chosen = sorted(np.random.default_rng(seed).permutation(others)[:GLANCED_CLASSES].tolist())
    labels = [classes.labels[place] for place in chosen]
    rows = _some(source, split, columns, labels, min(GLANCED, len(data.test)), seed, _names_with_other(data))
    _, once = _used_once(data, {FAR: rows}, options.dataset)
    unseen = tuple(classes.names[place] for place in others)
    return OtherImages(far=once[FAR], unseen=unseen) if FAR in once else None


def with_images_from_elsewhere(data: SubtaskData, options: TaskOptions, seed: int = 0) -> SubtaskData:
    """Add images of another dataset that show none of the classes, at most as many as there are test images.

    Args:
        data: the images of the subtask.
        options: where the others are.
        seed: of the choice of images.

    Raises:
        DataError: for a dataset that cannot be loaded, has no images but those of the run, damaged ones, or several
            splits and none for training.
    """
    drawn = draw_images("unknown_images", options, len(data.test), data.columns, data.output_names, seed)
    data, once = _used_once(data, {ELSEWHERE: drawn.rows}, options.dataset, options.unknown_images)
    if ELSEWHERE not in once:
        raise DataError(f"unknown_images={options.unknown_images}: all images are those of the run: give others")
    others = replace(data.others or OtherImages(), elsewhere=once[ELSEWHERE], elsewhere_name=drawn.name)
    data = replace(data, others=others)
    data.views("elsewhere").check_images()
    return data


def _some(
    source: Source,
    split: str,
    columns: ImageColumns,
    labels: Sequence[Label],
    most: int,
    seed: int,
    names: Sequence[str],
) -> datasets.Dataset:
    """About so many images of some classes, spread evenly over them, with the label of the last output."""
    each = -(-most // len(labels))
    rows = source.some_rows(split, columns, labels, each, seed)
    if len(rows) > most:
        rows = rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:most].tolist()))
    images = as_images(rows, columns.image)
    return with_names(images, columns, names, len(names) - 1)
