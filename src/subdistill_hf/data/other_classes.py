"""Images of a dataset's other classes: to train an answer "none of these", and to test how they are answered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import datasets
import numpy as np

from subdistill_hf.config.options import EMBEDDED_DATASETS, TaskOptions
from subdistill_hf.config.unknown_images import UNKNOWN_IMAGES
from subdistill_hf.config.validation import LEAST_OTHER_IMAGES
from subdistill_hf.data.class_names import unique_names
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.labelled_rows import as_images, with_names, with_outputs
from subdistill_hf.data.loading import Classes, SubtaskData, all_classes
from subdistill_hf.data.notices import Notices
from subdistill_hf.data.other_images import OTHER, OtherImages
from subdistill_hf.data.repeated_images import without_copies
from subdistill_hf.data.sources import open_source
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.data.tables import Source
from subdistill_hf.data.unlabelled import draw_images
from subdistill_hf.errors import DataError

FAR_SHARE: Final = 0.2
"""Share of the other classes that is kept from training, to be tested with."""
LEAST_OTHER_CLASSES: Final = 2
"""Other classes that an answer for them needs: one to train with, and one to test with."""
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
NEAR, FAR, ELSEWHERE = (UNKNOWN_IMAGES[kind] for kind in ("near", "far", "elsewhere"))
TRAINED: Final = "training images of other classes"


def check_other_classes(options: TaskOptions, subtask: Subtask, names: Sequence[str]) -> None:
    """Refuse a dataset without the other classes that the options ask for; no image is needed for it.

    Args:
        options: whether images of other classes are trained or tested with.
        subtask: the classes.
        names: of all classes of the dataset.

    Raises:
        DataError: when there are too few, or one of the subtask has the name of the answer for them.
    """
    if not (options.other_class or (options.test_unknown and options.unknown_images is None)):
        return
    check_other_name(options, subtask)
    others = len(names) - len(subtask.names)
    if not others:
        raise DataError(
            f"{'other_class' if options.other_class else 'test_unknown'}: all classes of {options.dataset!r} are in "
            "the subtask: expected others beside them"
        )
    if options.other_class and others < LEAST_OTHER_CLASSES:
        raise DataError(
            "other_class: expected at least two other classes in the dataset, to train and to test with. Take fewer "
            "of its classes, or leave it out: the card's threshold, and --unknown_images, need none"
        )


def check_other_name(options: TaskOptions, subtask: Subtask) -> None:
    """Refuse a class with the name of the answer "none of these", where there is that answer.

    Args:
        options: whether there is.
        subtask: the classes.

    Raises:
        DataError: for such a class.
    """
    if options.other_class and OTHER in subtask.names:
        raise DataError(
            f"other_class: {OTHER!r} is a class of the subtask already: give that class another name, or leave out "
            "one of both"
        )


@dataclass(frozen=True)
class _OtherClasses:
    """The other classes of a dataset, and what draws images of them.

    Attributes:
        source: the dataset.
        columns: its columns.
        classes: all its classes.
        places: those that are not of the subtask, by their places among all.
        seed: of the choice of classes and images.
    """

    source: Source
    columns: ImageColumns
    classes: Classes
    places: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, data: SubtaskData, options: TaskOptions, seed: int) -> _OtherClasses:
        """Those of the dataset of a subtask."""
        source = open_source(options)
        classes = all_classes(source, data.columns, options.train_split)
        places = tuple(place for place in range(len(classes.names)) if place not in data.subtask.dataset_ids)
        return cls(source, data.columns, classes, places, seed)

    def names(self, places: Collection[int]) -> tuple[str, ...]:
        """The names of some, in the order of the dataset."""
        return tuple(self.classes.names[place] for place in self.places if place in places)

    def to_train_with(self) -> list[int]:
        """Those of which training images may be drawn; the others are kept from training."""
        order = np.random.default_rng([self.seed, len(self.places)]).permutation(self.places).tolist()
        return sorted(order[max(1, round(FAR_SHARE * len(order))) :])

    def some(
        self, split: str, places: Collection[int], most: int, most_classes: int | None = None
    ) -> datasets.Dataset:
        """About so many images of some classes, spread evenly over them; their labels are the places of these.

        Args:
            split: that they are of.
            places: of the classes.
            most: how many images.
            most_classes: of how many classes, at most.
        """
        wanted = sorted(places)
        if most_classes is not None:
            wanted = sorted(np.random.default_rng(self.seed).permutation(wanted)[:most_classes].tolist())
        labels = [self.classes.labels[place] for place in wanted]
        rows = self.source.some_rows(split, self.columns, labels, -(-most // len(labels)), self.seed)
        if len(rows) > most:
            rows = rows.select(sorted(np.random.default_rng(self.seed).permutation(len(rows))[:most].tolist()))
        own = dict(zip(labels, wanted, strict=True))
        every = Subtask(self.classes.names, tuple(range(len(self.classes.names))))
        outputs = [own[label] for label in rows[self.columns.label][:]]
        return with_outputs(as_images(rows, self.columns.image), self.columns, every, outputs)

    def of_classes(self, rows: datasets.Dataset, places: Collection[int]) -> datasets.Dataset:
        """Those of some images that are of these classes."""
        labels = rows[self.columns.label][:]
        return rows.select([place for place, label in enumerate(labels) if label in places])


def with_other_classes(data: SubtaskData, options: TaskOptions, seed: int = 0) -> SubtaskData:
    """Add images of the dataset's other classes.

    At least one class in five is never trained with. Test images of classes that are among the training images are
    near unknowns, those of the others far ones. Without an answer for them all are far. There are about as many test
    images of each kind as of the subtask, at most. Near unknowns need a test split of the dataset's own.

    Args:
        data: the images of the subtask.
        options: the dataset, and how many training images of other classes.
        seed: of the choice of classes and images.

    Returns:
        The images, those of other classes among the training and validation images if they have an answer.

    Raises:
        DataError: when the dataset has no other classes, or no images of them.
    """
    others = _OtherClasses.of(data, options, seed)
    check_other_classes(replace(options, unknown_images=None), data.subtask, others.classes.names)
    trained, taught, held_back = None, set[int](), set(others.places)
    if options.other_class:
        wanted = other_images(options, len(data.train) + len(data.validation), data.subtask)
        trained = others.some(options.train_split, others.to_train_with(), wanted)
        taught = _shown(_divided(trained, options, seed)[0], others)
        # without a test split of its own, test images of these classes could be training or validation images
        held_back -= taught if data.official_test else _shown(trained, others)

    def tested(places: set[int]) -> datasets.Dataset | None:
        split = data.test_split if data.official_test else options.train_split
        return others.some(split, places, len(data.test), MOST_TESTED) if places else None

    drawn = {NEAR: tested(taught) if data.official_test else None, FAR: tested(held_back), TRAINED: trained}
    data, once = used_once(data, drawn, options.dataset)
    return _with_drawn(data, once, others, options, seed)


def other_images(options: TaskOptions, images: int, subtask: Subtask) -> int:
    """How many images of none of the classes there are for training and validation, at most.

    Args:
        options: the number that was asked for, if any.
        images: of the classes, for training and validation.
        subtask: the classes.
    """
    per_class = images / len(subtask.names)
    return options.other_images or max(LEAST_OTHER_IMAGES, round(CLASSES_WORTH * per_class))


def _with_drawn(
    data: SubtaskData,
    drawn: Mapping[str, datasets.Dataset],
    others: _OtherClasses,
    options: TaskOptions,
    seed: int,
) -> SubtaskData:
    """The images of the subtask with those of other classes; near are those of classes that are trained with."""
    rows = drawn.get(TRAINED, ())
    train = validation = None
    if options.other_class:
        if len(rows) < LEAST_OTHER_IMAGES:
            raise DataError(
                f"expected at least {LEAST_OTHER_IMAGES} images of other classes in the {options.train_split} split "
                f"of {options.dataset!r}, found {len(rows)}"
            )
        train, validation = _divided(rows, options, seed)
    taught = set() if train is None else _shown(train, others)
    parts = [drawn[kind] for kind in (NEAR, FAR) if kind in drawn]
    # copies that were left out of the training may have been all that it had of a class
    near, far = (
        [part for rows in parts if len(part := others.of_classes(rows, places))]
        for places in (taught, set(others.places) - taught)
    )
    if not far:
        raise DataError(f"the {data.test_split} split of {options.dataset!r} has no images of other classes")

    found = OtherImages(
        near=as_others(data, datasets.concatenate_datasets(near)) if near else None,
        far=as_others(data, datasets.concatenate_datasets(far)),
        seen=others.names(taught),
        unseen=others.names(set(others.places) - taught),
        train_images=0 if train is None else len(train),
        answered=options.other_class,
    )
    data = replace(data, others=found)
    return data if train is None or validation is None else with_taught(data, train, validation)


def as_others(data: SubtaskData, rows: datasets.Dataset) -> datasets.Dataset:
    """Images of none of the classes, with the label of the answer for them, the last one."""
    names = _names_with_other(data)
    return with_names(rows, data.columns, names, len(names) - 1)


def with_taught(data: SubtaskData, train: datasets.Dataset, validation: datasets.Dataset) -> SubtaskData:
    """The images with those of none of the classes among the training and validation images.

    Args:
        data: the images of the classes.
        train: the others for training.
        validation: the others for validation.
    """

    def joined(own: datasets.Dataset, others: datasets.Dataset) -> datasets.Dataset:
        named = with_names(own, data.columns, _names_with_other(data))
        return datasets.concatenate_datasets([named, as_others(data, others)])

    return replace(data, train=joined(data.train, train), validation=joined(data.validation, validation))


def _shown(rows: datasets.Dataset, others: _OtherClasses) -> set[int]:
    """The classes of some images."""
    return set(rows[others.columns.label][:])


def _divided(rows: datasets.Dataset, options: TaskOptions, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Images of other classes for training and for validation."""
    held_out = max(1, round(options.validation_share * len(rows)))
    shuffled = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    validation, train = (rows.select(sorted(part.tolist())) for part in (shuffled[:held_out], shuffled[held_out:]))
    return train, validation


def _names_with_other(data: SubtaskData) -> tuple[str, ...]:
    """The names of the labels of images of the classes and of others."""
    return unique_names((*data.subtask.names, OTHER))  # a class may have that name


def used_once(
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
    others = _OtherClasses.of(data, options, seed)
    if not others.places:
        return None
    split = data.test_split if data.official_test else options.train_split
    rows = others.some(split, others.places, min(GLANCED, len(data.test)), GLANCED_CLASSES)
    _, once = used_once(data, {FAR: rows}, options.dataset)
    if FAR not in once:
        return None
    return OtherImages(far=as_others(data, once[FAR]), unseen=others.names(others.places))


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
    data, once = used_once(data, {ELSEWHERE: drawn.rows}, options.dataset, options.unknown_images)
    if ELSEWHERE not in once:
        raise DataError(f"unknown_images={options.unknown_images}: all images are those of the run: give others")
    others = replace(data.others or OtherImages(), elsewhere=once[ELSEWHERE], elsewhere_name=drawn.name)
    data = replace(data, others=others)
    data.views("elsewhere").check_images()
    return data
